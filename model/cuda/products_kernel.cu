// The four products between two attentions of a decode step of up to 16 rows by one kernel: each alone is
// bound by starting, waiting and ending, not by its bytes.
//
//   stream += attended·W₀ | inner = act(norm(stream)·W₁) | stream += inner·W₂ | qkv = norm(stream)·W₃
//
// 96 blocks, one a processor, among which the columns of each product divide evenly: 8, 32, 8 and 24 of a
// block. Its part of all four weights, 144 KiB, lies in shared memory and is asked for before the kernel
// before this one is over. A warp takes a run of k (linear_tile.cuh) of up to 24 columns. Every block brings
// all rows, through their norm a warp a row.
//
// Rows go from block to block through L2 without a barrier or a flag: words say themselves that they are
// there. A place holds kMissing, a NaN that neither an addition nor a conversion gives, until the value is
// written; whoever wants it asks until it is another. Places are used by every second launch; the launch
// between makes them kMissing again, as the first launch of a step does to all, which hands over nothing
// itself. So what the last step did, or whether it failed, does not matter, and the end of a kernel is all
// the order there is.
//
// Bits: those of linear_few.cu and norm.cuh, whose code this is. Oracle: tests/model/cuda.cpp. Cost: 2 bytes
// a weight. Measured: engine/cuda/README.md. Above 400 lines: the stages of one kernel, which share its
// places.
#include "model/cuda/products_kernel.h"

#include <initializer_list>
#include <type_traits>

#include "engine/cuda/launch.cuh"
#include "engine/cuda/linear_few.cuh"
#include "engine/cuda/norm.cuh"
#include "engine/cuda/wgmma.cuh"

namespace inkling::cuda {
namespace {

constexpr int kBlocks = 96, kThreads = 512, kWarps = kThreads / kWarp;
constexpr int kTileColumns = 8;
constexpr int kHeld = kBatchWidth / (4 * kWarp);
static_assert(kWarps == kMostBatchRows);

/// One of the products, as a block sees it.
template <int kProduct>
struct Shape {
  static constexpr int kK = kProduct == kOutOfMlp ? kBatchInner : kBatchWidth;
  static constexpr int kN = kProduct == kIntoMlp           ? kBatchInner
                            : kProduct == kBeforeAttention ? 3 * kBatchWidth
                                                           : kBatchWidth;
  static constexpr int kColumns = kN / kBlocks, kTiles = kColumns / kTileColumns, kPairs = kColumns / 2;
  static constexpr int kTogether =
      kTiles % 2 == 0 ? 2 : kTiles;  // tiles of a warp, which share what it reads of x
  template <class T>
  using Tile = FewTile<T, kTogether * kTileColumns>;
  static constexpr int kMultiplying = kTiles / kTogether * kRuns;  // warps
  static constexpr int kRowBytes = 2 * kK, kStride = Tile<__half>::stride(kK),
                       kBytes = kColumns * kStride * 2;
  static_assert(kColumns * kBlocks == kN && kTiles * kTileColumns == kColumns && kMultiplying <= kWarps);
  static_assert(kMostBatchRows * kPairs <= kThreads);
};

// Shared memory: W₀ | W₁ | x, all replaced by x of kOutOfMlp | W₂ | W₃ | sums | gain and shift of both norms
constexpr int kXAt = Shape<0>::kBytes + Shape<1>::kBytes;
constexpr int kLongX = kMostBatchRows * Shape<kOutOfMlp>::kStride * 2;
static_assert(kXAt + kMostBatchRows * Shape<0>::kStride * 2 <= kLongX);
constexpr int kSumsAt = kLongX + Shape<2>::kBytes + Shape<3>::kBytes;
constexpr int kNormsAt = kSumsAt + Shape<kIntoMlp>::kTiles * kRuns * kMostBatchRows * kTileColumns * 4;
constexpr int kNormBytes = kBatchWidth * 4;  // of a gain or a shift
constexpr int kBytes = kNormsAt + 4 * kNormBytes;
template <int kProduct>
constexpr int kWeightAt = kProduct == 0   ? 0
                          : kProduct == 1 ? Shape<0>::kBytes
                          : kProduct == 2 ? kLongX
                                          : kLongX + Shape<2>::kBytes;

constexpr int kBarriers = kBatchProducts + 2;

/// What blocks hand to each other, by launch in turn.
struct Handed {
  float stream[2][kMostBatchRows][kBatchWidth];          // behind attention, behind the MLP
  std::uint32_t inner[kMostBatchRows][kBatchInner / 2];  // pairs
};
constexpr std::uint32_t kMissing = 0xffffffffu;

__device__ inline uint4 load_relaxed(const void* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
__device__ inline void store_relaxed(std::uint32_t* to, std::uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ inline void store_relaxed(float* to, const float2& v) {
  asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(v.x), "f"(v.y) : "memory");
}
__device__ inline bool misses(const uint4& v) {
  return v.x == kMissing || v.y == kMissing || v.z == kMissing || v.w == kMissing;
}
/// Words from(i), i < count, asked for together until all are there.
template <int kMost, class From>
__device__ inline void take(uint4 (&words)[kMost], int count, const From& from) {
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    words[i] = make_uint4(0, 0, 0, 0);
    if (i < count) words[i] = load_relaxed(from(i));
  }
  for (bool all = false; !all;) {
    all = true;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (!misses(words[i])) continue;
      words[i] = load_relaxed(from(i));
      all = false;
    }
  }
}

template <class T>
class BatchBlock {
 public:
  __device__ BatchBlock(const FusedProducts& a, unsigned char* memory, std::uint64_t* full)
      : a_(a),
        memory_(memory),
        full_(full),
        handed_(static_cast<Handed*>(a.workspace) + a.launch % 2),
        before_(static_cast<Handed*>(a.workspace) + (a.launch + 1) % 2),
        block_(static_cast<int>(blockIdx.x)),
        warp_(threadIdx.x / kWarp),
        lane_(threadIdx.x % kWarp) {}

