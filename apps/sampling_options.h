// The sampling group of options, made from the engine's option table; and how a run is packed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "apps/options.h"
#include "model/generation_config.h"
#include "weights/config.h"

namespace inkling::app {

/// What was asked for, as text until the model's own settings are known.
struct SamplingOptions {
  std::string preset;
  std::vector<std::pair<std::string_view, std::string>> given;  ///< option of the table and value

  bool has(std::string_view name) const;
  /// Asked for, over the preset, over the model's generation_config.json, over built-in. Throws Error{usage}
  /// for a flag and Error{malformed} for a published setting that is out of range or of the vocabulary.
  GenerationConfig resolve(const PublishedGeneration& published, std::int64_t vocab_size) const;
};
void add_sampling_options(Options& options, SamplingOptions& sampling);

/// No result depends on these.
struct BatchOptions {
  std::optional<std::int64_t> batch;  ///< sequences that run together at most; unset: kBatch, or all of -N
  std::int64_t prefill_chunk = 512;
};
inline constexpr std::int64_t kBatch = 8;
void add_batch_options(Options& options, BatchOptions& batch);

}  // namespace inkling::app
