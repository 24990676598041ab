// What `inkling bench sdpa` can be asked.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "apps/attention_case.h"
#include "apps/bench.h"
#include "apps/model_options.h"

namespace inkling::app {

struct SdpaOptions {
  ModelOptions model;                 ///< device and threads
  std::vector<SdpaBackend> backends;  ///< empty: all, the refusals of which are rows
  AttentionCase shape{.mask = MaskKind::causal_lower_right};
  std::int64_t batch = 1, length = 1024, kv_heads = 0;
  std::optional<std::int64_t> q_length, k_length;
  std::vector<std::int64_t> varlen;
  std::optional<std::uint64_t> memory_limit;
  std::string suite;
  float scale = 0.03125f;  ///< 1/32
  std::optional<int> repeats;
  Table table = Table::md;
  std::set<std::string> given;  ///< of the options of the shape

  bool tutorial() const noexcept { return !suite.empty(); }
  // The tutorial wants to see math, at some seconds a call.
  int samples() const noexcept { return repeats.value_or(tutorial() ? 3 : 5); }
  std::size_t limit() const noexcept {
    return static_cast<std::size_t>(
        memory_limit.value_or(tutorial() ? std::uint64_t{1} << 30 : SdpaPolicy{}.memory_limit));
  }
};

/// All but those of the device.
void add_sdpa_options(Options& options, const std::shared_ptr<SdpaOptions>& o);
/// Makes `shape` of what was given. Throws Error{usage} where that has no effect or does not fit together.
void settle(SdpaOptions& o);

}  // namespace inkling::app
