#include "engine/cpu/cpu_training.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <utility>

#include "engine/philox.h"

namespace inkling {
namespace {

using cpu::each_row;
using cpu::mutable_row;
using cpu::row;
using cpu::row_stride;

constexpr std::int64_t kRun = 16384;  // elements of a task of ops on long vectors

/// fn(first, count) for runs of `total` elements.
template <class Fn>
void each_run(ThreadPool& pool, std::size_t total, Fn&& fn) {
  const auto n = static_cast<std::int64_t>(total);
  pool.run((n + kRun - 1) / kRun,
           [&](std::int64_t task, int) { fn(task * kRun, std::min(kRun, n - task * kRun)); });
}

// The same memory with rows and columns exchanged.
TensorView flipped(TensorView x) {
  std::swap(x.shape[0], x.shape[1]);
  std::swap(x.stride[0], x.stride[1]);
  return x;
}

void use(Buffer& buffer, std::size_t bytes) {
  if (buffer.size() < bytes) buffer = Buffer(bytes);
}

}  // namespace

void CpuTraining::zero(void* to, std::size_t bytes) {
  constexpr std::size_t kBytes = std::size_t{1} << 18;  // of a task
  pool_.run(static_cast<std::int64_t>((bytes + kBytes - 1) / kBytes), [&](std::int64_t task, int) {
    const std::size_t begin = static_cast<std::size_t>(task) * kBytes;
    std::memset(static_cast<std::byte*>(to) + begin, 0, std::min(kBytes, bytes - begin));
  });
}

// Both gradients are products that linear() already is: dx = dout · wᵀ, and dw's rows are those of xᵀ times
// dout. Long rows are packed block by block on the way, and xᵀ is written once; short ones are read as they
// lie.
void CpuTraining::linear_backward(const LinearBackwardArgs& args) {
  const std::int64_t m = args.dout.shape[0], n = args.dout.shape[1];
  if (n == 0) {  // dx is a sum of nothing
    for (std::int64_t i = 0; args.dx.data != nullptr && i < m; ++i) {
      std::fill_n(mutable_row(args.dx, i), args.dx.shape[1], 0.0f);
    }
    return;
  }
  LinearArgs product;
  product.matrix_format = args.format;
  if (args.dx.data != nullptr) {
    product.x = args.dout;
    product.matrix = flipped(args.weight);
    product.out = args.dx;
    linear(product);
    if (args.activation != Activation::none) {
      activate_backward({args.pre_activation, args.activation, args.dx});
    }
  }
  if (args.dweight.data != nullptr) {
    product.x = args.format == WeightFormat::f32 && row_stride(args.x) <= cpu::kShortRow ? flipped(args.x)
                                                                                         : transpose(args.x);
    product.matrix = args.dout;
    product.out = args.dweight;
    if (!args.replaces) product.residual = args.dweight;
    linear(product);
  }
  if (args.dbias == nullptr) return;
  if (args.replaces) std::fill_n(args.dbias, n, 0.0f);
  add_column_sums(args.dout, args.dbias);
}

// (M, K) → (K, M), rows an odd number of cache lines apart: they do not all fall into the same sets.
TensorView CpuTraining::transpose(const TensorView& x) {
  constexpr std::int64_t kColumns = 64;
  const std::int64_t m = x.shape[0], k = x.shape[1];
  const std::int64_t lines = (m + 15) / 16, stride = (lines + (lines + 1) % 2) * 16;
  use(transposed_, static_cast<std::size_t>(k * stride) * sizeof(float));
  auto* to = reinterpret_cast<float*>(transposed_.data());
  pool_.run((k + kColumns - 1) / kColumns, [&](std::int64_t block, int) {
    const std::int64_t first = block * kColumns, count = std::min(kColumns, k - first);
    table_.transpose(row(x, 0) + first, row_stride(x), m, count, to + first * stride, stride);
  });
  TensorView view(to, DType::f32, {k, m});
  view.stride[0] = stride;
  return view;
}

void CpuTraining::add_column_sums(const TensorView& x, float* sums) {
  constexpr std::int64_t kColumns = 256;
  const std::int64_t n = x.shape[1];
  pool_.run((n + kColumns - 1) / kColumns, [&](std::int64_t block, int) {
    const std::int64_t first = block * kColumns;
    table_.add_column_sums(row(x, 0) + first, row_stride(x), x.shape[0], std::min(kColumns, n - first),
                           sums + first);
  });
}

// Rows in groups: dx row by row, and each group's sums apart; these are then added up in order.
void CpuTraining::layer_norm_backward(const LayerNormBackwardArgs& args) {
  constexpr std::int64_t kGroup = 32;
  const std::int64_t rows = args.x.shape[0], n = args.x.shape[1];
  const std::int64_t groups = (rows + kGroup - 1) / kGroup;
  const std::int64_t stride = (n + 15) / 16 * 16;  // whole cache lines
  use(partial_, static_cast<std::size_t>(groups * 2 * stride) * sizeof(float));
  auto* partial = reinterpret_cast<float*>(partial_.data());
  pool_.run(groups, [&](std::int64_t group, int) {
    cpu::LayerNormBackwardRow r;
    r.weight = args.norm.weight;
    r.epsilon = args.norm.epsilon;
    r.n = n;
    r.dweight = partial + group * 2 * stride;
    r.dbias = r.dweight + stride;
    std::fill_n(r.dweight, 2 * stride, 0.0f);
    for (std::int64_t m = group * kGroup; m < std::min(rows, (group + 1) * kGroup); ++m) {
      r.x = row(args.x, m);
      r.dout = row(args.dout, m);
      r.dx = mutable_row(args.dx, m);
      table_.layer_norm_backward(r);
    }
  });
  for (float* const to : {args.dweight, args.dbias}) {
    if (args.replaces && to != nullptr) std::fill_n(to, n, 0.0f);
  }
  for (std::int64_t group = 0; group < groups; ++group) {
    const float* sums = partial + group * 2 * stride;
    if (args.dweight != nullptr) table_.add_row(sums, args.dweight, n);
    if (args.dbias != nullptr) table_.add_row(sums + stride, args.dbias, n);
  }
  if (args.branch.x.data != nullptr) {
    DropoutArgs branch = args.branch;
    branch.from = args.dx;
    dropout(branch);
  }
}

void CpuTraining::activate_backward(const ActivateBackwardArgs& args) {
  each_row(pool_, args.x, [&](std::int64_t m, int) {
    float* activated = args.activated.data != nullptr ? mutable_row(args.activated, m) : nullptr;
    table_.activate_backward(row(args.x, m), mutable_row(args.dx, m), activated, args.x.shape[1],
                             args.activation);
  });
}

// Every element adds its rows in order: threads share the columns, and one half of the tasks has the tokens,
// the other the positions. (One line of memory in two threads' columns would travel with every row.)
void CpuTraining::embed_backward(const EmbedBackwardArgs& args) {
  constexpr std::int64_t kColumns = 128;
  const std::int64_t rows = args.dout.shape[0], width = args.dout.shape[1];
  const std::int64_t blocks = (width + kColumns - 1) / kColumns;
  pool_.run(2 * blocks, [&](std::int64_t task, int) {
    const std::int64_t first = task % blocks * kColumns, count = std::min(kColumns, width - first);
    const TensorView& to = task < blocks ? args.dtoken : args.dposition;
    const std::span<const std::int32_t> at = task < blocks ? args.ids : args.positions;
    for (std::int64_t m = 0; m < rows; ++m) {
      table_.add_row(row(args.dout, m) + first, mutable_row(to, at[static_cast<std::size_t>(m)]) + first,
                     count);
    }
  });
}

void CpuTraining::dropout(const DropoutArgs& args) {
  each_row(pool_, args.x, [&](std::int64_t m, int) {
    const auto next = std::ranges::upper_bound(args.cu_seqlens, static_cast<std::int32_t>(m));
    const auto b = static_cast<std::uint32_t>(next - args.cu_seqlens.begin() - 1);
    cpu::DropoutRow r;
    r.from = row(args.from.data != nullptr ? args.from : args.x, m);
    r.residual = args.residual.data != nullptr ? row(args.residual, m) : nullptr;
    r.x = mutable_row(args.x, m);
    r.n = args.x.shape[1];
    r.counter = {0, static_cast<std::uint32_t>(m - args.cu_seqlens[b]), (std::uint32_t{1} << 31) + b,
                 args.offset};
    r.seed = args.seed;
    r.threshold = dropout_threshold(args.p);
    r.scale = 1.0f / (1.0f - args.p);
    table_.dropout(r);
  });
  if (args.normed.data != nullptr) layer_norm({args.x, {}, args.norm, args.normed});
}

void CpuTraining::cross_entropy(const CrossEntropyArgs& args) {
  each_row(pool_, args.logits, [&](std::int64_t m, int) {
    const auto i = static_cast<std::size_t>(m);
    args.losses[i] =
        table_.cross_entropy(mutable_row(args.logits, m), args.logits.shape[1], args.targets[i], args.scale);
  });
}

double CpuTraining::sum_of_squares(std::span<const float> x) {
  use(partial_, (x.size() / static_cast<std::size_t>(kRun) + 1) * sizeof(double));
  auto* partial = reinterpret_cast<double*>(partial_.data());
  each_run(pool_, x.size(), [&](std::int64_t first, std::int64_t count) {
    partial[first / kRun] = table_.sum_of_squares(x.data() + first, count);
  });
  double sum = 0.0;
  for (std::size_t first = 0; first < x.size(); first += static_cast<std::size_t>(kRun)) sum += *partial++;
  return sum;
}

void CpuTraining::adamw(const AdamWArgs& args) {
  const auto step = static_cast<double>(args.step);
  cpu::AdamWStep s;
  s.gradient_scale = args.gradient_scale;
  s.decay = static_cast<float>(1.0 - args.learning_rate * args.weight_decay);
  s.to_m = static_cast<float>(1.0 - args.beta1);
  s.beta2 = static_cast<float>(args.beta2);
  s.to_v = static_cast<float>(1.0 - args.beta2);
  s.rate = static_cast<float>(args.learning_rate / (1.0 - std::pow(args.beta1, step)));
  s.inverse_root = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(args.beta2, step)));
  s.epsilon = static_cast<float>(args.epsilon);
  each_run(pool_, args.parameter.size(), [&](std::int64_t first, std::int64_t count) {
    table_.adamw(s, args.parameter.data() + first, args.gradient.data() + first, args.m.data() + first,
                 args.v.data() + first, count);
  });
}

}  // namespace inkling
