// An attention problem that owns its memory, and its f64 answer written from the contract alone.
// Longer than a header: problem and answer read as one, and both are needed by every test.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "attention/cpu/kernels.h"
#include "attention/sdpa.h"
#include "engine/exec_context.h"
#include "engine/philox.h"
#include "tests/random.h"
#include "tests/worse.h"

namespace inkling::test {

inline ExecContext make_context(Isa isa, int threads) {
  ExecOptions options;
  options.device = Device::cpu;
  options.threads = threads;
  options.isa = isa;
  return ExecContext(options);
}

/// The instruction sets of this machine whose attention kernels are not those of another, portable first.
inline std::vector<Isa> attention_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : supported_isas()) {
    if (isas.empty() || &cpu::attention_kernels(isa) != &cpu::attention_kernels(isas.back()))
      isas.push_back(isa);
  }
  return isas;
}

/// Values in a buffer of any float dtype.
class Data {
 public:
  Data() = default;
  Data(DType dtype, std::initializer_list<std::int64_t> shape) : tensor_(dtype, shape) { fill(NAN); }
  Data(Random& random, DType dtype, std::initializer_list<std::int64_t> shape, float scale = 1.0f)
      : tensor_(dtype, shape) {
    for (std::int64_t i = 0; i < tensor_.numel(); ++i) set(i, random.normal() * scale);
  }
  TensorView view() const { return tensor_.view(); }
  std::int64_t size() const { return tensor_.numel(); }
  void fill(float value) {
    for (std::int64_t i = 0; i < size(); ++i) set(i, value);
  }
  float get(std::int64_t i) const {
    const void* data = tensor_.view().data;
    switch (tensor_.view().dtype) {
      case DType::bf16:
        return static_cast<float>(static_cast<const bf16*>(data)[i]);
      case DType::f16:
        return static_cast<float>(static_cast<const f16*>(data)[i]);
      default:
        return static_cast<const float*>(data)[i];
    }
  }
  void set(std::int64_t i, float value) {
    void* data = tensor_.view().data;
    switch (tensor_.view().dtype) {
      case DType::bf16:
        static_cast<bf16*>(data)[i] = bf16(value);
        break;
      case DType::f16:
        static_cast<f16*>(data)[i] = f16(value);
        break;
      default:
        static_cast<float*>(data)[i] = value;
        break;
    }
  }
  bool same_bits(const Data& other) const {
    const std::size_t bytes = view().nbytes();
    return bytes == other.view().nbytes() &&
           (bytes == 0 || std::memcmp(view().data, other.view().data, bytes) == 0);
  }
  Data copy() const {
    Data other;
    const TensorView from = view();
    other.tensor_ = Tensor(from.dtype, std::span(from.shape.data(), from.rank));
    if (from.nbytes() > 0) std::memcpy(other.view().data, from.data, from.nbytes());
    return other;
  }

 private:
  Tensor tensor_;
};

/// A problem that owns its memory.
struct Problem {
  DType dtype = DType::f32;
  std::int64_t heads, kv_heads, dim;
  std::vector<std::int32_t> cu_q{0}, cu_k{0};
  Data q, k, v, out, lse, bias;
  std::vector<std::int32_t> document_q, document_k;
  Tensor visible;
  SdpaArgs args;

  Problem(Random& random, DType type, std::int64_t h, std::int64_t hkv, std::int64_t d,
          std::vector<std::pair<std::int64_t, std::int64_t>> lengths, float q_scale = 1.0f)
      : dtype(type), heads(h), kv_heads(hkv), dim(d) {
    for (const auto& [tq, tk] : lengths) {
      cu_q.push_back(cu_q.back() + static_cast<std::int32_t>(tq));
      cu_k.push_back(cu_k.back() + static_cast<std::int32_t>(tk));
    }
    q = Data(random, dtype, {cu_q.back(), heads, dim}, q_scale);
    k = Data(random, dtype, {cu_k.back(), kv_heads, dim});
    v = Data(random, dtype, {cu_k.back(), kv_heads, dim});
    out = Data(dtype, {cu_q.back(), heads, dim});
    lse = Data(DType::f32, {heads, cu_q.back()});
    args.q = q.view();
    args.k = k.view();
    args.v = v.view();
    args.out = out.view();
    args.lse = lse.view();
    args.cu_q = cu_q;
    args.cu_k = cu_k;
  }
  Problem(const Problem&) = delete;