  __device__ void run() {
    each_product([&](auto product) { read_bias(product); });
    if (threadIdx.x == 0) {
      for (int i = 0; i < kBarriers; ++i) barrier_init(full_ + i, 1);
      barrier_init_fence();
      fence_async();
    }
    __syncthreads();
    start_next();
    if (asks()) ask_first();
    touch();
    wait_for_inputs();
    if (a_.begin == kAfterAttention) {
      read_stream();
      bring_attended();
      if (asks()) ask_rest();
      add_to_stream<kAfterAttention>();
      norm_rows<0>([&](int row) { return handed_->stream[0][row]; });
      multiply<kIntoMlp>([&](int row, int pair, float(&v)[2]) {
        with_activation(a_.activation, [&](auto activation) {
          v[0] = activated(decltype(activation)::value, v[0]),
          v[1] = activated(decltype(activation)::value, v[1]);
        });
        const int at = block_ * Shape<kIntoMlp>::kPairs + pair;
        store_relaxed(&handed_->inner[row][at], pack2<T>(v[0], v[1]));
        before_->inner[row][at] = kMissing;
      });
      bring_inner();
      add_to_stream<kOutOfMlp>();
    }
    if (a_.end < kBatchProducts) return;
    if (a_.begin == kAfterAttention) {
      norm_rows<1>([&](int row) { return handed_->stream[1][row]; });
    } else {
      clear();
      norm_rows<1, true>([&](int row) { return a_.stream + row * a_.stream_stride; });
    }
    multiply<kBeforeAttention>([&](int row, int pair, float(&v)[2]) {
      auto* const to =
          static_cast<T*>(a_.qkv.data) + row * a_.qkv.stride + block_ * Shape<kBeforeAttention>::kColumns;
      reinterpret_cast<std::uint32_t*>(to)[pair] = pack2<T>(v[0], v[1]);
    });
  }

