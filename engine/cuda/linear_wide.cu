// Linear layers of up to 64 rows and very many columns (a head over a vocabulary): the time is that of
// reading the weight once.
//
// One block a processor stays for all its tiles of 64 columns, and has all of x in shared memory. One warp
// brings the weight in steps of 64 of k through a ring that is all the rest of shared memory, 100 KiB with K
// = 768: its first turn before the wait for the kernel that makes x (chain.cuh), and the next tile's while a
// warpgroup writes the last one's sums. That warpgroup takes the four runs of k one after the other
// (linear_tile.cuh), and writes sums as its registers hold them, 32 bytes of a row at a time. Cost: 2·N·K
// bytes of the weight, 4·M·N written; GPT-2's head 77 and 13 MB with 64 rows. Oracle: tests/engine/cuda.cpp.
// Measured: engine/cuda/README.md.
#include "engine/cuda/linear_wide.h"

#include "engine/cuda/cuda.h"
#include "engine/cuda/linear_tile.cuh"
#include "engine/cuda/tensor_map.cuh"
#include "engine/cuda/wgmma.cuh"

namespace inkling::cuda {
namespace {

constexpr int kRows = 64, kColumns = 64, kDepth = 64, kRowBytes = 128, kBox = 64 * kRowBytes;
constexpr int kMultiplying = 128, kThreads = kMultiplying + kWarp;
constexpr int kMostSteps = 21, kMostStages = 27, kFewestStages = 6;

struct WidePlan {
  int steps, stages, tiles;
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    wide_kernel(const Matrix out, const WidePlan plan, const __grid_constant__ CUtensorMap x_map,
                const __grid_constant__ CUtensorMap w_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ std::uint64_t x_full[kMostSteps], full[kMostStages], empty[kMostStages];
  unsigned char* const ring = memory + plan.steps * kBox;
  if (threadIdx.x == 0) {
    for (int i = 0; i < plan.steps; ++i) barrier_init(x_full + i, 1);
    for (int i = 0; i < plan.stages; ++i)
      barrier_init(full + i, 1), barrier_init(empty + i, kMultiplying / kWarp);
    barrier_init_fence();
    fence_async();
  }
  __syncthreads();
  start_next();
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / kWarp, 0), lane = threadIdx.x % kWarp;
  const int blocks = static_cast<int>(gridDim.x), first = static_cast<int>(blockIdx.x);

  if (warp == kMultiplying / kWarp) {
    if (lane != 0) return;
    const int count = (plan.tiles - first + blocks - 1) / blocks * plan.steps,
              early = min(count, plan.stages);
    int stage = 0, turn = 0, step = 0, tile = first;
    const auto bring = [&] {
      barrier_expect(full + stage, kBox);
      copy_box(ring + stage * kBox, &w_map, full + stage, step * kDepth, 0, tile * kColumns);
      if (++stage == plan.stages) stage = 0, turn ^= 1;
      if (++step == plan.steps) step = 0, tile += blocks;
    };
    for (int i = 0; i < early; ++i) bring();
    wait_for_inputs();
    for (int i = 0; i < plan.steps; ++i) {
      barrier_expect(x_full + i, kBox);
      copy_box(memory + i * kBox, &x_map, x_full + i, i * kDepth, 0, 0);
    }
    for (int i = early; i < count; ++i) {
      barrier_wait(empty + stage, turn ^ 1);
      bring();
    }
    return;
  }

