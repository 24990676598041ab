// A step of decoding through all layers by one kernel that stays: batch 1 is bound by latency, and 62
// launches cost 4 µs each.
//
//   per layer   qkv = ln1(x)·W + b | attention | x += proj | mid = gelu(fc(ln2(x))) | x += fcproj(mid)
//
// One block a processor. Eight columns of a product are a tile of one block, and four warps take the runs of
// k of a tile; a block has at most three tiles of a product, and their weights have a region of shared memory
// per product. As soon as a region has been read, the copy engine is asked for the same product's weights of
// the next layer: memory streams all the time and is never waited for. Rows go from block to block in tagged
// words (tagged.cuh), so there is no barrier of the grid: a product begins when its input is there. Attention
// has warps of its own: a unit is one (sequence, head, chunk of 64 keys), K and V of which are in shared
// memory before the query is made; the chunks of a head are folded by one warp.
//
// Why nothing is overwritten too early, though every buffer is there once: a word of layer l + 1 is written
// by a block that has seen all rows of the step before it, and so on back to the rows that the word is to
// replace, whose readers had to be done. Bits: those of linear_few.cu, norm.cuh and decode_chunk.cuh, whose
// code this is. Oracle: tests/model/cuda.cpp. Cost: 2 bytes a weight. Measured: engine/cuda/README.md.
#include <algorithm>
#include <utility>

#include "engine/cuda/launch.cuh"
#include "model/cuda/layers_attention.cuh"
#include "model/cuda/layers_products.cuh"

namespace inkling::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    layers_kernel(const __grid_constant__ FusedLayers a, const __grid_constant__ LayersPlan given) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ std::uint64_t full[kProducts], empty[kProducts];
  __shared__ std::uint32_t time;
  // The arguments are more than the constant cache holds, and the plan is read at every turn.
  __shared__ LayersPlan plan;
  constexpr int kWords = sizeof(LayersPlan) / sizeof(int);
  static_assert(kWords <= kThreads);
  if (threadIdx.x < kWords) {
    reinterpret_cast<int*>(&plan)[threadIdx.x] = reinterpret_cast<const int*>(&given)[threadIdx.x];
  }
  LayersHead* const head = static_cast<LayersHead*>(a.workspace);
  if (threadIdx.x == 0) {
    time = head->time;
    for (int i = 0; i < kProducts; ++i) barrier_init(full + i, 1), barrier_init(empty + i, 1);
    barrier_init_fence();
  }
  // Where there is no bias or shift there are zeros.
  for (int i = threadIdx.x; i < given.stream / 4; i += kThreads)
    reinterpret_cast<std::uint32_t*>(memory)[i] = 0;
  fence_async();
  __syncthreads();
  const LayerProducts<T> products(a, plan, memory, full, empty, time);
  if (threadIdx.x < kProductThreads) {
    products.run();
  } else if (threadIdx.x < kProductThreads + kAttentionThreads) {
    LayerAttention<T>(a, plan, memory, time).run();
  } else {
    products.ask_all();
  }
  // The last block to leave moves time on: by then all have read it.
  __syncthreads();
  if (threadIdx.x == 0 && atomicAdd(&head->leaving, 1) == gridDim.x - 1) {
    head->leaving = 0;
    head->time = time + static_cast<std::uint32_t>(a.layers);
  }
#else
  __trap();
#endif
}

