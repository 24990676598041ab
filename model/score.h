// Scoring: the log-probability of each token of given sequences. Logits are made a few rows at a time, never
// (N,V).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "model/forward.h"

namespace inkling {

struct ScoreOptions {
  std::int64_t max_batch = 8;        ///< sequences per packed step
  std::int64_t prefill_chunk = 512;  ///< most tokens of one sequence per step; 0: all
  std::size_t kv_max_bytes =
      0;  ///< of keys and values; fewer sequences run together to stay below; 0: no limit
  std::function<void(std::int64_t done, std::int64_t total)> progress;  ///< in tokens
};

/// Tokens of which those from `first` ≥ 1 on are scored; those before are only seen.
struct ScoredSequence {
  std::span<const std::int32_t> ids;
  std::int64_t first = 1;
};

/// For each sequence, the natural log-probability of each token from `first` on given those before it: a
/// continuation after its prompt. Only those pay for a row of logits. Throws as score() below, and
/// Error{usage} for a `first` below 1.
std::vector<std::vector<float>> score(const Model& model, ExecContext& context,
                                      std::span<const ScoredSequence> sequences,
                                      const ScoreOptions& options = {});

/// For each sequence, the natural log-probability of token i given tokens before it; index 0 is NaN, since
/// nothing precedes the first. Bits depend on the sequence alone. Throws Error{input} for a sequence longer
/// than the model's positions or an id outside the vocabulary, with both numbers, Error{out_of_memory} for
/// one that alone takes more than kv_max_bytes, before any is run, and Error{usage} for options out of range.
std::vector<std::vector<float>> score(const Model& model, ExecContext& context,
                                      std::span<const std::vector<std::int32_t>> sequences,
                                      const ScoreOptions& options = {});

/// Throws what score() would for these, and runs none. For who scores them a few at a time.
void check_scorable(const Model& model, ExecContext& context,
                    std::span<const std::vector<std::int32_t>> sequences, const ScoreOptions& options = {});

struct Perplexity {
  double value = 0.0;       ///< e^(mean negative log-likelihood)
  double nll = 0.0;         ///< the mean, in nats per token
  std::int64_t tokens = 0;  ///< predicted
};

/// Perplexity of a text longer than the context, as in Hugging Face's "Perplexity of fixed-length models":
/// windows of `window` tokens begin every min(stride, window − 1) tokens; each token but the text's first is
/// predicted once, in the first window that holds it behind another; no other row of logits is made. 1 ≤
/// stride ≤ window ≤ positions, or Error{usage}; fewer than 2 tokens, Error{input}.
Perplexity perplexity(const Model& model, ExecContext& context, std::span<const std::int32_t> tokens,
                      std::int64_t window, std::int64_t stride, const ScoreOptions& options = {});

}  // namespace inkling
