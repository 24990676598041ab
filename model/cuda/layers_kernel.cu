// A step of decoding from ids to logits by one kernel that stays: batch 1 is bound by latency, and 64
// launches cost 4 µs each.
//
//   x = embedding;  per layer   qkv = ln1(x)·W + b | attention | x += proj | mid = gelu(fc(ln2(x))) |
//   x += fcproj(mid);  logits = lnf(x)·head
//
// One block a processor, eight of them a cluster. Eight columns of a product are a tile of one block, and a
// warp takes a run of k of all of the block's tiles; their weights have a region of shared memory per
// product. As soon as a region has been read, the copy engine is asked for the same product's weights of the
// next layer, and after the last one for the head's: memory streams all the time and is never waited for.
// Rows go from block to block in tagged words (tagged.cuh), four times a layer, so there is no barrier of the
// grid: a product begins when its input is there. A head is a cluster's: its blocks make the new token's
// query, key and value, attend to a chunk of 64 keys a warp, K and V of which are in shared memory before the
// query is made, and fold eight columns each, all through each other's shared memory.
//
// Why nothing is overwritten too early, though every buffer is there once: a word of layer l + 1 is written
// by a block that has seen all rows of the step before it, and so on back to the rows that the word is to
// replace, whose readers had to be done. Bits: those of linear_few.cu, and of decode_chunk.cuh by the same
// arithmetic for one row. Oracle: tests/model/cuda.cpp. Cost: 2 bytes a weight. Measured:
// engine/cuda/README.md.
#include <algorithm>
#include <utility>

#include "engine/cuda/launch.cuh"
#include "model/cuda/layers_attention.cuh"
#include "model/cuda/layers_runs.cuh"
#include "model/cuda/layers_sums.cuh"

namespace inkling::cuda {
namespace {

template <class T, int kRows>
__global__ void __launch_bounds__(kThreads, 1)
    layers_kernel(const __grid_constant__ FusedLayers a, const __grid_constant__ LayersPlan given) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ WeightBarriers barriers;
  __shared__ HeadExchange<T, kRows> exchange;
  // The arguments are more than the constant cache holds, and the plan is read at every turn.
  __shared__ BlockPlan plan;
  constexpr int kWords = sizeof(LayersPlan) / sizeof(int);
  static_assert(kWords <= kThreads);
  if (threadIdx.x < kWords) {
    reinterpret_cast<int*>(&plan)[threadIdx.x] = reinterpret_cast<const int*>(&given)[threadIdx.x];
  }
  __syncthreads();
  if (threadIdx.x < kProducts) plan.share_out(static_cast<int>(threadIdx.x));
  LayersHead* const head = static_cast<LayersHead*>(a.workspace);
  const std::uint32_t time = head->time;
  if (threadIdx.x == 0) {
    barriers.init();
    barrier_init(&exchange.made_here, 1);
    barrier_init(&exchange.chunks_here, 1);
    barrier_init_fence();
  }
  // Where there is no bias or shift there are zeros.
  for (int i = threadIdx.x; i < given.zeroed / 16; i += kThreads)
    reinterpret_cast<uint4*>(memory + given.weights)[i] = make_uint4(0, 0, 0, 0);
  fence_async();
  __syncthreads();
  cluster_sync();
  const int warp = threadIdx.x / kWarp;
  if (warp < kRuns) {
    LayerRuns<T, kRows>(a, plan, memory, barriers, time).run();
  } else if (warp == kRuns) {
    LayerSums<T, kRows>(a, plan, memory, barriers, exchange, time).run();
  } else if (warp < kThreads / kWarp - 1) {
    LayerAttention<T, kRows>(a, plan, memory, exchange, time).run();
  } else {
    LayerWeights<T>(a, plan, memory, barriers).run();
  }
  // The last block to leave moves time on: by then all have read it.
  cluster_sync();
  if (threadIdx.x == 0 && atomicAdd(&head->leaving, 1) == gridDim.x - 1) {
    head->leaving = 0;
    head->time = time + static_cast<std::uint32_t>(a.layers);
  }
#else
  __trap();
#endif
}

LayersPlan plan_of(const FusedLayers& a, int blocks) {
  LayersPlan plan{};
  using Few = FewTile<__half, kTileColumns>;
  const int rows = a.rows, width = kFusedWidth;
  int pairs = 0;
  const auto place = [&](int n) { return std::exchange(pairs, pairs + n); };
  const int before = place(rows * width / 2), after = place(rows * width / 2);  // attention
  const int attended = place(rows * width / 4), inner = place(rows * a.inner / 4);
  plan.pairs = pairs;

  int bytes = 0;
  const auto take = [&](int n) { return std::exchange(bytes, bytes + (n + 127) / 128 * 128); };
  constexpr int kSize = 2, kFloat = 4;  // bytes of an element
  // Queries, keys and values first, then the MLP's first: three tiles each, as a slot of the head is.
  const int order[] = {kQkv, kFc, kProj, kFcProj}, k[] = {width, width, width, a.inner},
            n[] = {3 * width, width, a.inner, width};
  const auto most = [&](int product) {
    return product == kQkv ? 3 : (n[product] / kTileColumns + blocks - 1) / blocks;
  };
  for (const int product : order) {
    ProductShape& shape = plan.product[product];
    shape.k = k[product], shape.n = n[product];
    shape.weights = take(most(product) * kTileColumns * Few::stride(shape.k) * kSize);
    for (int slot = 0; slot < kSlots; ++slot) {
      if (shape.weights < slot_offset<__half>(slot + 1) && bytes > slot_offset<__half>(slot))
        plan.covers[slot] |= 1u << product;
    }
  }
  bytes = std::max(bytes, slot_offset<__half>(kSlots));
  plan.weights = bytes;
  for (const int product : order) {
    ProductShape& shape = plan.product[product];
    shape.bias = take(kMostFusedTiles * kTileColumns * kFloat);
    if (reads_stream(product)) shape.norm = take(2 * width * kFloat);
  }
  plan.zeroed = bytes - plan.weights;
  plan.product[kQkv].from = before;
  plan.product[kProj].from = attended, plan.product[kProj].to = after;
  plan.product[kFc].from = after, plan.product[kFc].to = inner;
  plan.product[kFcProj].from = inner, plan.product[kFcProj].to = before;
  // Blocks without a head are the first to get a tile of the narrow products.
  plan.product[kProj].first = plan.product[kFcProj].first = kHeads * kHeadBlocks % blocks;
  plan.stream = take(rows * width * kFloat);
  plan.run = (std::max(width, a.inner) / Few::kDepth + kRuns - 1) / kRuns * Few::kDepth + Few::kPer;
  plan.x = take(kRuns * rows * plan.run * kSize);
  plan.sums = take(2 * kSums * kFloat);
  plan.chunks = take(kAttentionWarps * DecodeTile<__half, kFusedDim>::kChunk * kSize);
  plan.bytes = bytes;
  return plan;
}

/// Calls body(kernel) with the kernel for the dtype and the rows.
template <class Body>
auto with_kernel(const FusedLayers& args, const Body& body) {
  const auto with_rows = [&](auto type) {
    using T = decltype(type);
    return args.rows == 1 ? body(layers_kernel<T, 1>) : body(layers_kernel<T, 2>);
  };
  return args.dtype == DType::bf16 ? with_rows(__nv_bfloat16{}) : with_rows(__half{});
}

/// A launch in which blocks wait for each other: all are resident, or it fails.
struct Together {
  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t config{};

