#include "model/score.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "engine/ops.h"

namespace inkling {
namespace {

constexpr std::int64_t kRows = 32;  // of logits at a time

void check(const Model& model, std::span<const ScoredSequence> sequences, const ScoreOptions& options) {
  require(options.max_batch >= 1 && options.prefill_chunk >= 0, Code::usage, [&] {
    return "score: expected max_batch ≥ 1 and prefill_chunk ≥ 0, got " + std::to_string(options.max_batch) +
           " and " + std::to_string(options.prefill_chunk);
  });
  const ModelConfig& c = model.config();
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const ScoredSequence& sequence = sequences[i];
    require(sequence.first >= 1, Code::usage, [&] {
      return "score: sequence " + std::to_string(i) + ": expected a first token from 1 on, got " +
             std::to_string(sequence.first);
    });
    require(static_cast<std::int64_t>(sequence.ids.size()) <= c.n_positions, Code::input, [&] {
      return "score: sequence " + std::to_string(i) + " has " + std::to_string(sequence.ids.size()) +
             " tokens, but the model has " + std::to_string(c.n_positions) + " positions";
    });
    for (const std::int32_t id : sequence.ids) {
      require(id >= 0 && id < c.vocab_size, Code::input, [&] {
        return "score: sequence " + std::to_string(i) + ": expected ids below " +
               std::to_string(c.vocab_size) + ", got " + std::to_string(id);
      });
    }
  }
}

/// The last token predicts nothing and is not run; nor is anything of a sequence of which nothing is asked.
std::int64_t positions_of(const ScoredSequence& sequence) {
  const auto size = static_cast<std::int64_t>(sequence.ids.size());
  return sequence.first < size ? size - 1 : 0;
}

void check_memory(const KvPool& pool, std::span<const ScoredSequence> sequences) {
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const std::int64_t positions = positions_of(sequences[i]);
    require(pool.max_bytes() == 0 || pool.bytes_for(positions) <= pool.max_bytes(), Code::out_of_memory, [&] {
      return "kv cache: sequence " + std::to_string(i) + ": " + std::to_string(positions) +
             " positions need " + std::to_string(pool.bytes_for(positions)) + " bytes, but the limit is " +
             std::to_string(pool.max_bytes());
    });
  }
}

std::vector<ScoredSequence> whole(std::span<const std::vector<std::int32_t>> sequences) {
  std::vector<ScoredSequence> all;
  for (const auto& ids : sequences) all.push_back({ids});
  return all;
}

/// Sequences under way, a packed step at a time.
class Scoring {
 public:
  Scoring(const Model& model, ExecContext& context, std::span<const ScoredSequence> sequences,
          const ScoreOptions& options)
      : context_(context),
        sequences_(sequences),
        options_(options),
        forward_(model, context),
        pool_(forward_.kv_shape(forward_.default_kv_dtype()), options.kv_max_bytes, &context.backend()) {
    check_memory(pool_, sequences);
  }

  std::vector<std::vector<float>> run() {
    std::int64_t total = 0, done = 0;
    for (const ScoredSequence& sequence : sequences_) {
      const auto size = static_cast<std::int64_t>(sequence.ids.size());
      total += size;
      result_.emplace_back(static_cast<std::size_t>(std::max<std::int64_t>(size - sequence.first, 0)));
    }
    for (admit(); !active_.empty(); admit()) {
      fill_batch();
      forward_.run(batch_);
      for (std::int64_t begin = 0; begin < batch_.wanted(); begin += kRows) {
        read_rows(begin, std::min(kRows, batch_.wanted() - begin));
      }
      done += batch_.tokens();
      if (options_.progress) options_.progress(done, total);
      retire();
    }
    return std::move(result_);
  }

 private:
  struct Under {  // a sequence under way
    std::size_t index;
    KvSequence kv;
  };
  struct Target {  // the token that a wanted row predicts
    std::size_t sequence;
    std::int64_t token;
  };

  // As many as have a place, and memory to the end.
  void admit() {
    while (next_ < sequences_.size() && static_cast<std::int64_t>(active_.size()) < options_.max_batch) {
      const std::size_t bytes = pool_.bytes_for(positions_of(sequences_[next_]));
      if (pool_.max_bytes() != 0 && taken_ + bytes > pool_.max_bytes()) break;
      taken_ += bytes;
      if (bytes > 0) active_.push_back({next_, KvSequence(pool_)});
      ++next_;
    }
  }

