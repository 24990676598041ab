#include "engine/cuda/cuda_backend.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "engine/cuda/check.h"
#include "engine/cuda/cublas_lt.h"
#include "engine/cuda/cuda.h"
#include "engine/cuda/cuda_recorder.h"
#include "engine/cuda/linear_quant.h"
#include "engine/cuda/quantise.h"

namespace inkling {
namespace cuda {
namespace {

constexpr int kOldestMajor = 8;  // compute capability 8.0: mma.sync of bf16 and cp.async

constexpr std::size_t round_up(std::size_t n, std::size_t to) {
  return (n + to - 1) / to * to;
}

/// Of weights, and of integers of what they stand for.
DType dtype_of_format(WeightFormat format) noexcept {
  return format == WeightFormat::f32 ? DType::f32 : format == WeightFormat::f16 ? DType::f16 : DType::bf16;
}

bool is_quantised(WeightFormat format) noexcept {
  return group_size(format) != 0;
}
QuantMatrix quantised(const PackedMatrix& w) noexcept {
  return {w.data, w.format, w.k, w.n};
}

void free_host(void*, std::byte* data) noexcept {
  cudaFreeHost(data);
}

std::size_t column_nbytes(std::int64_t k, WeightFormat format) noexcept {
  if (is_quantised(format)) return static_cast<std::size_t>(QuantMatrix(nullptr, format, k, 1).stride);
  return round_up(static_cast<std::size_t>(k) * dtype_size(dtype_of_format(format)), 64);
}

/// The weight as rows of its columns; of integers the bf16 rows that they stand for, which are nowhere.
Matrix columns_of(const PackedMatrix& w) {
  Matrix m;
  if (!is_quantised(w.format)) m.data = const_cast<std::byte*>(w.data);
  m.dtype = dtype_of_format(w.format);
  m.rows = w.n;
  m.columns = w.k;
  m.stride = static_cast<std::int64_t>(round_up(static_cast<std::size_t>(w.k) * dtype_size(m.dtype), 64) /
                                       dtype_size(m.dtype));
  return m;
}

Matrix matrix_of(const TensorView& view) {
  return view.data == nullptr ? Matrix() : Matrix(view);
}

}  // namespace

CudaBackend::CudaBackend(int ordinal, Isa isa) : ordinal_(ordinal), isa_(isa) {
  const std::string reason = cuda_unavailable_reason(ordinal);
  require(reason.empty(), Code::device, [&] { return "device: " + reason; });
  check(cudaSetDevice(ordinal), "cudaSetDevice");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  stream_.reset(stream);
  for (Event& each : events_) {
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
    each.reset(event);
  }
  memory_ = std::make_unique<DeviceMemory>(ordinal, stream);
  int reads_pages = 0;
  check(cudaDeviceGetAttribute(&reads_pages, cudaDevAttrPageableMemoryAccessUsesHostPageTables, ordinal),
        "device attributes");
  reads_host_pages_ = reads_pages != 0;
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
  description_ = "cuda:" + std::to_string(ordinal) + ": " + properties.name + ", compute capability " +
                 std::to_string(properties.major) + "." + std::to_string(properties.minor);
  if (const std::string& no_pool = memory_->no_pool_reason(); !no_pool.empty()) {
    description_ += ", memory by cudaMalloc(), since " + no_pool;
  }
}

CudaBackend::~CudaBackend() {
  cudaStreamSynchronize(stream_.get());
}

void CudaBackend::DestroyStream::operator()(cudaStream_t stream) const noexcept {
  cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
}
void CudaBackend::DestroyEvent::operator()(cudaEvent_t event) const noexcept {
  cudaEventDestroy(event);
}

cudaStream_t CudaBackend::stream() const {
  check(cudaSetDevice(ordinal_), "cudaSetDevice");
  return stream_.get();
}

DType CudaBackend::activation_dtype(WeightFormat format) const noexcept {
  return dtype_of_format(format);
}

Buffer CudaBackend::allocate(std::size_t bytes) {
  require(!recording_, Code::device,
          [] { return std::string("cuda: a recorded chain of ops takes memory"); });
  check(cudaSetDevice(ordinal_), "cudaSetDevice");
  return memory_->allocate(bytes);
}

Buffer CudaBackend::allocate_on_host(std::size_t bytes) {
  void* data = nullptr;
  check(cudaMallocHost(&data, std::max<std::size_t>(bytes, 1)), "cudaMallocHost");
  return {static_cast<std::byte*>(data), bytes, free_host};
}

void CudaBackend::copy_in(void* to, const void* from, std::size_t bytes) {
  require(!recording_, Code::device, [] { return std::string("cuda: a recorded chain of ops copies in"); });
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream()), "copy to the device");
  // The driver has copied pageable memory aside by now, unless the GPU reads it where it lies.
  if (reads_host_pages_) synchronise();
}