 private:
  /// body(std::integral_constant<int, …>) for the products of the launch.
  template <class Body>
  __device__ void each_product(const Body& body) const {
    if (a_.begin == kAfterAttention) {
      body(std::integral_constant<int, kAfterAttention>());
      body(std::integral_constant<int, kIntoMlp>());
      body(std::integral_constant<int, kOutOfMlp>());
    }
    if (a_.end == kBatchProducts) body(std::integral_constant<int, kBeforeAttention>());
  }
  /// One warp, which multiplies nothing, asks for weights: for those that are wanted first before others
  /// crowd the way.
  __device__ bool asks() const { return warp_ == kWarps - 1; }
  __device__ void ask_first() const {
    if (a_.begin == kAfterAttention) ask_for_norm<0>();
    if (a_.end == kBatchProducts) ask_for_norm<1>();
    if (a_.begin == kAfterAttention) {
      ask_for_weight<kAfterAttention>();
      ask_for_weight<kIntoMlp>();
    } else {
      ask_for_weight<kBeforeAttention>();
    }
  }
  __device__ void ask_rest() const {
    barrier_wait(full_ + kAfterAttention, 0);
    ask_for_weight<kOutOfMlp>();
    if (a_.end == kBatchProducts) ask_for_weight<kBeforeAttention>();
  }
  template <int kProduct>
  __device__ void ask_for_weight() const {
    using S = Shape<kProduct>;
    static_assert(S::kColumns <= kWarp);
    if (lane_ == 0) barrier_expect(full_ + kProduct, S::kColumns * S::kRowBytes);
    __syncwarp();
    if (lane_ >= S::kColumns) return;
    const auto* const from = static_cast<const T*>(a_.weight[kProduct].data) +
                             (block_ * S::kColumns + lane_) * a_.weight[kProduct].stride;
    copy_bulk(memory_ + kWeightAt<kProduct> + lane_ * S::kStride * 2, from, S::kRowBytes, full_ + kProduct);
  }

  template <int kNorm>
  __device__ void ask_for_norm() const {
    std::uint64_t* const full = full_ + kBatchProducts + kNorm;
    const float* const from = lane_ == 0 ? a_.gain[kNorm] : lane_ == 1 ? a_.shift[kNorm] : nullptr;
    if (lane_ == 0) barrier_expect(full, (a_.shift[kNorm] != nullptr ? 2 : 1) * kNormBytes);
    __syncwarp();
    if (from != nullptr) copy_bulk(norm_at(kNorm, lane_), from, kNormBytes, full);
  }
  __device__ float* norm_at(int norm, int part) const {
    return reinterpret_cast<float*>(memory_ + kNormsAt + (2 * norm + part) * kNormBytes);
  }

  /// Of the two columns that a thread finishes, asked for before there is anything to wait for.
  template <class Product>
  __device__ void read_bias(Product) {
    using S = Shape<Product::value>;
    const float* const bias = a_.bias[Product::value];
    if (bias == nullptr || static_cast<int>(threadIdx.x) >= kMostBatchRows * S::kPairs) return;
    bias_[Product::value] =
        *reinterpret_cast<const float2*>(bias + block_ * S::kColumns + threadIdx.x % S::kPairs * 2);
  }

  /// Lets the processor translate the addresses of what will be there: the first access to a page waits for
  /// that.
  __device__ void touch() const {
    if (threadIdx.x != kThreads - 2 * kWarp) return;
    for (const void* const place :
         {static_cast<const void*>(handed_), static_cast<const void*>(before_),
          static_cast<const void*>(a_.stream), static_cast<const void*>(a_.out),
          static_cast<const void*>(a_.attended.data), static_cast<const void*>(a_.qkv.data)}) {
      load_relaxed(place);
    }
  }

  /// The first launch of a step: nothing is there yet.
  __device__ void clear() const {
    constexpr int kFours = 2 * sizeof(Handed) / sizeof(uint4);
    const int i = block_ * kThreads + static_cast<int>(threadIdx.x);
    static_assert(kFours <= kBlocks * kThreads);
    if (i < kFours) static_cast<uint4*>(a_.workspace)[i] = make_uint4(kMissing, kMissing, kMissing, kMissing);
  }