  void fill_batch() {
    batch_.clear();
    targets_.clear();
    for (Under& u : active_) {
      const ScoredSequence& sequence = sequences_[u.index];
      const std::int64_t at = u.kv.length();
      std::int64_t count = positions_of(sequence) - at;
      if (options_.prefill_chunk > 0) count = std::min(count, options_.prefill_chunk);
      const std::int64_t end = at + count, from = std::clamp(sequence.first - 1, at, end);
      u.kv.reserve(count);
      batch_.add(u.kv, sequence.ids.subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(count)),
                 end - from);
      for (std::int64_t i = from; i < end; ++i) targets_.push_back({u.index, i + 1});
    }
  }

  // Wanted rows [begin, begin + count).
  void read_rows(std::int64_t begin, std::int64_t count) {
    const TensorView on_device = forward_.logits(begin, count);
    log_softmax(context_, on_device);
    const TensorView logits = forward_.on_host(on_device);
    for (std::int64_t r = 0; r < count; ++r) {
      const Target target = targets_[static_cast<std::size_t>(begin + r)];
      const ScoredSequence& sequence = sequences_[target.sequence];
      const std::int32_t id = sequence.ids[static_cast<std::size_t>(target.token)];
      result_[target.sequence][static_cast<std::size_t>(target.token - sequence.first)] =
          logits.as<float>()[r * logits.stride[0] + id];
    }
  }

  void retire() {
    std::erase_if(active_, [&](const Under& u) {
      const std::int64_t all = positions_of(sequences_[u.index]);
      if (u.kv.length() < all) return false;
      taken_ -= pool_.bytes_for(all);
      return true;
    });
  }

  ExecContext& context_;
  std::span<const ScoredSequence> sequences_;
  const ScoreOptions& options_;
  Forward forward_;
  KvPool pool_;
  std::vector<Under> active_;
  std::size_t next_ = 0;   // of the sequences
  std::size_t taken_ = 0;  // bytes of the pool that active_ will have in the end
  PackedBatch batch_;
  std::vector<Target> targets_;  // of the batch's wanted rows
  std::vector<std::vector<float>> result_;
};

}  // namespace

void check_scorable(const Model& model, ExecContext& context,
                    std::span<const std::vector<std::int32_t>> sequences, const ScoreOptions& options) {
  const std::vector<ScoredSequence> all = whole(sequences);
  check(model, all, options);
  const Forward forward(model, context);
  check_memory(KvPool(forward.kv_shape(forward.default_kv_dtype()), options.kv_max_bytes), all);
}

std::vector<std::vector<float>> score(const Model& model, ExecContext& context,
                                      std::span<const ScoredSequence> sequences,
                                      const ScoreOptions& options) {
  check(model, sequences, options);
  return Scoring(model, context, sequences, options).run();
}

std::vector<std::vector<float>> score(const Model& model, ExecContext& context,
                                      std::span<const std::vector<std::int32_t>> sequences,
                                      const ScoreOptions& options) {
  auto result = score(model, context, whole(sequences), options);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    if (!sequences[i].empty()) result[i].insert(result[i].begin(), std::numeric_limits<float>::quiet_NaN());
  }
  return result;
}

Perplexity perplexity(const Model& model, ExecContext& context, std::span<const std::int32_t> tokens,
                      std::int64_t window, std::int64_t stride, const ScoreOptions& options) {
  const std::int64_t most = model.config().n_positions;
  require(stride >= 1 && stride <= window && window >= 2 && window <= most, Code::usage, [&] {
    return "perplexity: expected 1 ≤ stride ≤ window, 2 ≤ window ≤ " + std::to_string(most) +
           ", got stride " + std::to_string(stride) + " and window " + std::to_string(window);
  });
  const auto n = static_cast<std::int64_t>(tokens.size());
  require(n >= 2, Code::input,
          [&] { return "perplexity: expected at least 2 tokens, got " + std::to_string(n); });
  std::vector<ScoredSequence> windows;  // each from the first token on that no earlier window predicted
  // The first token of a window is only seen, so that windows overlap by one at least.
  const std::int64_t step = std::min(stride, window - 1);
  for (std::int64_t begin = 0, predicted = 1; predicted < n; begin += step) {
    const std::int64_t end = std::min(begin + window, n);
    windows.push_back({tokens.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)),
                       predicted - begin});
    predicted = end;
  }
  Perplexity result;
  for (const std::vector<float>& logprobs : score(model, context, windows, options)) {
    for (auto at = logprobs.rbegin(); at != logprobs.rend(); ++at) result.nll -= *at;
    result.tokens += static_cast<std::int64_t>(logprobs.size());
  }
  result.nll /= static_cast<double>(result.tokens);
  result.value = std::exp(result.nll);
  return result;
}

}  // namespace inkling