void CudaBackend::copy(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream()), "copy on the device");
}

void CudaBackend::copy_out(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream()), "copy from the device");
  synchronise();
}

void CudaBackend::zero(void* to, std::size_t bytes) {
  check(cudaMemsetAsync(to, 0, bytes, stream()), "zero");
}

void CudaBackend::synchronise() {
  check(cudaStreamSynchronize(stream()), "kernels");
}

std::uint64_t CudaBackend::mark() {
  check(cudaEventRecord(events_[++points_ % kPoints].get(), stream()), "cudaEventRecord");
  return points_;
}

void CudaBackend::wait(std::uint64_t point) {
  check(cudaEventSynchronize(events_[point % kPoints].get()), "kernels");
}

std::byte* CudaBackend::grown(Buffer& memory, std::size_t bytes) {
  if (memory.size() < bytes) {
    ++generation_;
    synchronise();
    memory = Buffer();
    memory = allocate(round_up(bytes + bytes / 4, 256));
  }
  return memory.data();
}

std::size_t CudaBackend::packed_nbytes(std::int64_t k, std::int64_t n, WeightFormat format) const {
  return round_up(column_nbytes(k, format) * static_cast<std::size_t>(n), 64);
}

PackedMatrix CudaBackend::packed_at(const std::byte* memory, std::int64_t k, std::int64_t n,
                                    WeightFormat format) const {
  PackedMatrix matrix;
  matrix.format = format;
  matrix.device = Device::cuda;
  matrix.isa = isa_;
  matrix.k = k;
  matrix.n = n;
  matrix.panel = 1;
  matrix.panel_bytes = column_nbytes(k, format);
  matrix.data = memory;
  matrix.bytes = packed_nbytes(k, n, format);
  return matrix;
}

std::unique_ptr<Recorder> CudaBackend::recorder() {
  return std::make_unique<CudaRecorder>(*this);
}

PackedMatrix CudaBackend::pack(const MatrixSource& source, WeightFormat format, std::byte* memory) {
  PackedMatrix matrix = packed_at(memory, source.k, source.n, format);
  if (memory == nullptr) {
    matrix.owned = allocate(matrix.bytes);
    matrix.data = matrix.owned.data();
  }
  MatrixSource on_device = source;
  cudaPointerAttributes place{};
  check(cudaPointerGetAttributes(&place, source.data), "place of a matrix");
  const bool staged = place.type != cudaMemoryTypeDevice;
  if (staged) {
    // The source as it lies in the file, from its first element to its last.
    const auto span =
        static_cast<std::size_t>((source.k - 1) * source.k_stride + (source.n - 1) * source.n_stride + 1) *
        dtype_size(source.dtype);
    on_device.data = grown(source_, span);
    copy_in(source_.data(), source.data, span);
  }
  check(is_quantised(format) ? quantise(on_device, quantised(matrix), stream())
                             : cuda::pack(on_device, columns_of(matrix), stream()),
        "pack");
  if (staged) synchronise();
  return matrix;
}

void CudaBackend::unpack_column(const PackedMatrix& matrix, std::int64_t n, float* out) const {
  const Matrix columns = columns_of(matrix);
  const std::size_t bytes = matrix.panel_bytes;
  std::string raw(bytes, '\0');
  check(cudaMemcpyAsync(raw.data(), matrix.panel_data(n), bytes, cudaMemcpyDeviceToHost, stream()),
        "copy from the device");
  check(cudaStreamSynchronize(stream()), "kernels");
  if (is_quantised(matrix.format)) {
    return unpack_row(quantised(matrix), reinterpret_cast<const std::byte*>(raw.data()), out);
  }
  const auto widen = [&](auto type) {
    using T = decltype(type);
    const auto* from = reinterpret_cast<const T*>(raw.data());
    for (std::int64_t i = 0; i < matrix.k; ++i) out[i] = static_cast<float>(from[i]);
  };
  if (columns.dtype == DType::bf16) return widen(bf16{});
  if (columns.dtype == DType::f16) return widen(f16{});
  widen(float{});
}