  void give_out_in(DType type) {
    out = Data(type, {cu_q.back(), heads, dim});
    args.out = out.view();
  }

  std::int64_t batch() const { return static_cast<std::int64_t>(cu_q.size()) - 1; }

  void set_mask(Random& random, MaskKind kind, bool per_batch) {
    args.mask = {};
    args.mask.kind = kind;
    std::int64_t tq = 1, tk = 1;
    for (std::size_t b = 0; b + 1 < cu_q.size(); ++b) {
      tq = std::max<std::int64_t>(tq, cu_q[b + 1] - cu_q[b]);
      tk = std::max<std::int64_t>(tk, cu_k[b + 1] - cu_k[b]);
    }
    const std::int64_t nb = per_batch ? batch() : 1, nh = per_batch ? heads : 1;
    if (kind == MaskKind::sliding_window) {
      args.mask.left = random.range(0, 100);
      args.mask.right = random.range(0, 20);
    }
    if (kind == MaskKind::document) {
      args.mask.right = 0;
      document_q.resize(static_cast<std::size_t>(cu_q.back()));
      document_k.resize(static_cast<std::size_t>(cu_k.back()));
      for (auto& x : document_q) x = static_cast<std::int32_t>(random.range(0, 2));
      for (auto& x : document_k) x = static_cast<std::int32_t>(random.range(0, 2));
      args.mask.document_q = document_q;
      args.mask.document_k = document_k;
    }
    if (kind == MaskKind::additive_bias) {
      bias = Data(random, DType::f32, {nb, nh, tq, tk});
      for (std::int64_t i = 0; i < bias.size(); i += 7) bias.set(i, -INFINITY);
      args.mask.bias = bias.view();
    }
    if (kind == MaskKind::boolean) {
      visible = Tensor(DType::boolean, {nb, nh, tq, tk});
      auto* bytes = static_cast<std::uint8_t*>(visible.view().data);
      for (std::int64_t i = 0; i < visible.numel(); ++i) bytes[i] = random.range(0, 3) != 0;
      std::memset(bytes, 0, static_cast<std::size_t>(tk));  // the first query of all sees nothing
      args.mask.bias = visible.view();
    }
  }

  /// Is key j visible to query i of sequence b? Written from the contract alone.
  bool sees(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const auto s = static_cast<std::size_t>(b);
    const std::int64_t tq = cu_q[s + 1] - cu_q[s], tk = cu_k[s + 1] - cu_k[s], p = i + tk - tq;
    const Mask& mask = args.mask;
    switch (mask.kind) {
      case MaskKind::none:
      case MaskKind::additive_bias:
        return true;
      case MaskKind::causal_upper_left:
        return j <= i;
      case MaskKind::causal_lower_right:
        return j <= p;
      case MaskKind::sliding_window:
        return p - mask.left <= j && j <= p + mask.right;
      case MaskKind::document:
        return p - mask.left <= j && j <= p + mask.right &&
               document_q[static_cast<std::size_t>(cu_q[s] + i)] ==
                   document_k[static_cast<std::size_t>(cu_k[s] + j)];
      case MaskKind::boolean:
        return static_cast<const std::uint8_t*>(visible.view().data)[bias_index(b, h, i, j)] != 0;
    }
    return false;
  }
  std::int64_t bias_index(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const TensorView& view = args.mask.bias;
    return (((view.shape[0] == 1 ? 0 : b) * view.shape[1] + (view.shape[1] == 1 ? 0 : h)) * view.shape[2] +
            i) *
               view.shape[3] +
           j;
  }