  Together(int blocks, std::size_t bytes, cudaStream_t stream) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {kHeadBlocks, 1, 1};
    attributes[1].id = cudaLaunchAttributeCooperative;
    attributes[1].val.cooperative = 1;
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 2;
  }
};

}  // namespace

std::size_t fused_layers_workspace(const FusedLayers& args) {
  return sizeof(LayersHead) + static_cast<std::size_t>(plan_of(args, 1).pairs) * sizeof(TaggedPair);
}

FusedBlocks fused_layers_blocks(const FusedLayers& args) {
  int device = 0, shared = 0, processors = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return {0, "the device does not answer"};
  }
  int blocks = processors / kHeadBlocks * kHeadBlocks;
  const auto bytes = [&] { return static_cast<std::size_t>(plan_of(args, blocks).bytes); };
  const auto fits = [&] { return bytes() + 4096 <= static_cast<std::size_t>(shared); };
  constexpr const char* kTooFew = "fewer clusters of 8 processors than heads";
  constexpr const char* kTooLarge = "weights of a layer and rows beyond shared memory";
  if (blocks < kHeads * kHeadBlocks) return {0, kTooFew};
  if (!fits()) return {0, kTooLarge};
  const int clusters = with_kernel(args, [&](auto* kernel) {
    bool waits = false;
    int count = 0;
    Together launch(blocks, bytes(), nullptr);
    launch.config.numAttrs = 1;
    return prepare(kernel, bytes(), waits) == cudaSuccess &&
                   cudaOccupancyMaxActiveClusters(&count, kernel, &launch.config) == cudaSuccess
               ? count
               : 0;
  });
  cudaGetLastError();  // forgotten: a refusal is no failure
  blocks = std::min(blocks, clusters * kHeadBlocks);
  if (blocks < kHeads * kHeadBlocks) return {0, kTooFew};
  if (!fits()) return {0, kTooLarge};  // fewer blocks may have more each
  if (args.inner > blocks * kMostFusedTiles * kTileColumns) return {0, "more than 32 columns a processor"};
  return {blocks, ""};
}

cudaError_t run_layers(const FusedLayers& args, int blocks, cudaStream_t stream) {
  const LayersPlan plan = plan_of(args, blocks);
  return with_kernel(args, [&](auto* kernel) {
    bool waits = false;
    const auto bytes = static_cast<std::size_t>(plan.bytes);
    if (const cudaError_t error = prepare(kernel, bytes, waits); error != cudaSuccess) return error;
    const Together launch(blocks, bytes, stream);
    return cudaLaunchKernelEx(&launch.config, kernel, args, plan);
  });
}

}  // namespace inkling::cuda