void CudaBackend::linear(const LinearArgs& args) {
  if (args.weight == nullptr) return linear_with_matrix(args);
  Linear product;
  product.weight = columns_of(*args.weight);
  product.bias = args.bias;
  product.activation = args.activation;
  product.residual = matrix_of(args.residual);
  product.pre_activation = matrix_of(args.pre_activation);
  product.out = Matrix(args.out);
  product.x = Matrix(args.x);
  product.rows = args.rows.empty() ? nullptr : args.rows.data();
  product.norm = args.norm;
  const bool plain = args.norm.weight == nullptr && args.rows.empty() &&
                     product.x.dtype == product.weight.dtype && in_pieces(product.x);
  const bool integers = is_quantised(args.weight->format);
  if (!plain && !(integers ? norms_inside(product, quantised(*args.weight)) : norms_inside(product))) {
    Matrix rows = product.x;
    rows.rows = product.out.rows;
    const std::size_t row =
        round_up(static_cast<std::size_t>(rows.columns) * dtype_size(product.weight.dtype), 64);
    rows.data = grown(rows_, row * static_cast<std::size_t>(rows.rows));
    rows.dtype = product.weight.dtype;
    rows.stride = static_cast<std::int64_t>(row / dtype_size(rows.dtype));
    check(norm_rows({product.x, product.rows, product.norm, rows, Start::early}, stream()), "layer_norm");
    product.x = rows;
    product.rows = nullptr;
    product.norm = {};
  }
  if (integers) {
    const QuantMatrix weight = quantised(*args.weight);
    std::byte* const workspace = grown(weight_, quantised_workspace(product, weight));
    return check(linear_quantised(product, weight, workspace, stream()), "linear");
  }
  check(cuda::linear(product, stream()), "linear");
}

void CudaBackend::embed(const EmbedArgs& args) {
  Embed e;
  e.token = args.token_table != nullptr ? columns_of(*args.token_table) : Matrix(args.token_rows);
  e.position = Matrix(args.position_table);
  e.out = Matrix(args.out);
  e.ids = args.ids.data();
  e.positions = args.positions.data();
  const bool integers = args.token_table != nullptr && is_quantised(args.token_table->format);
  check(integers ? embed_quantised(e, quantised(*args.token_table), stream()) : cuda::embed(e, stream()),
        "embed");
}

void CudaBackend::layer_norm(const NormArgs& args) {
  const std::int32_t* rows = args.rows.empty() ? nullptr : args.rows.data();
  // The norm may be one that is being trained.
  const Start start = args.norm.weight == nullptr ? Start::early : Start::in_turn;
  check(norm_rows({Matrix(args.x), rows, args.norm, Matrix(args.out), start}, stream()), "layer_norm");
}

void CudaBackend::softmax(TensorView x) {
  check(cuda::softmax(Matrix(x), false, stream()), "softmax");
}
void CudaBackend::log_softmax(TensorView x) {
  check(cuda::softmax(Matrix(x), true, stream()), "log_softmax");
}
void CudaBackend::activate(TensorView x, Activation activation) {
  check(cuda::activate(Matrix(x), activation, stream()), "activate");
}

void CudaBackend::top(const TopArgs& args) {
  check(cuda::top(Matrix(args.x), args.values.shape[1], args.values.as<float>(), args.ids, stream()), "top");
}

void CudaBackend::draw(const DrawArgs& args) {
  check(cuda::draw(Matrix(args.logits), args.settings, args.count, args.ids, args.host_ids, stream()),
        "draw");
}

}  // namespace cuda

std::string cuda_versions() {
  int driver = 0, runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return {};
  cudaRuntimeGetVersion(&runtime);
  const auto text = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  const cuda::CublasLt cublas_lt;
  const std::string& missing = cublas_lt.unavailable_reason();
  return "driver " + text(driver) + ", runtime " + text(runtime) +
         (missing.empty() ? ", cuBLASLt " + cublas_lt.version() : ", without cuBLASLt: " + missing);
}

std::vector<CudaDevice> cuda_devices() {
  int count = 0;
  std::vector<CudaDevice> devices;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return devices;
  int current = 0;
  cudaGetDevice(&current);
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp p{};
    if (cudaGetDeviceProperties(&p, i) != cudaSuccess) continue;
    CudaDevice device{i, p.name, p.major, p.minor, p.multiProcessorCount, p.totalGlobalMem, 0};
    std::size_t total = 0;
    if (cudaSetDevice(i) == cudaSuccess) cudaMemGetInfo(&device.free_memory, &total);
    devices.push_back(device);
  }
  cudaSetDevice(current);
  return devices;
}

std::string cuda_unavailable_reason(int ordinal) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    return std::string("the CUDA runtime says: ") + cudaGetErrorString(error);
  }
  if (ordinal >= count) {
    return "GPU " + std::to_string(ordinal) + " was asked for, and there " +
           (count == 1 ? "is 1" : "are " + std::to_string(count));
  }
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal);
  if (major < cuda::kOldestMajor) {
    return "GPU " + std::to_string(ordinal) + " has compute capability " + std::to_string(major) + "." +
           std::to_string(minor) + ", at least 8.0 is needed";
  }
  return {};
}

std::string_view cuda_hopper_refusal(int ordinal) noexcept {
#if defined(INKLING_SM90A)
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal);
  return major == 9 && minor == 0 ? "" : "it needs compute capability 9.0";
#else
  return "this build has no code for sm_90a";
#endif
}

std::unique_ptr<Backend> make_cuda_backend(int ordinal, Isa isa) {
  return std::make_unique<cuda::CudaBackend>(ordinal, isa);
}

}  // namespace inkling
