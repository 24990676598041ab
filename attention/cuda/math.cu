// The math backend on a GPU: attention as it is written down, in f64, as attention/sdpa_math.cpp has it on
// the CPU. The oracle of the other kernels where they run, and the fallback for what they refuse. A block
// takes one row after another and has the weights of that row in memory; every sum has one order.
#include "attention/cuda/launch.cuh"
#include "attention/cuda/scores.cuh"
#include "attention/cuda/tile.cuh"

namespace inkling::cuda {
namespace {

constexpr int kThreads = 128, kMostDim = 256;

template <class T>
__device__ double wide(T x) {
  return static_cast<double>(to_float(x));
}

/// An element of a tensor whose dtype is known at run time.
__device__ double load(const HeadRows& rows, DType dtype, std::int64_t row, std::int64_t head, int d) {
  const char* const at = row_address(rows, row, head, dtype_size(dtype));
  if (dtype == DType::bf16) return wide(reinterpret_cast<const __nv_bfloat16*>(at)[d]);
  if (dtype == DType::f16) return wide(reinterpret_cast<const __half*>(at)[d]);
  return wide(reinterpret_cast<const float*>(at)[d]);
}

__device__ void store(const HeadRows& rows, DType dtype, std::int64_t row, std::int64_t head, int d,
                      double value) {
  char* const at = row_address(rows, row, head, dtype_size(dtype));
  const auto narrow = static_cast<float>(value);
  if (dtype == DType::bf16) {
    reinterpret_cast<__nv_bfloat16*>(at)[d] = from_float<__nv_bfloat16>(narrow);
  } else if (dtype == DType::f16) {
    reinterpret_cast<__half*>(at)[d] = from_float<__half>(narrow);
  } else {
    reinterpret_cast<float*>(at)[d] = narrow;
  }
}

/// The sequence of a row: the last that begins at or before it.
__device__ int sequence_of(const std::int32_t* cu, int batch, int row) {
  int low = 0, high = batch;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (cu[middle] <= row ? low : high) = middle;
  }
  return low;
}

/// Combines a value of each thread in the order of a tree, for all threads.
template <class Combine>
__device__ double reduced(double mine, const Combine& combine) {
  __shared__ double all[kThreads];
  __syncthreads();
  all[threadIdx.x] = mine;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) all[threadIdx.x] = combine(all[threadIdx.x], all[threadIdx.x + half]);
  }
  __syncthreads();
  return all[0];
}
__device__ double larger(double a, double b) {
  return b <= a || a != a ? a : b;  // NaN stays
}

/// One head of one sequence.
template <class T>
struct Head {
  const ForwardArgs& a;
  int sequence, head, queries, keys;
  std::int64_t q_begin;
  ScoreRule rule;
  KeyRows<T> k, v;

  __device__ Head(const ForwardArgs& args, int b, int h)
      : a(args),
        sequence(b),
        head(h),
        queries(args.cu_q[b + 1] - args.cu_q[b]),
        keys(keys_in(args, b)),
        q_begin(args.cu_q[b]),
        rule(args, b, h, queries, keys),
        k(args, args.k, args.pages.k_offset, b, k_begin(), h / group()),
        v(args, args.v, args.pages.v_offset, b, k_begin(), h / group()) {}

  __device__ int group() const { return a.heads / a.kv_heads; }
  __device__ std::int64_t k_begin() const { return a.pages.table == nullptr ? a.cu_k[sequence] : 0; }

  /// −∞ where key j is hidden from query i.
  __device__ double score(int i, int j) const {
    const DeviceMask& mask = rule.mask;
    const std::int64_t at = i * mask.row + j * mask.key;
    if (!rule.in_window(i, j) ||
        (mask.kind == MaskKind::document && mask.document_q[i] != mask.document_k[j]) ||
        (mask.kind == MaskKind::boolean && mask.visible[at] == 0)) {
      return -INFINITY;
    }
    const double dot = a.scale * product(a.q, a.dtype, i, k.at(j));
    return mask.kind == MaskKind::additive_bias ? dot + mask.bias[at] : dot;
  }
  /// What dropout multiplies the weight of key j by.
  __device__ double kept(int i, int j) const {
    if (a.dropout.threshold == 0) return 1.0;
    const auto stream = static_cast<std::uint32_t>(sequence * a.heads + head);
    const std::uint32_t nibble =
        kept_nibble(a.dropout, stream, static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(j / 4));
    return (nibble >> (j % 4) & 1u) != 0 ? a.dropout.scale : 0.0;
  }
  /// Row i of (N, H, D) `rows` times a row of keys or values.
  __device__ double product(const HeadRows& rows, DType dtype, int i, const T* other) const {
    double sum = 0.0;
    for (int d = 0; d < a.dim; ++d) sum += load(rows, dtype, q_begin + i, head, d) * wide(other[d]);
    return sum;
  }
  /// The weights of query i before dropout, for all threads of the block; returns the log of Σ e^score.
  __device__ double softmax(int i, double* weights) const {
    double top = -INFINITY, sum = 0.0;
    for (int j = threadIdx.x; j < keys; j += kThreads) top = larger(top, weights[j] = score(i, j));
    top = reduced(top, larger);
    const double reference = top == -INFINITY ? 0.0 : top;
    for (int j = threadIdx.x; j < keys; j += kThreads) sum += weights[j] = exp(weights[j] - reference);
    sum = reduced(sum, [](double x, double y) { return x + y; });
    for (int j = threadIdx.x; j < keys; j += kThreads) weights[j] = sum == 0.0 ? 0.0 : weights[j] / sum;
    __syncthreads();
    return sum == 0.0 ? -INFINITY : reference + log(sum);
  }
};

