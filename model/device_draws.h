// DeviceDraws: ids drawn where the logits are, step after step, and looked at later: the next step reads them
// from the device's memory while the host still waits for their copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/draw_rule.h"
#include "engine/exec_context.h"
#include "engine/tensor.h"

namespace inkling {

/// One thread at a time; the context outlives it. Allocates in the constructor alone.
class DeviceDraws {
 public:
  /// For up to `most` draws a step. Throws Error{out_of_memory}.
  DeviceDraws(ExecContext& context, std::size_t most);
  ~DeviceDraws();
  DeviceDraws(const DeviceDraws&) = delete;
  DeviceDraws& operator=(const DeviceDraws&) = delete;

  /// The ids of one step's draws.
  struct Drawn {
    const std::int32_t* on_device = nullptr;  ///< until the next begin(), for ops begun before that
    std::span<const std::int32_t> on_host;    ///< once wait() has returned, until the next begin() but one
    std::uint64_t point = 0;
  };
  /// Begins a step's draws from `logits`. Those of the step before may still be under way, those before them
  /// have been waited for.
  Drawn begin(const TensorView& logits, std::span<const DrawSettings> settings);
  void wait(const Drawn& drawn) { context_.backend().wait(drawn.point); }

 private:
  ExecContext& context_;
  std::size_t most_;
  Buffer settings_, ids_;
  Buffer host_ids_;      // of two steps, in turn
  bool second_ = false;  // which of the two is next
  std::uint64_t last_ = 0;
};

}  // namespace inkling
