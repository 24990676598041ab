// Sampler: from a row of logits to one token.
//
// Order (that of Hugging Face's generate()): logit bias; repetition, presence and frequency penalties;
// no-repeat n-grams; ignore_eos; then greedy, or temperature, top-k, top-p, min-p, typical-p and one draw.
// The draw is that of engine/draw_rule.h, keyed by the seed and the position: the same seed gives the same
// tokens in any batch and on any device that computes the same logits. The op draw() (engine/ops.h) draws the
// same where op_refusal() is empty.
//
// V = 50257 on one thread of a shared two-core EPYC, best of 20 rounds: greedy 12 µs, the defaults 30 µs, the
// whole distribution 80 µs, top-p without top-k 260 µs, typical-p without either 1.8 ms. One thread at a
// time.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "engine/draw_rule.h"
#include "engine/profiler.h"
#include "model/generation_config.h"

namespace inkling {

/// A token and the natural logarithm of its probability.
struct TokenLogprob {
  std::int32_t id = 0;
  float logprob = 0.0f;
};

/// Which draw this is.
struct DrawKey {
  std::uint64_t seed = 0;
  std::uint32_t position = 0;  ///< of the token drawn, in its sequence
  std::uint32_t sample = 0;    ///< among the samples of one prompt
};

/// The likeliest tokens of a row of logits, the first of a falling order, ties by rising id.
struct TopLogits {
  std::span<const float> logits;
  std::span<const std::int32_t> ids;
};

/// The tokens that end a text (Model::end_ids()), which ignore_eos forbids: each once.
using EndIds = std::span<const std::int32_t>;

class Sampler {
 public:
  /// How many of the likeliest tokens a draw with `config` looks at, so that they can stand for the whole
  /// row; 0: it wants the row.
  static std::int64_t top_wanted(std::size_t vocab, const GenerationConfig& config, EndIds ends);

  /// Why the op draw() cannot stand for draw() with `config`; "" when it can, by settings().
  static std::string_view op_refusal(std::size_t vocab, const GenerationConfig& config, EndIds ends);
  static DrawSettings settings(std::size_t vocab, const GenerationConfig& config, const DrawKey& key,
                               EndIds ends);

  /// What a draw must at least read and compute that looks at `logits` of them (V, or top_wanted()): for the
  /// profiler.
  static ProfileWork work(std::size_t logits, const GenerationConfig& config);

  /// Takes the memory that draws with `config` need after up to `history` tokens, so that none allocates.
  void reserve(std::size_t vocab, std::size_t history, const GenerationConfig& config);

  /// Draws from `logits` (V ≤ kMostDrawn, or Error{usage}), where NaN counts as −inf. `history` is the
  /// sequence so far, prompt included. A row without a logit above −inf gives id 0.
  std::int32_t draw(std::span<const float> logits, const GenerationConfig& config,
                    std::span<const std::int32_t> history, const DrawKey& key, EndIds ends = {});

  /// The same draw, to the bit, from the top_wanted() likeliest tokens of the row.
  std::int32_t draw(const TopLogits& top, const GenerationConfig& config, const DrawKey& key,
                    EndIds ends = {});

  /// log Σ e^logit: a token's log-probability under the model's own distribution (no temperature, no penalty)
  /// is its logit less this.
  static double log_sum_exp(std::span<const float> logits);
  /// The min(k, V) likeliest tokens by falling log-probability, ties by id; NaN is as unlikely as −inf. The
  /// span lives until the next call.
  std::span<const TokenLogprob> top(std::span<const float> logits, double log_sum_exp, std::int64_t k);

 private:
  struct Candidate {
    float rank;  // the logit; for typical-p, how typical
    std::int32_t id;
    std::uint64_t mass;
  };

  std::span<const float> adjust(std::span<const float> logits, const GenerationConfig& config,
                                std::span<const std::int32_t> history, EndIds ends);
  std::int32_t draw_candidates(const GenerationConfig& config, const DrawSettings& draw);
  std::int32_t cut_and_pick(std::uint64_t total, const GenerationConfig& config, const DrawSettings& draw);
  void penalise(const GenerationConfig& config, std::span<const std::int32_t> history);
  void forbid_repeats(std::size_t n, std::span<const std::int32_t> history);
  void select(std::span<const float> logits, std::size_t k);
  void collect(std::span<const float> logits, const GenerationConfig& config, float top, float scale,
               std::uint64_t total);
  std::uint64_t candidates_mass() const;
  void keep_mass(std::uint64_t mass);
  void keep_typical(double typical_p);
  std::int32_t pick(const DrawSettings& draw) const;
  std::int32_t pick_any(std::span<const float> logits, float top, std::uint64_t total,
                        const DrawSettings& draw);

  std::vector<float> adjusted_;               // (V) logits after bias, penalties and bans
  std::vector<Candidate> candidates_, pool_;  // what is left; scratch of keep_mass()
  std::vector<std::uint64_t> blocks_;         // mass of each block of the vocabulary
  std::vector<std::int32_t> seen_;
  std::vector<TokenLogprob> top_;
};

}  // namespace inkling