/// Calls body(sequence, row of it, head) for the rows of this block, in turn.
template <class Body>
__device__ void for_each_row(const std::int32_t* cu, int batch, int rows, int heads, const Body& body) {
  for (std::int64_t unit = blockIdx.x; unit < std::int64_t{rows} * heads; unit += gridDim.x) {
    const auto row = static_cast<int>(unit / heads);
    const int b = sequence_of(cu, batch, row);
    body(b, row - cu[b], static_cast<int>(unit % heads));
    __syncthreads();  // the memory of a row is the next row's
  }
}

template <class T>
__global__ void math_kernel(const __grid_constant__ ForwardArgs a, MathWorkspace workspace) {
  double* const weights = workspace.row(blockIdx.x, 0);
  for_each_row(a.cu_q, a.batch, a.q_rows, a.heads, [&](int b, int i, int h) {
    const Head<T> head(a, b, h);
    const double lse = head.softmax(i, weights);
    if (a.lse != nullptr && threadIdx.x == 0) {
      a.lse[h * a.lse_head + (head.q_begin + i) * a.lse_row] = static_cast<float>(lse);
    }
    for (int j = threadIdx.x; j < head.keys; j += kThreads) weights[j] *= head.kept(i, j);
    __syncthreads();
    for (int d = threadIdx.x; d < a.dim; d += kThreads) {
      double sum = 0.0;
      for (int j = 0; j < head.keys; ++j) {
        if (weights[j] != 0.0) sum += weights[j] * wide(head.v.at(j)[d]);
      }
      store(a.out, a.out_dtype, head.q_begin + i, h, d, sum);
    }
  });
}

/// dq, and for the other gradients the log of Σ e^score and δ = Σ weight · its gradient of every row.
template <class T>
__global__ void math_queries_kernel(const __grid_constant__ ForwardArgs a,
                                    const __grid_constant__ MathGradients g, MathWorkspace workspace) {
  double* const weights = workspace.row(blockIdx.x, 0);
  double* const dscores = workspace.row(blockIdx.x, 1);
  for_each_row(a.cu_q, a.batch, a.q_rows, a.heads, [&](int b, int i, int h) {
    const Head<T> head(a, b, h);
    const double lse = head.softmax(i, weights);
    double delta = 0.0;
    for (int j = threadIdx.x; j < head.keys; j += kThreads) {
      dscores[j] =
          weights[j] == 0.0 ? 0.0 : head.kept(i, j) * head.product(g.dout, g.dout_dtype, i, head.v.at(j));
      delta += weights[j] * dscores[j];
    }
    delta = reduced(delta, [](double x, double y) { return x + y; });
    if (threadIdx.x == 0) {
      workspace.lse[head.q_begin * a.heads + i * a.heads + h] = lse;
      workspace.delta[head.q_begin * a.heads + i * a.heads + h] = delta;
    }
    for (int j = threadIdx.x; j < head.keys; j += kThreads) dscores[j] = weights[j] * (dscores[j] - delta);
    __syncthreads();
    for (int d = threadIdx.x; d < a.dim; d += kThreads) {
      double sum = 0.0;
      for (int j = 0; j < head.keys; ++j) {
        if (dscores[j] != 0.0) sum += dscores[j] * wide(head.k.at(j)[d]);
      }
      store(g.dq, g.dq_dtype, head.q_begin + i, h, d, a.scale * sum);
    }
  });
}

/// A weight after dropout, and the gradient of its score.
struct WeightGradient {
  double weight = 0.0, dscore = 0.0;

  template <class T>
  __device__ WeightGradient(const Head<T>& head, const MathGradients& g, const MathWorkspace& workspace,
                            int i, int j) {
    const double score = head.score(i, j);
    if (score == -INFINITY) return;
    const std::int64_t row = (head.q_begin + i) * head.a.heads + head.head;
    const double before = exp(score - workspace.lse[row]), kept = head.kept(i, j);
    weight = before * kept;
    dscore = before * (kept * head.product(g.dout, g.dout_dtype, i, head.v.at(j)) - workspace.delta[row]);
  }
};

