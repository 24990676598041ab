// The training half of the CPU's Backend: gradients, loss, dropout and optimiser on the same pool and
// kernels.
#pragma once

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

}  // namespace cpu

class CpuTraining : public Backend {
 public:
  void linear_backward(const LinearBackwardArgs& args) override;
  void layer_norm_backward(const LayerNormBackwardArgs& args) override;
  void activate_backward(const ActivateBackwardArgs& args) override;
  void embed_backward(const EmbedBackwardArgs& args) override;
  void dropout(const DropoutArgs& args) override;
  void cross_entropy(const CrossEntropyArgs& args) override;
  double sum_of_squares(std::span<const float> x) override;
  void add_scaled(std::span<float> to, std::span<const float> from, float scale) override;
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