LayersPlan plan_of(const FusedLayers& a, int processors) {
  LayersPlan plan;
  const int rows = a.rows, width = kFusedWidth;
  int pairs = 0;
  const auto place = [&](int n) { return std::exchange(pairs, pairs + n); };
  const int before = place(rows * width / 2), after = place(rows * width / 2);  // attention
  plan.attended = place(rows * width / 4);
  const int inner = place(rows * a.inner / 4);
  plan.qkv = place(rows * 3 * width / 4);
  plan.partials = place(rows * kHeads * a.chunks * kPartialPairs);
  plan.pairs = pairs;

  int bytes = 0;
  const auto take = [&](int n) { return std::exchange(bytes, bytes + (n + 127) / 128 * 128); };
  constexpr int kSize = 2, kFloat = 4;  // bytes of an element
  const auto product = [&](int k, int n, bool normed) {
    const int most = (n / kTileColumns + processors - 1) / processors * kTileColumns;
    ProductShape shape{};
    shape.k = k, shape.n = n;
    shape.weights = take(most * FewTile<__half, kTileColumns>::stride(k) * kSize);
    shape.bias = take(most * kFloat);
    if (normed) shape.norm = take(2 * width * kFloat);
    shape.row = normed ? width / 2 : k / 4;
    return shape;
  };
  ProductShape qkv = product(width, 3 * width, true), proj = product(width, width, false),
               fc = product(width, a.inner, true), fcproj = product(a.inner, width, false);
  qkv.from = before, qkv.to = plan.qkv;
  proj.from = plan.attended, proj.to = after, proj.residual = before;
  fc.from = after, fc.to = inner;
  fcproj.from = inner, fcproj.to = before, fcproj.residual = after;
  // Blocks with one tile of queries, keys and values more than others are the last to get one of the narrow
  // products.
  proj.first = fcproj.first = qkv.n / kTileColumns % processors;
  const ProductShape shapes[] = {qkv, proj, fc, fcproj};
  std::copy(shapes, shapes + kProducts, plan.product);
  plan.stream = take(rows * width * kFloat);
  plan.x = take(rows * FewTile<__half, kTileColumns>::stride(std::max(width, a.inner)) * kSize);
  plan.sums = take(kProductWarps * 64 * kFloat);
  plan.chunks = take(kAttentionWarps * DecodeTile<__half, kFusedDim>::kBytes);
  plan.bytes = bytes;
  return plan;
}

/// Calls body(kernel) with the kernel for the dtype.
template <class Body>
auto with_kernel(DType dtype, const Body& body) {
  return dtype == DType::bf16 ? body(layers_kernel<__nv_bfloat16>) : body(layers_kernel<__half>);
}

}  // namespace

std::size_t fused_layers_workspace(const FusedLayers& args) {
  return sizeof(LayersHead) + static_cast<std::size_t>(plan_of(args, 1).pairs) * sizeof(TaggedPair);
}

const char* fused_layers_device_refusal(const FusedLayers& args, int processors) {
  if (std::max(3 * kFusedWidth, args.inner) > processors * kMostFusedTiles * kTileColumns)
    return "more than 24 columns a processor";
  const LayersPlan plan = plan_of(args, processors);
  int device = 0, shared = 0, cooperates = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&cooperates, cudaDevAttrCooperativeLaunch, device) != cudaSuccess) {
    return "the device does not answer";
  }
  if (plan.bytes + 1024 > shared) return "weights of a layer and rows beyond shared memory";
  if (cooperates == 0) return "no cooperative launches";
  const bool resident = with_kernel(args.attention.dtype, [&](auto* kernel) {
    bool waits = false;
    int blocks = 0;  // of a processor
    const auto bytes = static_cast<std::size_t>(plan.bytes);
    return prepare(kernel, bytes, waits) == cudaSuccess &&
           cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, bytes) == cudaSuccess &&
           blocks >= 1;
  });
  if (resident) return "";
  cudaGetLastError();  // forgotten: a refusal is no failure
  return "a processor without room for a block";
}

cudaError_t run_layers(const FusedLayers& args, int processors, cudaStream_t stream) {
  const LayersPlan plan = plan_of(args, processors);
  return with_kernel(args.attention.dtype, [&](auto* kernel) {
    bool waits = false;
    const auto bytes = static_cast<std::size_t>(plan.bytes);
    if (const cudaError_t error = prepare(kernel, bytes, waits); error != cudaSuccess) return error;
    // Blocks wait for each other: all are resident, or the launch fails.
    cudaLaunchAttribute together{};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(processors));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = &together;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, args, plan);
  });
}

}  // namespace inkling::cuda
