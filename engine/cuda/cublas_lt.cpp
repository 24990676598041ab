#include "engine/cuda/cublas_lt.h"

#include <dlfcn.h>

#include "engine/base/error.h"

namespace inkling::cuda {
namespace {

// What every operand is promised to be a multiple of. Longer for some of them would make the choice of an
// algorithm, and so bits, depend on addresses.
constexpr std::uint32_t kAlignment = 16;
constexpr std::int64_t kExtent = 8;  // and each of M, N and K, in elements
// A result of so many elements is made in one pass over k: its tiles fill the processors. Of the weights'
// gradients of GPT-2 124M those of the MLP, 106 µs on an H200 beside 113 to 117 with k cut in two, which is
// the library's first choice.
constexpr std::int64_t kOnePass = std::int64_t{1} << 21;

bool is_aligned(const void* at) {
  return reinterpret_cast<std::uintptr_t>(at) % kAlignment == 0;
}
bool in_lines(const Matrix& m) {
  return is_aligned(m.data) && m.stride * static_cast<std::int64_t>(dtype_size(m.dtype)) % kAlignment == 0;
}

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

bool find_all(void* library, CublasLtFunctions& api) {
  return find(library, "cublasLtGetVersion", api.version) &&
         find(library, "cublasLtGetStatusName", api.status_name) &&
         find(library, "cublasLtCreate", api.create) && find(library, "cublasLtDestroy", api.destroy) &&
         find(library, "cublasLtMatmulDescCreate", api.create_operation) &&
         find(library, "cublasLtMatmulDescDestroy", api.destroy_operation) &&
         find(library, "cublasLtMatmulDescSetAttribute", api.set_operation) &&
         find(library, "cublasLtMatrixLayoutCreate", api.create_layout) &&
         find(library, "cublasLtMatrixLayoutDestroy", api.destroy_layout) &&
         find(library, "cublasLtMatmulPreferenceCreate", api.create_preference) &&
         find(library, "cublasLtMatmulPreferenceDestroy", api.destroy_preference) &&
         find(library, "cublasLtMatmulPreferenceSetAttribute", api.set_preference) &&
         find(library, "cublasLtMatmulAlgoGetHeuristic", api.choose) &&
         find(library, "cublasLtMatmul", api.multiply);
}

}  // namespace

void CublasLt::Close::operator()(void* library) const noexcept {
  dlclose(library);
}

CublasLt::CublasLt() : reason_(open()) {}

std::string CublasLt::open() {
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
    // The driver keeps hold of a library's kernels, so its code stays where it is once it was there.
    library_.reset(dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE));
    if (library_ != nullptr) break;
  }
  if (library_ == nullptr) return "libcublasLt.so.13 and libcublasLt.so.12 were not found";
  if (!find_all(library_.get(), api_)) {
    api_ = {};
    return "libcublasLt lacks functions that are wanted";
  }
  cublasLtHandle_t handle = nullptr;
  if (const cublasStatus_t status = api_.create(&handle); status != CUBLAS_STATUS_SUCCESS) {
    return std::string("cublasLtCreate: ") + api_.status_name(status);
  }
  handle_ = {handle, api_.destroy};
  return {};
}

std::string CublasLt::version() const {
  if (api_.version == nullptr) return {};
  const std::size_t v = api_.version();  // 130100
  return std::to_string(v / 10000) + "." + std::to_string(v / 100 % 100) + "." + std::to_string(v % 100);
}

void CublasLt::check(cublasStatus_t status, const char* what) const {
  require(status == CUBLAS_STATUS_SUCCESS,
          status == CUBLAS_STATUS_ALLOC_FAILED ? Code::out_of_memory : Code::device,
          [&] { return std::string("cuda: ") + what + ": " + api_.status_name(status); });
}

bool CublasLt::takes(const Product& p) noexcept {
  const bool wide = p.out.dtype == DType::f32;
  const bool operands =
      p.a.dtype == DType::bf16 && p.b.dtype == DType::bf16 && in_lines(p.a) && in_lines(p.b);
  const bool eights = p.out.rows % kExtent == 0 && p.out.columns % kExtent == 0 &&
                      (p.a_by_k ? p.a.rows : p.a.columns) % kExtent == 0;
  const bool result = (wide || p.out.dtype == DType::bf16) && in_lines(p.out);
  const auto beside = [&](const Matrix& m) { return m.dtype == DType::bf16 && !wide && in_lines(m); };
  const bool plain = p.activation == Activation::none && p.pre_activation.data == nullptr &&
                     (p.bias == nullptr || !wide || is_aligned(p.bias)) &&
                     (p.residual.data == nullptr || (wide && in_lines(p.residual)));
  const bool gelu = p.activation == Activation::gelu_tanh && p.residual.data == nullptr;
  const bool epilogue =
      p.slope_at.data != nullptr
          ? gelu && beside(p.slope_at) && p.bias == nullptr && p.pre_activation.data == nullptr
          : plain || (gelu && p.pre_activation.data != nullptr && beside(p.pre_activation));
  return eights && operands && result && epilogue;
}

