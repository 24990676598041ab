#include "model/score.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>

#include "engine/ops.h"

namespace inkling {
namespace {

constexpr std::int64_t kRows = 32;  // of logits at a time

void check(const Model& model, std::span<const std::vector<std::int32_t>> sequences,
           const ScoreOptions& options) {
  require(options.max_batch >= 1 && options.prefill_chunk >= 0, Code::usage, [&] {
    return "score: expected max_batch ≥ 1 and prefill_chunk ≥ 0, got " + std::to_string(options.max_batch) +
           " and " + std::to_string(options.prefill_chunk);
  });
  const ModelConfig& c = model.config();
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    require(static_cast<std::int64_t>(sequences[i].size()) <= c.n_positions, Code::input, [&] {
      return "score: sequence " + std::to_string(i) + " has " + std::to_string(sequences[i].size()) +
             " tokens, but the model has " + std::to_string(c.n_positions) + " positions";
    });
    for (const std::int32_t id : sequences[i]) {
      require(id >= 0 && id < c.vocab_size, Code::input, [&] {
        return "score: sequence " + std::to_string(i) + ": expected ids below " +
               std::to_string(c.vocab_size) + ", got " + std::to_string(id);
      });
    }
  }
}

struct Under {  // a sequence under way
  std::size_t index;
  KvSequence kv;
};

// The last token predicts nothing and is not run.
std::int64_t positions_of(std::span<const std::int32_t> ids) {
  return std::max<std::int64_t>(static_cast<std::int64_t>(ids.size()) - 1, 0);
}

void check_memory(const KvPool& pool, std::span<const std::vector<std::int32_t>> sequences) {
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const std::int64_t positions = positions_of(sequences[i]);
    require(pool.max_bytes() == 0 || pool.bytes_for(positions) <= pool.max_bytes(), Code::out_of_memory, [&] {
      return "kv cache: sequence " + std::to_string(i) + ": " + std::to_string(positions) +
             " positions need " + std::to_string(pool.bytes_for(positions)) + " bytes, but the limit is " +
             std::to_string(pool.max_bytes());
    });
  }
}

}  // namespace

void check_scorable(const Model& model, ExecContext& context,
                    std::span<const std::vector<std::int32_t>> sequences, const ScoreOptions& options) {
  check(model, sequences, options);
  const Forward forward(model, context);
  check_memory(KvPool(forward.kv_shape(forward.default_kv_dtype()), options.kv_max_bytes), sequences);
}

std::vector<std::vector<float>> score(const Model& model, ExecContext& context,
                                      std::span<const std::vector<std::int32_t>> sequences,
                                      const ScoreOptions& options) {
  check(model, sequences, options);
  std::vector<std::vector<float>> result;
  std::int64_t total = 0, done = 0;
  for (const auto& ids : sequences) {
    result.emplace_back(ids.size(), std::numeric_limits<float>::quiet_NaN());
    total += static_cast<std::int64_t>(ids.size());
  }
  Forward forward(model, context);
  KvPool pool(forward.kv_shape(forward.default_kv_dtype()), options.kv_max_bytes, &context.backend());
  check_memory(pool, sequences);
  std::vector<Under> active;
  std::size_t taken = 0;  // bytes of the pool that those will have in the end
  std::vector<std::pair<std::size_t, std::size_t>>
      targets;  // (sequence, token) that each wanted row predicts
  PackedBatch batch;
  std::size_t next = 0;
  while (true) {
    while (next < sequences.size() && static_cast<std::int64_t>(active.size()) < options.max_batch) {
      const std::size_t bytes = pool.bytes_for(positions_of(sequences[next]));
      if (pool.max_bytes() != 0 && taken + bytes > pool.max_bytes()) break;
      taken += bytes;
      if (bytes > 0) active.push_back({next, KvSequence(pool)});
      ++next;
    }
    if (active.empty()) break;
    batch.clear();
    targets.clear();
    for (Under& u : active) {
      const auto ids =
          std::span(sequences[u.index]).first(static_cast<std::size_t>(positions_of(sequences[u.index])));
      const auto at = static_cast<std::size_t>(u.kv.length());
      std::size_t count = ids.size() - at;
      if (options.prefill_chunk > 0) count = std::min(count, static_cast<std::size_t>(options.prefill_chunk));
      u.kv.reserve(static_cast<std::int64_t>(count));
      batch.add(u.kv, ids.subspan(at, count), static_cast<std::int64_t>(count));
      for (std::size_t i = 0; i < count; ++i) targets.emplace_back(u.index, at + i + 1);
    }
    forward.run(batch);
    for (std::int64_t begin = 0; begin < batch.wanted(); begin += kRows) {
      const std::int64_t count = std::min(kRows, batch.wanted() - begin);
      const TensorView on_device = forward.logits(begin, count);
      log_softmax(context, on_device);
      const TensorView logits = forward.on_host(on_device);
      for (std::int64_t r = 0; r < count; ++r) {
        const auto [sequence, token] = targets[static_cast<std::size_t>(begin + r)];
        result[sequence][token] = logits.as<float>()[r * logits.stride[0] + sequences[sequence][token]];
      }
    }
    done += batch.tokens();
    if (options.progress) options.progress(done, total);
    std::erase_if(active, [&](const Under& u) {
      const std::int64_t all = positions_of(sequences[u.index]);
      if (u.kv.length() < all) return false;
      taken -= pool.bytes_for(all);
      return true;
    });
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
  std::vector<std::vector<std::int32_t>> windows;
  std::vector<std::int64_t> fresh;  // of each window, its last tokens that no earlier window predicted
  // The first token of a window is only seen, so that windows overlap by one at least.
  const std::int64_t step = std::min(stride, window - 1);
  for (std::int64_t begin = 0, predicted = 1; predicted < n; begin += step) {
    const std::int64_t end = std::min(begin + window, n);
    windows.emplace_back(tokens.begin() + begin, tokens.begin() + end);
    fresh.push_back(end - predicted);
    predicted = end;
  }
  const auto logprobs = score(model, context, windows, options);
  Perplexity result;
  for (std::size_t w = 0; w < windows.size(); ++w) {
    const auto& row = logprobs[w];
    for (std::int64_t i = 0; i < fresh[w]; ++i)
      result.nll -= row[row.size() - 1 - static_cast<std::size_t>(i)];
    result.tokens += fresh[w];
  }
  result.nll /= static_cast<double>(result.tokens);
  result.value = std::exp(result.nll);
  return result;
}

}  // namespace inkling
