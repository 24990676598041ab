// Backend: the seam between the ops (ops.h) and a device. Arguments arrive checked; what they point at lies
// in this Memory.
#pragma once

#include <memory>
#include <string>

#include "engine/memory.h"
#include "engine/recorder.h"
#include "engine/training_ops.h"

namespace inkling {

class Backend : public Memory {
 public:
  /// One line: device, kernels, threads.
  virtual std::string description() const = 0;

  /// What the activations between two matrices of this format are kept as (the residual stream is f32
  /// always).
  virtual DType activation_dtype(WeightFormat) const noexcept { return DType::f32; }

  /// For one caller's chains of ops; the Backend outlives it.
  virtual std::unique_ptr<Recorder> recorder() { return std::make_unique<Recorder>(); }

  virtual PackedMatrix pack(const MatrixSource& source, WeightFormat format, std::byte* memory) = 0;
  virtual PackedMatrix packed_at(const std::byte* memory, std::int64_t k, std::int64_t n,
                                 WeightFormat format) const = 0;
  virtual std::size_t packed_nbytes(std::int64_t k, std::int64_t n, WeightFormat format) const = 0;
  virtual void unpack_column(const PackedMatrix& matrix, std::int64_t n, float* out) const = 0;

  virtual void linear(const LinearArgs& args) = 0;
  virtual void embed(const EmbedArgs& args) = 0;
  virtual void layer_norm(const NormArgs& args) = 0;
  virtual void softmax(TensorView x) = 0;
  virtual void log_softmax(TensorView x) = 0;
  virtual void activate(TensorView x, Activation activation) = 0;
  virtual void top(const TopArgs& args) = 0;
  virtual void draw(const DrawArgs& args) = 0;

  // Training: a device that only infers leaves these.
  virtual void linear_backward(const LinearBackwardArgs&) { refuse("linear_backward"); }
  virtual void layer_norm_backward(const LayerNormBackwardArgs&) { refuse("layer_norm_backward"); }
  virtual void activate_backward(const ActivateBackwardArgs&) { refuse("activate_backward"); }
  virtual void embed_backward(const EmbedBackwardArgs&) { refuse("embed_backward"); }
  virtual void dropout(const DropoutArgs&) { refuse("dropout"); }
  virtual void cross_entropy(const CrossEntropyArgs&) { refuse("cross_entropy"); }
  virtual double sum_of_squares(std::span<const float>) { refuse("sum_of_squares"); }
  virtual void adamw(const AdamWArgs&) { refuse("adamw"); }

 private:
  [[noreturn]] void refuse(const char* op) const {
    throw Error(Code::device, std::string(op) + ": expected a device that trains, got " + description());
  }
};

}  // namespace inkling
