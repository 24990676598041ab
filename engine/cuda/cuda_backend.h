// CudaBackend: the ops of one context on one GPU, all in one stream. Seen by */cuda/ alone.
//
// Calls return when the work is enqueued; copy_out(), wait(), synchronise() and sum_of_squares() wait.
// x and out of linear() have the dtype of the weights, bf16 beside integers, or are f32. Bits: a row depends
// on its own inputs alone, within one kind of device, dtype and build.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <memory>
#include <span>
#include <string>
#include <type_traits>

#include "engine/backend.h"
#include "engine/cuda/device_memory.h"
#include "engine/cuda/kernels.h"
#include "engine/cuda/product.h"

namespace inkling::cuda {

class CublasLt;

class CudaBackend final : public Backend {
 public:
  /// Throws Error{device} when GPU `ordinal` cannot be used.
  CudaBackend(int ordinal, Isa isa);
  ~CudaBackend() override;

  std::string description() const override { return description_; }
  Device device() const noexcept override { return Device::cuda; }
  DType activation_dtype(WeightFormat format) const noexcept override;
  Buffer allocate(std::size_t bytes) override;
  Buffer allocate_on_host(std::size_t bytes) override;
  void copy_in(void* to, const void* from, std::size_t bytes) override;
  void copy(void* to, const void* from, std::size_t bytes) override;
  void copy_out(void* to, const void* from, std::size_t bytes) override;
  void zero(void* to, std::size_t bytes) override;
  void synchronise() override;
  std::uint64_t mark() override;
  void wait(std::uint64_t point) override;

  std::unique_ptr<Recorder> recorder() override;

  PackedMatrix pack(const MatrixSource& source, WeightFormat format, std::byte* memory) override;
  PackedMatrix packed_at(const std::byte* memory, std::int64_t k, std::int64_t n,
                         WeightFormat format) const override;
  std::size_t packed_nbytes(std::int64_t k, std::int64_t n, WeightFormat format) const override;
  void unpack_column(const PackedMatrix& matrix, std::int64_t n, float* out) const override;

  void linear(const LinearArgs& args) override;
  void embed(const EmbedArgs& args) override;
  void layer_norm(const NormArgs& args) override;
  void softmax(TensorView x) override;
  void log_softmax(TensorView x) override;
  void activate(TensorView x, Activation activation) override;
  void top(const TopArgs& args) override;
  void draw(const DrawArgs& args) override;

  // cuda_training.cpp
  void linear_backward(const LinearBackwardArgs& args) override;
  void layer_norm_backward(const LayerNormBackwardArgs& args) override;
  void activate_backward(const ActivateBackwardArgs& args) override;
  void embed_backward(const EmbedBackwardArgs& args) override;
  void dropout(const DropoutArgs& args) override;
  void cross_entropy(const CrossEntropyArgs& args) override;
  double sum_of_squares(std::span<const float> x) override;
  void adamw(const AdamWArgs& args) override;

  /// Where everything is enqueued. Makes its GPU the current one of this thread, which a launch wants:
  /// another context, or another thread, may have left it elsewhere.
  cudaStream_t stream() const;
  int ordinal() const noexcept { return ordinal_; }
  /// At least `bytes` of `memory`, which grows; what it held is lost. In the order of the ops.
  std::byte* grown(Buffer& memory, std::size_t bytes);
  /// How often grown() has moved memory, or outdate_recordings() was called: what was recorded before is
  /// void.
  std::uint64_t generation() const noexcept { return generation_; }
  /// Memory that recorded ops read now holds something else.
  void outdate_recordings() noexcept { ++generation_; }
  /// While a chain is recorded nothing may be copied in: it would be the same bytes at every repetition.
  void set_recording(bool recording) noexcept { recording_ = recording; }

 private:
  /// x as `dtype` in rows that every product can copy: itself, or normed and copied to `memory`.
  Matrix as_factor(const Matrix& x, DType dtype, const LayerNorm& norm, Buffer& memory);
  void linear_with_matrix(const LinearArgs& args);
  void multiply(const Product& product, DType dtype);
  bool multiply_by_library(Product product);

  struct DestroyStream {
    void operator()(cudaStream_t stream) const noexcept;
  };
  struct DestroyEvent {
    void operator()(cudaEvent_t event) const noexcept;
  };
  using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, DestroyStream>;
  using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, DestroyEvent>;

  int ordinal_;
  Isa isa_;
  std::string description_;
  Stream stream_;  // before the memory that is given back in its order, and that before all who hold some
  std::unique_ptr<DeviceMemory> memory_;
  std::array<Event, kPoints> events_;  // point n is event n mod kPoints
  std::uint64_t points_ = 0;
  std::uint64_t generation_ = 0;
  bool recording_ = false;
  bool reads_host_pages_ = false;  // by the host's page tables, without a copy of the driver's
  Buffer rows_, source_;
  Buffer weight_;  // as bf16: of integers, or of a matrix that is being trained
  Buffer dout_, bias_, transposed_, turned_, sums_, parts_;  // of training
  std::unique_ptr<CublasLt> cublas_lt_;                      // from the first product that it may take
};

}  // namespace inkling::cuda
