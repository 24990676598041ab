// Gpt2Source: any GPT-2 on disk as one config and one table of tensor views, whoever wrote it.
//
// Understood: Hugging Face names with and without "transformer.", any nesting of "module." and "_orig_mod."
// (what data-parallel wrappers and torch.compile leave), matrices as Conv1D (in,out) or nn.Linear (out,in),
// tied or separate heads, bias-free models, padded vocabularies, each tensor in f32, f16 or bf16. See
// weights/README.md.
//
//   Result<Gpt2Source> source = Gpt2Source::open("gpt2");
//   if (!source) return source.error();
//   const TensorView wte = source->tensors().wte;  // (V,C)
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/tensor.h"
#include "weights/config.h"
#include "weights/sharded.h"

namespace inkling {

/// How a matrix multiplying a row vector x is stored.
enum class MatrixLayout : std::uint8_t {
  in_out,  ///< (in,out), y = x·W: Hugging Face's Conv1D
  out_in,  ///< (out,in), y = x·Wᵀ: nn.Linear of nanoGPT and minGPT
};

/// Views of one block's tensors; C width, I = ModelConfig::inner(). Shapes are for in_out; out_in swaps the
/// two.
struct Gpt2Layer {
  TensorView ln1_w, ln1_b;        ///< (C)
  TensorView attn_w, attn_b;      ///< (C,3C), (3C): queries, keys, values side by side
  TensorView proj_w, proj_b;      ///< (C,C), (C)
  TensorView ln2_w, ln2_b;        ///< (C)
  TensorView fc_w, fc_b;          ///< (C,I), (I)
  TensorView fcproj_w, fcproj_b;  ///< (I,C), (C)
};

/// Every tensor of a GPT-2. Read-only memory, contiguous, aligned for its dtype (f32, f16 or bf16, each its
/// own). A tensor that the model has not (a bias, the head when tied) has data == nullptr.
struct Gpt2Tensors {
  TensorView wte;           ///< (V,C); padding rows of the file are already cut off
  TensorView wpe;           ///< (positions,C)
  TensorView lnf_w, lnf_b;  ///< (C)
  TensorView lm_head;       ///< (V,C) whatever the layout; absent when tied to wte
  std::vector<Gpt2Layer> layers;
  MatrixLayout layout = MatrixLayout::in_out;
  /// Rows that lie in memory at wte, ≥ V; the view is cut to V. What is behind it is a file's padding,
  /// whatever that holds, or the zeros of a ParameterLayout, over which training's products run on.
  std::int64_t vocab_rows = 0;
};

/// The most padding rows taken for padding and not for a wrong vocab_size (128 × 8-way tensor parallelism).
inline constexpr std::int64_t kMaxVocabPadding = 1024;

struct OpenOptions {
  /// Bytes that may be allocated for tensors which the file leaves unaligned; 0: no limit.
  std::uint64_t max_memory = 0;
  /// Takes the place of config.json. Extents left 0 come from the tensors' shapes (n_inner only if n_embd is
  /// 0 too, else 0 means 4·C), and so do bias and head; n_head cannot be seen in a shape and must be given.
  std::optional<ModelConfig> override = std::nullopt;
};

/// Which biases match_gpt2() wants.
enum class BiasRule : std::uint8_t {
  as_stated,  ///< all or none of them, as ModelConfig::bias says
  as_found,   ///< those that the tensors have, the same in each layer (minGPT exports may lack one kind only)
};

/// Matches named tensors with the slots of a GPT-2. `config` may have extents of 0 as in
/// OpenOptions::override; on success it is complete, validated, and says the bias and head that were found.
/// `name` names the source in errors. Borrows the tensors' memory. Alignment is as given. Error{malformed}
/// names every tensor that is missing, unexpected, doubled or misshapen (the first few when there are many).
Result<Gpt2Tensors> match_gpt2(std::span<const NamedTensor* const> tensors, ModelConfig& config,
                               BiasRule rule, std::string_view name);

/// A model opened for reading. Move-only; const access is thread-safe; owns the map that the views look into.
class Gpt2Source {
 public:
  /// `folder_or_file` as in locate_weights(); config.json and generation_config.json (optional) lie beside
  /// the weights. Reads headers only, and nothing is allocated in proportion to the weights, unless the file
  /// places tensors unaligned for their dtype: those are copied. Error{file}, Error{malformed},
  /// Error{out_of_memory}.
  static Result<Gpt2Source> open(const std::filesystem::path& folder_or_file,
                                 const OpenOptions& options = {});

  const ModelConfig& config() const noexcept { return config_; }
  const PublishedGeneration& published_generation() const noexcept { return generation_; }
  const Gpt2Tensors& tensors() const noexcept { return tensors_; }
  const WeightFiles& files() const noexcept { return files_; }
  /// Bytes of the tensors in use, as stored.
  std::uint64_t tensor_bytes() const noexcept { return tensor_bytes_; }

  /// Lets the memory of a tensor's pages go: a loader that packs weights does so after each, so that source
  /// and packed copy are never both resident.
  void release(const TensorView& tensor) const noexcept { files_.release(tensor); }

 private:
  explicit Gpt2Source(WeightFiles files) : files_(std::move(files)) {}
  Result<void> align(std::uint64_t max_memory);

  WeightFiles files_;
  ModelConfig config_;
  PublishedGeneration generation_;
  Gpt2Tensors tensors_;
  std::uint64_t tensor_bytes_ = 0;
  std::vector<Buffer> copies_;  // of tensors that the file left unaligned
};

}  // namespace inkling
