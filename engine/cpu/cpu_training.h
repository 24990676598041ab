// The training half of the CPU's Backend: gradients, loss, dropout and optimiser on the same pool and
// kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "engine/backend.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/thread_pool.h"

namespace inkling {

namespace cpu {

inline std::ptrdiff_t row_stride(const TensorView& x) {
  return x.stride[0];
}
inline const float* row(const TensorView& x, std::int64_t i) {
  return static_cast<const float*>(x.data) + i * x.stride[0];
}
inline float* mutable_row(const TensorView& x, std::int64_t i) {
  return static_cast<float*>(x.data) + i * x.stride[0];
}

/// fn(m, worker) for every row of x, several to a task where they are short: a task is to be some
/// microseconds of work, so that handing it out costs little.
template <class Fn>
void each_row(ThreadPool& pool, std::int64_t rows, std::int64_t width, Fn&& fn) {
  constexpr std::int64_t kTask = 4096;  // elements
  const std::int64_t group = kTask / std::clamp<std::int64_t>(width, 1, kTask);
  pool.run((rows + group - 1) / group, [&](std::int64_t task, int worker) {
    for (std::int64_t m = task * group; m < std::min(rows, (task + 1) * group); ++m) fn(m, worker);
  });
}
template <class Fn>
void each_row(ThreadPool& pool, const TensorView& x, Fn&& fn) {
  each_row(pool, x.shape[0], x.shape[1], fn);
}

}  // namespace cpu

class CpuTraining : public Backend {
 public:
  void zero(void* to, std::size_t bytes) override;  // on all threads: gradients are as large as the model
  void linear_backward(const LinearBackwardArgs& args) override;
  void layer_norm_backward(const LayerNormBackwardArgs& args) override;
  void activate_backward(const ActivateBackwardArgs& args) override;
  void embed_backward(const EmbedBackwardArgs& args) override;
  void dropout(const DropoutArgs& args) override;
  void cross_entropy(const CrossEntropyArgs& args) override;
  double sum_of_squares(std::span<const float> x) override;
  void adamw(const AdamWArgs& args) override;

 protected:
  CpuTraining(ThreadPool& pool, const cpu::CpuKernels& table) : pool_(pool), table_(table) {}

  ThreadPool& pool_;
  const cpu::CpuKernels& table_;

 private:
  TensorView transpose(const TensorView& x);
  void add_column_sums(const TensorView& x, float* sums);

  Buffer transposed_, partial_;  // kept from op to op
};

}  // namespace inkling