  wait_for_inputs();  // what is written may still be read by the kernel before
  const auto release = [&](int stage) {
    if (lane == 0) barrier_arrive(empty + stage);
  };
  int stage = 0, turn = 0;
  for (int tile = first; tile < plan.tiles; tile += blocks) {
    float c[kColumns / 2] = {}, total[kColumns / 2] = {};
    for (int r = 0; r < kRuns; ++r) {
      const Run run = run_of(r, plan.steps);
      if (run.begin == run.end) continue;
      hold(c);
      int last = 0;
      for (int step = run.begin; step < run.end; ++step) {
        barrier_wait(x_full + step, 0);
        barrier_wait(full + stage, turn);
        const std::uint32_t x = matrix_low(memory + step * kBox, 16), w = matrix_low(ring + stage * kBox, 16);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kDepth / 16; ++k) {
          wgmma<T, kRowBytes, 0>(c, x + 2 * k, w + 2 * k, step != run.begin || k != 0);
        }
        wgmma_commit();
        const int now = stage;
        if (++stage == plan.stages) stage = 0, turn ^= 1;
        if (step != run.begin) {
          wgmma_wait<1>();
          release(last);
        }
        last = now;
      }
      wgmma_wait<0>();
      hold(c);
      release(last);
#pragma unroll
      for (int e = 0; e < kColumns / 2; ++e) total[e] += c[e];
    }
    const int column = tile * kColumns + lane % 4 * 2, left = static_cast<int>(out.columns) - column;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp * 16 + lane / 4 + 8 * half;
      if (row >= out.rows) continue;
      float* const to = static_cast<float*>(out.data) + row * out.stride + column;
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
        const float a = total[4 * n + 2 * half], b = total[4 * n + 2 * half + 1];
        if (n * 8 + 1 < left) {
          *reinterpret_cast<float2*>(to + n * 8) = make_float2(a, b);
        } else if (n * 8 < left) {
          to[n * 8] = a;
        }
      }
    }
  }
#else
  __trap();  // built without sm_90a: fail aloud
#endif
}

WidePlan plan_of(const Linear& a, int shared) {
  WidePlan plan{};
  plan.steps = static_cast<int>((a.weight.columns + kDepth - 1) / kDepth);
  constexpr int kDeclared = 1024;  // barriers, and what the driver keeps
  plan.stages = std::min((shared - kDeclared) / kBox - plan.steps, kMostStages);
  plan.tiles = static_cast<int>(blocks_for(a.out.columns, kColumns));
  return plan;
}

cudaError_t attribute(int& value, cudaDeviceAttr which) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess ? cudaDeviceGetAttribute(&value, which, device) : error;
}

template <class T>
cudaError_t run(const Linear& a, cudaStream_t stream) {
  int shared = 0, processors = 0;
  EncodeTiled encode = nullptr;
  CUtensorMap x_map, w_map;
  const auto map_of = [&](CUtensorMap& map, const Matrix& m, std::int64_t rows) {
    return encode_rows(encode, map, {m.data, m.dtype, m.stride, m.stride, rows, 1, m.columns}, 64, kDepth);
  };
  cudaError_t error = attribute(shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (error == cudaSuccess) error = attribute(processors, cudaDevAttrMultiProcessorCount);
  if (error == cudaSuccess) error = find_encoder(encode);
  if (error == cudaSuccess) error = map_of(x_map, a.x, a.out.rows);
  if (error == cudaSuccess) error = map_of(w_map, a.weight, a.weight.rows);
  if (error != cudaSuccess) return error;
  const WidePlan plan = plan_of(a, shared);
  const auto bytes = static_cast<std::size_t>(plan.steps + plan.stages) * kBox;
  return launch_chained(wide_kernel<T>,
                        Grid(static_cast<unsigned>(std::min(processors, plan.tiles)), a.start), kThreads,
                        bytes, stream, a.out, plan, x_map, w_map);
}

}  // namespace

bool takes_wide(const Linear& a) {
  constexpr std::int64_t kWide = 8192;  // columns: a tile a processor
  if (a.out.rows > kRows || a.out.columns < kWide || dtype_size(a.weight.dtype) != 2 ||
      a.x.dtype != a.weight.dtype || !in_pieces(a.x) || a.rows != nullptr || a.norm.weight != nullptr ||
      a.bias != nullptr || a.activation != Activation::none || a.residual.data != nullptr ||
      a.pre_activation.data != nullptr || a.out.dtype != DType::f32 ||
      !in_fours(a.out.data, a.out.stride, 4)) {
    return false;
  }
  int device = 0, shared = 0;
  if (cudaGetDevice(&device) != cudaSuccess || !cuda_hopper_refusal(device).empty() ||
      attribute(shared, cudaDevAttrMaxSharedMemoryPerBlockOptin) != cudaSuccess) {
    return false;
  }
  const WidePlan plan = plan_of(a, shared);
  return plan.steps <= kMostSteps && plan.stages >= kFewestStages;
}

cudaError_t linear_wide(const Linear& args, cudaStream_t stream) {
  return args.weight.dtype == DType::bf16 ? run<__nv_bfloat16>(args, stream) : run<__half>(args, stream);
}

}  // namespace inkling::cuda
