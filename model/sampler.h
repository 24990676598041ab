// Sampler: from a row of logits to one token.
//
// Order (that of Hugging Face's generate()): logit bias; repetition, presence and frequency penalties;
// no-repeat n-grams; ignore_eos; then greedy, or temperature, top-k, top-p, min-p, typical-p and one draw.
// The draw is Philox keyed by the seed with counter (position, sample, 0, 0): the same seed gives the same
// tokens in any batch and on any device that computes the same logits. Sums run in f64 over candidates by
// falling logit (ties by id); with every cut off, over the vocabulary by id. One thread at a time; allocates
// nothing once warm.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

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

class Sampler {
 public:
  /// Draws from `logits` (V), which is overwritten. `history` is the sequence so far, prompt included. `eos`
  /// is what ignore_eos forbids.
  std::int32_t draw(std::span<float> logits, const GenerationConfig& config,
                    std::span<const std::int32_t> history, const DrawKey& key,
                    std::optional<std::int64_t> eos = std::nullopt);

  /// Log-probability of `id` and of the K likeliest under the softmax of `logits` (V) as the model gave them:
  /// no temperature, no penalty. The span lives until the next call.
  TokenLogprob logprob(std::span<const float> logits, std::int32_t id);
  std::span<const TokenLogprob> top(std::span<const float> logits, std::int64_t k);

 private:
  struct Candidate {
    float logit;
    std::int32_t id;
    double weight;
  };
  void penalise(std::span<float> logits, const GenerationConfig& config,
                std::span<const std::int32_t> history);
  void select(std::span<const float> logits, std::size_t k);
  bool weigh(std::span<const float> logits, const GenerationConfig& config);
  void cut(const GenerationConfig& config);
  void keep_typical(double typical_p);
  std::int32_t pick(double unit) const;

  std::vector<Candidate> candidates_;
  std::vector<std::int32_t> seen_;
  std::vector<TokenLogprob> top_;
};

}  // namespace inkling
