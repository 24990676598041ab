// Backend: the seam between the ops (ops.h) and a device. Arguments arrive checked.
#pragma once

#include <string>

#include "engine/ops.h"

namespace inkling {

class Backend {
 public:
  virtual ~Backend() = default;
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  /// One line: device, kernels, threads.
  virtual std::string description() const = 0;

  virtual PackedMatrix pack(const MatrixSource& source, WeightFormat format, std::byte* memory) = 0;
  virtual std::size_t packed_nbytes(std::int64_t k, std::int64_t n, WeightFormat format) const = 0;
  virtual void unpack_column(const PackedMatrix& matrix, std::int64_t n, float* out) const = 0;

  virtual void linear(const LinearArgs& args) = 0;
  virtual void linear_backward(const LinearBackwardArgs& args) = 0;
  virtual void dropout(const DropoutArgs& args) = 0;
  virtual void embed(const EmbedArgs& args) = 0;
  virtual void layer_norm(const NormArgs& args) = 0;
  virtual void softmax(TensorView x) = 0;
  virtual void log_softmax(TensorView x) = 0;
  virtual void activate(TensorView x, Activation activation) = 0;
};

}  // namespace inkling