/// What follows the sums. GELU is the tanh form (held by tests/engine/cuda_training.cpp).
cublasLtEpilogue_t epilogue_of(const Product& p) {
  if (p.slope_at.data != nullptr) return CUBLASLT_EPILOGUE_DGELU;
  if (p.pre_activation.data != nullptr) {
    return p.bias != nullptr ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
  }
  return p.bias != nullptr ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}
/// What it reads or writes beside the result, or nothing.
const Matrix& beside_result(const Product& p) {
  return p.slope_at.data != nullptr ? p.slope_at : p.pre_activation;
}

/// The library counts columns first: what lies in memory as rows are its columns.
CublasLt::Owned<cublasLtMatrixLayout_t> CublasLt::layout(const Matrix& m) const {
  cublasLtMatrixLayout_t made = nullptr;
  check(
      api_.create_layout(&made, m.dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF,
                         static_cast<std::uint64_t>(m.columns), static_cast<std::uint64_t>(m.rows), m.stride),
      "cublasLtMatrixLayoutCreate");
  return {made, api_.destroy_layout};
}

/// outᵀ = bᵀ · aᵀ, so b is its first operand.
CublasLt::Plan CublasLt::planned(const Product& p) const {
  cublasLtMatmulDesc_t made = nullptr;
  check(api_.create_operation(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  Plan plan{{made, api_.destroy_operation},
            layout(p.a),
            layout(p.b),
            layout(p.residual.data != nullptr ? p.residual : p.out),
            layout(p.out)};
  const auto set = [&](cublasLtMatmulDescAttributes_t name, const auto& value) {
    check(api_.set_operation(made, name, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, p.b_by_k ? CUBLAS_OP_N : CUBLAS_OP_T);
  set(CUBLASLT_MATMUL_DESC_TRANSB, p.a_by_k ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(p));
  // Of an address the choice reads the alignment alone: the least that any has.
  const auto* const somewhere = reinterpret_cast<const void*>(std::uintptr_t{kAlignment});
  if (p.bias != nullptr) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, somewhere);
  if (const Matrix& beside = beside_result(p); beside.data != nullptr) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, somewhere);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, beside.stride);
  }

  cublasLtMatmulPreference_t chosen = nullptr;
  check(api_.create_preference(&chosen), "cublasLtMatmulPreferenceCreate");
  const Owned<cublasLtMatmulPreference_t> preference(chosen, api_.destroy_preference);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
    check(api_.set_preference(chosen, name, &value, sizeof value), "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{kProductWorkspace});
  // Runs of k are added in f32 by a kernel of their own; in one pass is always allowed.
  const bool one_pass = p.out.rows * p.out.columns >= kOnePass;
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<std::uint32_t>(one_pass ? CUBLASLT_REDUCTION_SCHEME_NONE
                                             : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  for (const auto operand :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    prefer(operand, kAlignment);
  }
  cublasLtMatmulHeuristicResult_t best{};
  int count = 0;
  const cublasStatus_t status = api_.choose(handle_.get(), made, plan.b.get(), plan.a.get(), plan.c.get(),
                                            plan.out.get(), chosen, 1, &best, &count);
  plan.found = status == CUBLAS_STATUS_SUCCESS && count > 0 && best.state == CUBLAS_STATUS_SUCCESS;
  plan.algorithm = best.algo;
  return plan;
}

bool CublasLt::multiply(const Product& p, void* workspace, cudaStream_t stream) {
  if (handle_ == nullptr || !takes(p)) return false;
  const void* const bias = p.out.dtype == DType::f32 ? p.bias : p.rounded_bias;
  const Matrix& c = p.residual.data != nullptr ? p.residual : p.out;
  const Shape shape{p.out.rows,
                    p.out.columns,
                    p.a_by_k ? p.a.rows : p.a.columns,
                    p.a.stride,
                    p.b.stride,
                    c.stride,
                    p.out.stride,
                    p.a_by_k ? 1 : 0,
                    p.b_by_k ? 1 : 0,
                    epilogue_of(p),
                    beside_result(p).stride,
                    static_cast<std::int64_t>(p.out.dtype)};
  auto at = plans_.find(shape);
  if (at == plans_.end()) at = plans_.emplace(shape, planned(p)).first;
  const Plan& plan = at->second;
  if (!plan.found) return false;
  const auto point = [&](cublasLtMatmulDescAttributes_t name, const void* data) {
    if (data == nullptr) return;
    check(api_.set_operation(plan.operation.get(), name, &data, sizeof data),
          "cublasLtMatmulDescSetAttribute");
  };
  point(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias != nullptr ? bias : nullptr);
  point(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, beside_result(p).data);
  const float alpha = 1.0f, beta = p.residual.data != nullptr ? 1.0f : 0.0f;
  const bool in_place = c.data == p.out.data;
  check(api_.multiply(handle_.get(), plan.operation.get(), &alpha, p.b.data, plan.b.get(), p.a.data,
                      plan.a.get(), &beta, c.data, in_place ? plan.out.get() : plan.c.get(), p.out.data,
                      plan.out.get(), &plan.algorithm, workspace, kProductWorkspace, stream),
        "cublasLtMatmul");
  return true;
}

}  // namespace inkling::cuda