  /// The two columns of the stream that a thread adds to.
  __device__ void read_stream() {
    using S = Shape<kAfterAttention>;
    const int row = static_cast<int>(threadIdx.x) / S::kPairs,
              pair = static_cast<int>(threadIdx.x) % S::kPairs;
    if (row >= a_.rows) return;
    own_ = *reinterpret_cast<const float2*>(a_.stream + row * a_.stream_stride + block_ * S::kColumns +
                                            2 * pair);
  }
  template <int kProduct>
  __device__ void add_to_stream() {
    constexpr int kWhich = kProduct == kOutOfMlp ? 1 : 0;
    multiply<kProduct>([&](int row, int pair, float(&v)[2]) {
      own_ = make_float2(v[0] + own_.x, v[1] + own_.y);
      const int column = block_ * Shape<kProduct>::kColumns + 2 * pair;
      store_relaxed(&handed_->stream[kWhich][row][column], own_);
      if (kWhich == 1) *reinterpret_cast<float2*>(a_.out + row * a_.out_stride + column) = own_;
      *reinterpret_cast<uint2*>(&before_->stream[kWhich][row][column]) = make_uint2(kMissing, kMissing);
    });
  }

  /// Rows of x by 16 bytes.
  template <int kProduct>
  __device__ uint4& x_piece(int row, int piece) const {
    unsigned char* const x = memory_ + (kProduct == kOutOfMlp ? 0 : kXAt);
    return *reinterpret_cast<uint4*>(x + row * Shape<kProduct>::kStride * 2 + piece * 16);
  }
  __device__ void bring_attended() const {
    constexpr int kAcross = kBatchWidth / 8, kMost = kMostBatchRows * kAcross / kThreads;
    uint4 pieces[kMost];
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * kThreads, row = min(at / kAcross, a_.rows - 1);
      pieces[i] = *reinterpret_cast<const uint4*>(static_cast<const T*>(a_.attended.data) +
                                                  row * a_.attended.stride + at % kAcross * 8);
    }
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * kThreads;
      x_piece<kAfterAttention>(at / kAcross, at % kAcross) = pieces[i];
    }
    __syncthreads();
  }
  __device__ void bring_inner() const {
    constexpr int kAcross = kBatchInner / 8, kMost = kMostBatchRows * kAcross / kThreads;
    const int first = static_cast<int>(threadIdx.x), all = a_.rows * kAcross;
    uint4 pieces[kMost];
    take(pieces, (all - first + kThreads - 1) / kThreads, [&](int i) {
      const int at = first + i * kThreads;
      return &handed_->inner[at / kAcross][at % kAcross * 4];
    });
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int at = first + i * kThreads;
      if (at < all) x_piece<kOutOfMlp>(at / kAcross, at % kAcross) = pieces[i];
    }
    __syncthreads();
  }

  /// Rows of the stream through a norm, a warp each, into x. kThere: they were there before the launch.
  template <int kNorm, bool kThere = false, class RowAt>
  __device__ void norm_rows(const RowAt& row_at) const {
    using Norm = RowNorm<float, kHeld>;
    barrier_wait(full_ + kBatchProducts + kNorm, 0);
    Norm norm({norm_at(kNorm, 0), a_.shift[kNorm] != nullptr ? norm_at(kNorm, 1) : nullptr, a_.epsilon},
              kBatchWidth);
    if (warp_ < a_.rows) {
      const float* const row = row_at(warp_);
      const auto bring = [&](typename Norm::Held& held) {
        uint4 words[kHeld];
        const auto from = [&](int i) { return row + Norm::column(i); };
        if constexpr (kThere) {
#pragma unroll
          for (int i = 0; i < kHeld; ++i) words[i] = *reinterpret_cast<const uint4*>(from(i));
        } else {
          take(words, kHeld, from);
        }
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
          held[i][0] = __uint_as_float(words[i].x), held[i][1] = __uint_as_float(words[i].y);
          held[i][2] = __uint_as_float(words[i].z), held[i][3] = __uint_as_float(words[i].w);
        }
      };
      T* const x = reinterpret_cast<T*>(memory_ + kXAt) + warp_ * Shape<kIntoMlp>::kStride;
      norm.of(bring, kBatchWidth, [&](int c, const float(&v)[4]) { store4(x + c, v, 4, true); });
    }
    __syncthreads();
  }

  /// finish(row, pair of the block's columns, sums + bias) for all rows. x is in shared memory; has been read
  /// after.
  template <int kProduct, class Finish>
  __device__ void multiply(const Finish& finish) const {
    using S = Shape<kProduct>;
    float* const sums = reinterpret_cast<float*>(memory_ + kSumsAt);
    constexpr int kSum = kMostBatchRows * kTileColumns, kTilePairs = kTileColumns / 2;
    const int row = static_cast<int>(threadIdx.x) / S::kPairs,
              pair = static_cast<int>(threadIdx.x) % S::kPairs;
    const bool mine = row < a_.rows;
    if (warp_ < S::kMultiplying) {
      using Tile = typename S::template Tile<T>;
      const int run = warp_ % kRuns, tile = warp_ / kRuns * S::kTogether;
      barrier_wait(full_ + kProduct, 0);
      float c[1][S::kTogether][4] = {};
      RunProduct<Tile, true>(
          reinterpret_cast<const T*>(memory_ + (kProduct == kOutOfMlp ? 0 : kXAt)), a_.rows - 1,
          reinterpret_cast<const T*>(memory_ + kWeightAt<kProduct>) + tile * kTileColumns * S::kStride,
          S::kStride, run_of(run, Tile::steps(S::kK)))
          .add_to(c);
#pragma unroll
      for (int i = 0; i < S::kTogether; ++i) {
        float* const to = sums + ((tile + i) * kRuns + run) * kSum + lane_ * 2;
        *reinterpret_cast<float2*>(to) = make_float2(c[0][i][0], c[0][i][1]);
        *reinterpret_cast<float2*>(to + kSum / 2) = make_float2(c[0][i][2], c[0][i][3]);
      }
    }
    __syncthreads();
    if (!mine) return;
    const float* const parts =
        sums + pair / kTilePairs * kRuns * kSum + row * kTileColumns + pair % kTilePairs * 2;
    float v[2] = {};
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      const float2 part = *reinterpret_cast<const float2*>(parts + r * kSum);
      v[0] += part.x, v[1] += part.y;
    }
    v[0] += bias_[kProduct].x, v[1] += bias_[kProduct].y;
    finish(row, pair, v);
  }

  const FusedProducts& a_;
  unsigned char* const memory_;
  std::uint64_t* const full_;  // of each product's weight and of both norms
  Handed *const handed_, *const before_;
  const int block_, warp_, lane_;
  float2 bias_[kBatchProducts] = {}, own_ = {};
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) products_kernel(const __grid_constant__ FusedProducts a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ std::uint64_t full[kBarriers];
  BatchBlock<T>(a, memory, full).run();
#else
  __trap();  // built without sm_90a: fail aloud
#endif
}

