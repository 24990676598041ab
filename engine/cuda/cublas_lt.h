// Products of training by cuBLASLt, NVIDIA's library of matrix products, where the machine has it.
//
// It is opened at run time, so a program starts without it and trains by our own kernel (product.h). takes()
// is the rule of what goes to the library: bf16 operands in whole 16-byte lines, M, N and K multiples of 8,
// and an epilogue that it has. Lines alone were not enough, it seems: with the head's 50257 columns a step of
// GPT-2 took 57 ms on an H200, 38 by our kernel, while the layers' products ran at 740 TFLOP/s, ours at 550.
// So training gives the head 50264 (model/train/parameters.h), and an odd extent is left to our kernel.
//
// Its bias and its C have the type of the result: 13.1 has no algorithm for an f32 bias beside a result in
// bf16. There the bias is rounded to bf16 as well, half a unit of 2⁻⁸ of a number that is small beside what
// the result itself loses; adding it afterwards in f32 would be a pass over the result. GELU, both ways, is
// the tanh form. Sums of bias gradients are not the library's: BGRADA made the weights' gradients 14 to 40 µs
// longer, ours take 7 to 27; DGELU_BGRAD took 448 µs where DGELU takes 149.
//
// Bits: the algorithm is the library's first choice for a shape, held for the life of this object. It sees
// shapes and not addresses, and none that adds in the order of arrival, so a run has the same bits twice,
// with one version of the library.
#pragma once

#include <cublasLt.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <type_traits>

#include "engine/cuda/product.h"

namespace inkling::cuda {

/// The library's functions that are called here.
struct CublasLtFunctions {
  decltype(&cublasLtGetVersion) version = nullptr;
  decltype(&cublasLtGetStatusName) status_name = nullptr;
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtMatmulDescCreate) create_operation = nullptr;
  decltype(&cublasLtMatmulDescDestroy) destroy_operation = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) set_operation = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) create_layout = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) choose = nullptr;
  decltype(&cublasLtMatmul) multiply = nullptr;
};

/// One context's use of the library on the GPU that was current when it was made. Not thread-safe.
class CublasLt {
 public:
  /// Never throws for want of the library: unavailable_reason() says what is missing, and nothing is taken.
  CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  /// "" where products can be computed, else why not.
  const std::string& unavailable_reason() const noexcept { return reason_; }
  /// "13.1.0"; "" without the library.
  std::string version() const;

  /// Whether a library that is there has the operands and the epilogue of `product`, once its bias is rounded
  /// where the result is.
  static bool takes(const Product& product) noexcept;
  /// Enqueues `product` on `stream`, or returns false and does nothing: not one that it takes, no library, or
  /// no algorithm for this shape. `workspace` of kProductWorkspace bytes is overwritten. Throws
  /// Error{device}.
  bool multiply(const Product& product, void* workspace, cudaStream_t stream);

 private:
  template <class Handle>
  using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, cublasStatus_t (*)(Handle)>;
  struct Close {
    void operator()(void* library) const noexcept;
  };

  /// What the choice of an algorithm depends on: extents, strides, which way operands lie, epilogue, dtype.
  using Shape = std::array<std::int64_t, 12>;
  struct Plan {
    Owned<cublasLtMatmulDesc_t> operation;
    Owned<cublasLtMatrixLayout_t> a, b, c, out;
    cublasLtMatmulAlgo_t algorithm{};
    bool found = false;
  };

  std::string open();  // why it cannot
  Plan planned(const Product& product) const;
  Owned<cublasLtMatrixLayout_t> layout(const Matrix& m) const;
  void check(cublasStatus_t status, const char* what) const;

  std::unique_ptr<void, Close> library_;
  CublasLtFunctions api_;
  Owned<cublasLtHandle_t> handle_{nullptr, nullptr};
  std::string reason_;
  std::map<Shape, Plan> plans_;
};

}  // namespace inkling::cuda
