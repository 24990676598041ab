// What the model's tests share: every weight format, and a model run over ids in chunks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <numeric>
#include <span>
#include <vector>

#include "model/forward.h"

namespace inkling::test {

using Ids = std::vector<std::int32_t>;

struct Format {
  WeightType dtype;
  Quantisation quant;
  const char* name;
};
inline constexpr Format kFormats[] = {{WeightType::f32, Quantisation::none, "f32"},
                                      {WeightType::bf16, Quantisation::none, "bf16"},
                                      {WeightType::f16, Quantisation::none, "f16"},
                                      {WeightType::automatic, Quantisation::int8, "int8"},
                                      {WeightType::automatic, Quantisation::int4, "int4"}};

inline Model load(const std::filesystem::path& path, ExecContext& context,
                  const Format& format = kFormats[0]) {
  LoadOptions options;
  options.dtype = format.dtype;
  options.quant = format.quant;
  return Model::load(path, context, options).value();
}

/// Logits after each of `ids`, (T, V), computed in chunks of the given sizes (the last repeats).
inline std::vector<float> logits_of(Forward& forward, KvPool& pool, const Ids& ids,
                                    std::vector<std::int64_t> chunks) {
  KvSequence sequence(pool);
  PackedBatch batch;
  std::vector<float> all;
  for (std::size_t at = 0, i = 0; at < ids.size(); ++i) {
    const auto step = static_cast<std::size_t>(chunks[std::min(i, chunks.size() - 1)]);
    const std::size_t count = std::min(step, ids.size() - at);
    sequence.reserve(static_cast<std::int64_t>(count));
    batch.clear();
    batch.add(sequence, std::span(ids).subspan(at, count), static_cast<std::int64_t>(count));
    forward.run(batch);
    const TensorView logits = forward.on_host(forward.logits());
    for (std::int64_t r = 0; r < logits.shape[0]; ++r) {
      const float* row = logits.as<float>() + r * logits.stride[0];
      all.insert(all.end(), row, row + logits.shape[1]);
    }
    at += count;
  }
  return all;
}

inline std::vector<double> logprobs_of(std::vector<float> logits, const Ids& ids) {
  const std::size_t vocab = logits.size() / ids.size();
  std::vector<double> out;
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
    const auto row = std::span(logits).subspan(i * vocab, vocab);
    const double top = *std::max_element(row.begin(), row.end());
    double sum = 0.0;
    for (const float v : row) sum += std::exp(v - top);
    out.push_back(row[static_cast<std::size_t>(ids[i + 1])] - top - std::log(sum));
  }
  return out;
}

inline double perplexity(const std::vector<double>& logprobs) {
  return std::exp(-std::accumulate(logprobs.begin(), logprobs.end(), 0.0) /
                  static_cast<double>(logprobs.size()));
}

}  // namespace inkling::test