  /// Attention in f64 from the contract; returns the largest error of out and of lse.
  std::pair<double, double> errors() const {
    double worst_out = 0, worst_lse = 0;
    const double scale = args.scale ? double{*args.scale} : 1.0 / std::sqrt(static_cast<double>(dim));
    for (std::int64_t b = 0; b < batch(); ++b) {
      const auto s = static_cast<std::size_t>(b);
      const std::int64_t tk = cu_k[s + 1] - cu_k[s];
      for (std::int64_t i = 0; i < cu_q[s + 1] - cu_q[s]; ++i) {
        for (std::int64_t h = 0; h < heads; ++h) {
          std::vector<double> p(static_cast<std::size_t>(tk), -INFINITY);
          double top = -INFINITY, sum = 0;
          for (std::int64_t j = 0; j < tk; ++j) {
            if (!sees(b, h, i, j)) continue;
            double dot = 0;
            for (std::int64_t d = 0; d < dim; ++d)
              dot += double{q_at(b, i, h, d)} * double{kv_at(k, b, j, h, d)};
            dot *= scale;
            if (args.mask.kind == MaskKind::additive_bias) dot += double{bias.get(bias_index(b, h, i, j))};
            p[static_cast<std::size_t>(j)] = dot;
            top = std::max(top, dot);
          }
          const double reference = std::isinf(top) ? 0 : top;
          for (double& x : p) sum += x = std::exp(x - reference);
          const double want_lse = sum == 0 ? -INFINITY : reference + std::log(sum);
          const double got_lse = double{lse.get(h * cu_q.back() + cu_q[s] + i)};
          worst_lse = worse(worst_lse, std::isinf(want_lse) ? (got_lse == want_lse ? 0.0 : INFINITY)
                                                            : std::fabs(got_lse - want_lse));
          for (std::int64_t d = 0; d < dim; ++d) {
            double want = 0;
            for (std::int64_t j = 0; j < tk; ++j) {
              if (p[static_cast<std::size_t>(j)] == 0) continue;
              want += p[static_cast<std::size_t>(j)] / sum * keep(b, h, i, j) * double{kv_at(v, b, j, h, d)};
            }
            const double got = double{out.get(((cu_q[s] + i) * heads + h) * dim + d)};
            worst_out = worse(worst_out, std::fabs(got - want));
          }
        }
      }
    }
    return {worst_out, worst_lse};
  }
  double largest_value() const {
    double most = 0;
    for (std::int64_t i = 0; i < v.size(); ++i) most = std::max(most, std::fabs(double{v.get(i)}));
    return most;
  }
  float q_at(std::int64_t b, std::int64_t i, std::int64_t h, std::int64_t d) const {
    return q.get(((cu_q[static_cast<std::size_t>(b)] + i) * heads + h) * dim + d);
  }
  float kv_at(const Data& data, std::int64_t b, std::int64_t j, std::int64_t h, std::int64_t d) const {
    return data.get(((cu_k[static_cast<std::size_t>(b)] + j) * kv_heads + h / (heads / kv_heads)) * dim + d);
  }
  double keep(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    if (args.dropout.p == 0) return 1;
    const PhiloxWords words = philox({static_cast<std::uint32_t>(j / 4), static_cast<std::uint32_t>(i),
                                      static_cast<std::uint32_t>(b * heads + h), args.dropout.offset},
                                     args.dropout.seed);
    const auto threshold = static_cast<std::uint32_t>(std::floor(double{args.dropout.p} * 4294967296.0));
    return words[static_cast<std::size_t>(j % 4)] >= threshold ? 1.0 / (1.0 - double{args.dropout.p}) : 0.0;
  }
};

/// Sums are f32 whatever the dtype: 2e-5 holds what their roundings add up to. A result of 16 bits is then
/// rounded once more, by the unit roundoff of at most the largest value.
inline double tolerance(const Problem& problem) {
  const DType dtype = problem.args.out.dtype;
  const double unit = dtype == DType::f32 ? 0 : dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
  return 2e-5 + unit * problem.largest_value() / (1 - double{problem.args.dropout.p});
}

inline constexpr DType kDtypes[] = {DType::f32, DType::bf16, DType::f16};
inline constexpr std::int64_t kDims[] = {8, 32, 40, 64, 80, 96, 128, 256};
inline constexpr MaskKind kMasks[] = {
    MaskKind::none,           MaskKind::causal_upper_left, MaskKind::causal_lower_right,
    MaskKind::sliding_window, MaskKind::document,          MaskKind::additive_bias,
    MaskKind::boolean};

}  // namespace inkling::test