/// Calls body(kernel) with the kernel for the dtype.
template <class Body>
auto with_kernel(DType dtype, const Body& body) {
  return dtype == DType::bf16 ? body(products_kernel<__nv_bfloat16>) : body(products_kernel<__half>);
}

}  // namespace

std::size_t fused_products_workspace() {
  return 2 * sizeof(Handed);
}

const char* fused_products_device_refusal(DType dtype) {
  int device = 0, processors = 0, cooperates = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&cooperates, cudaDevAttrCooperativeLaunch, device) != cudaSuccess) {
    return "the device does not answer";
  }
  if (cooperates == 0) return "no cooperative launches";
  if (processors < kBlocks) return "fewer than 96 processors";
  const bool resident = with_kernel(dtype, [&](auto* kernel) {
    bool waits = false;
    int blocks = 0;  // of a processor
    return prepare(kernel, kBytes, waits) == cudaSuccess && waits &&
           cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, kBytes) == cudaSuccess &&
           blocks >= 1;
  });
  if (resident) return "";
  cudaGetLastError();  // forgotten: a refusal is no failure
  return "a processor without room for a block";
}

cudaError_t run_products(const FusedProducts& args, cudaStream_t stream) {
  return with_kernel(args.dtype, [&](auto* kernel) {
    bool waits = false;
    if (const cudaError_t error = prepare(kernel, kBytes, waits); error != cudaSuccess) return error;
    cudaLaunchAttribute attributes[2]{};
    // Blocks wait for each other: all are resident, or the launch fails.
    attributes[0].id = cudaLaunchAttributeCooperative;
    attributes[0].val.cooperative = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(kBlocks);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = kBytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 2;
    return cudaLaunchKernelEx(&config, kernel, args);
  });
}

}  // namespace inkling::cuda