/// dk and dv.
template <class T>
__global__ void math_keys_kernel(const __grid_constant__ ForwardArgs a,
                                 const __grid_constant__ MathGradients g, MathWorkspace workspace) {
  double* const weights = workspace.row(blockIdx.x, 0);
  double* const dscores = workspace.row(blockIdx.x, 1);
  const int group = a.heads / a.kv_heads;
  for_each_row(a.cu_k, a.batch, a.k_rows, a.kv_heads, [&](int b, int j, int kv_head) {
    double dk[kMostDim / kThreads] = {}, dv[kMostDim / kThreads] = {};
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      const Head<T> head(a, b, h);
      for (int i = threadIdx.x; i < head.queries; i += kThreads) {
        const WeightGradient gradient(head, g, workspace, i, j);
        weights[i] = gradient.weight;
        dscores[i] = gradient.dscore;
      }
      __syncthreads();
#pragma unroll
      for (int n = 0; n < kMostDim / kThreads; ++n) {
        const int d = static_cast<int>(threadIdx.x) + n * kThreads;
        for (int i = 0; d < a.dim && i < head.queries; ++i) {
          if (weights[i] == 0.0 && dscores[i] == 0.0) continue;
          dv[n] += weights[i] * load(g.dout, g.dout_dtype, head.q_begin + i, h, d);
          dk[n] += dscores[i] * load(a.q, a.dtype, head.q_begin + i, h, d);
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int n = 0; n < kMostDim / kThreads; ++n) {
      const int d = static_cast<int>(threadIdx.x) + n * kThreads;
      if (d >= a.dim) continue;
      store(g.dk, g.dk_dtype, a.cu_k[b] + j, kv_head, d, a.scale * dk[n]);
      store(g.dv, g.dv_dtype, a.cu_k[b] + j, kv_head, d, dv[n]);
    }
  });
}

/// The terms of an element of a broadcast bias: sequences, heads, queries and keys that share it.
struct BiasTerms {
  std::int64_t of[4], all = 1;
  BiasTerms(const ForwardArgs& a, const MathGradients& g, std::int64_t longest)
      : of{a.batch, a.heads, longest, longest} {
    for (int axis = 0; axis < 4; ++axis) all *= of[axis] = g.bias_shape[axis] == 1 ? of[axis] : 1;
  }
};

/// kTogether threads, one or a block, take an element at a time and share its terms.
template <class T, int kTogether>
__global__ void math_bias_kernel(const __grid_constant__ ForwardArgs a,
                                 const __grid_constant__ MathGradients g,
                                 const __grid_constant__ BiasTerms terms, MathWorkspace workspace) {
  const std::int64_t *const shape = g.bias_shape, thread = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  const std::int64_t elements = shape[0] * shape[1] * shape[2] * shape[3];
  for (std::int64_t element = thread / kTogether; element < elements;
       element += std::int64_t{gridDim.x} * kThreads / kTogether) {
    double sum = 0.0;
    for (std::int64_t term = thread % kTogether; term < terms.all; term += kTogether) {
      std::int64_t at = element, turn = term;
      int index[4];  // sequence, head, query, key
#pragma unroll
      for (int axis = 3; axis >= 0; --axis) {
        index[axis] = static_cast<int>(at % shape[axis] + turn % terms.of[axis]);  // one of the two is 0
        at /= shape[axis];
        turn /= terms.of[axis];
      }
      if (index[0] >= a.batch || index[1] >= a.heads) continue;
      const Head<T> head(a, index[0], index[1]);
      if (index[2] >= head.queries || index[3] >= head.keys) continue;
      sum += WeightGradient(head, g, workspace, index[2], index[3]).dscore;
    }
    if constexpr (kTogether > 1) sum = reduced(sum, [](double x, double y) { return x + y; });
    if (thread % kTogether == 0) g.dbias[element] = static_cast<float>(sum);
  }
}

template <class T>
cudaError_t backward_math_of(const ForwardArgs& a, const MathGradients& g, const MathWorkspace& workspace,
                             cudaStream_t stream) {
  cudaError_t error = launch(math_queries_kernel<T>, kMathBlocks, kThreads, 0, stream, a, g, workspace);
  if (error == cudaSuccess) {
    error = launch(math_keys_kernel<T>, kMathBlocks, kThreads, 0, stream, a, g, workspace);
  }
  if (error != cudaSuccess || g.dbias == nullptr) return error;
  const BiasTerms terms(a, g, workspace.longest);
  const auto run = [&](auto* kernel) {
    return launch(kernel, 16 * kMathBlocks, kThreads, 0, stream, a, g, terms, workspace);
  };
  return terms.all < kThreads ? run(math_bias_kernel<T, 1>) : run(math_bias_kernel<T, kThreads>);
}

}  // namespace

cudaError_t math(const ForwardArgs& args, const MathWorkspace& workspace, cudaStream_t stream) {
  return with_type(args.dtype, [&](auto type) {
    return launch(math_kernel<decltype(type)>, kMathBlocks, kThreads, 0, stream, args, workspace);
  });
}

cudaError_t backward_math(const ForwardArgs& args, const MathGradients& gradients,
                          const MathWorkspace& workspace, cudaStream_t stream) {
  return with_type(args.dtype, [&](auto type) {
    return backward_math_of<decltype(type)>(args, gradients, workspace, stream);
  });
}

}  // namespace inkling::cuda
