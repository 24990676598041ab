// ModelConfig: the numbers that make one GPT-2, and the readers of the JSON files that carry them.
//
// Accepted: Hugging Face config.json (model_type "gpt2") and nanoGPT's model_args, at top level or under the
// key "model_args". A setting that would change the arithmetic and that the engine does not compute is
// refused by name, never ignored. All functions are pure and thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/activation.h"
#include "engine/base/result.h"

namespace inkling {

/// Whether the linear layers and the norms carry a bias (nanoGPT's bias=False drops them all).
enum class Bias : std::uint8_t { absent, present };

/// Whether the output projection is the token embedding or a matrix of its own.
enum class Head : std::uint8_t { tied, separate };

struct ModelConfig {
  std::int64_t vocab_size = 0;   ///< V, without padding rows
  std::int64_t n_positions = 0;  ///< the longest context
  std::int64_t n_embd = 0;       ///< C
  std::int64_t n_layer = 0;      ///< L
  std::int64_t n_head = 0;       ///< H, divides C into heads of at most kMaxHeadSize
  std::int64_t n_inner = 0;      ///< width of the MLP; 0 means 4·C
  /// "gelu_new" and "gelu_pytorch_tanh" are gelu_tanh, "gelu" is gelu_erf.
  Activation activation = Activation::gelu_tanh;
  float layer_norm_epsilon = 1e-5f;
  Bias bias = Bias::present;
  Head head = Head::tied;
  std::optional<std::int64_t> bos_token_id;
  std::optional<std::int64_t> eos_token_id;

  std::int64_t head_size() const noexcept { return n_embd / n_head; }  ///< D; n_head must not be 0
  std::int64_t inner() const noexcept { return n_inner != 0 ? n_inner : 4 * n_embd; }
  /// Weights and biases; the tied head counts once. Cannot overflow once validate() has passed.
  std::int64_t parameter_count() const noexcept;

  /// Each extent within its limit (below), H divides C, C/H within its own, epsilon finite and positive, ids
  /// below V. Error{malformed} "config: FIELD: expected …, got …".
  Result<void> validate() const;

  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

// Limits, an order of magnitude above any GPT-2 known; chosen so that no product of extents passes 2^63.
inline constexpr std::int64_t kMaxVocab = std::int64_t{1} << 22;
inline constexpr std::int64_t kMaxPositions = std::int64_t{1} << 24;
inline constexpr std::int64_t kMaxEmbd = std::int64_t{1} << 17;
inline constexpr std::int64_t kMaxInner = std::int64_t{1} << 20;
inline constexpr std::int64_t kMaxLayers = std::int64_t{1} << 12;
/// The widest head: what attention computes. No GPT-2 known has more than 128.
inline constexpr std::int64_t kMaxHeadSize = 256;

/// The longest JSON text that the functions below accept.
inline constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 20;

/// Reads a Hugging Face config.json or nanoGPT model_args; the result has passed validate(). `name` names the
/// file in errors. Unknown keys are ignored, as Hugging Face does; duplicate keys are refused. Token ids at
/// or past the vocabulary become absent: Hugging Face writes its default 50256 beside any vocabulary.
/// Error{malformed} "NAME: FIELD: expected …, got …".
Result<ModelConfig> parse_config_json(std::string_view text, std::string_view name);

/// The HF config.json text of `config`: what parse_config_json() reads back as an equal ModelConfig.
/// bias = absent is written as a key "bias" of our own, which parse_config_json() understands.
std::string to_config_json(const ModelConfig& config);

/// Sampling defaults that a model's author ships in generation_config.json. Absent means not stated. What
/// else Hugging Face reads there (max_length, beams, …) has no meaning here and is ignored.
struct PublishedGeneration {
  std::optional<bool> do_sample;
  std::optional<double> temperature;
  std::optional<std::int64_t> top_k;
  std::optional<double> top_p;
  std::optional<double> repetition_penalty;
  std::optional<std::int64_t> max_new_tokens;
  std::optional<std::int64_t> bos_token_id;
  std::vector<std::int64_t> eos_token_ids;  ///< one or a list in the file; in its order, each once

  friend bool operator==(const PublishedGeneration&, const PublishedGeneration&) = default;
};

/// Reads generation_config.json. Checks types and ranges (temperature ≥ 0, 0 < top_p ≤ 1, counts ≥ 0, ids
/// below `vocab_size`). A file that says "_from_model_config" is Hugging Face's copy of config.json: its ids
/// at or past the vocabulary become absent, as there. Error{malformed} "NAME: FIELD: expected …, got …".
Result<PublishedGeneration> parse_generation_config_json(std::string_view text, std::string_view name,
                                                         std::int64_t vocab_size);

}  // namespace inkling
