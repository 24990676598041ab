// An attention problem on the device, its f64 answer on the host, and how to run each kernel on it. Needs
// nothing but the CUDA runtime.
// Longer than a header: problem and answer read as one, and both programs need them.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "attention/cuda/launch.h"
#include "attention/cuda/visible.h"
#include "attention/cuda/work_list.h"
#include "engine/philox.h"
#include "tests/random.h"

namespace inkling::test {

inline void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAILED %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

/// Device memory of `count` T; filled with 0xff bytes, which are NaN in every float type.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count = 0) { reset(count); }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { set(values); }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  void reset(std::size_t count) {
    cudaFree(std::exchange(data_, nullptr));
    must(cudaMalloc(&data_, std::max<std::size_t>(1, count) * sizeof(T)), "cudaMalloc");
    count_ = count;
    fill(0xff);
  }
  T* get() const { return data_; }
  std::size_t size() const { return count_; }
  void fill(int byte) { must(cudaMemset(data_, byte, count_ * sizeof(T)), "cudaMemset"); }
  void set(const std::vector<T>& values) {
    must(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "upload");
  }
  std::vector<T> values() const {
    std::vector<T> out(count_);
    must(cudaMemcpy(out.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "download");
    return out;
  }

 private:
  T* data_ = nullptr;
  std::size_t count_ = 0;
};

inline float decode_element(const std::byte* data, DType dtype, std::size_t i) {
  switch (dtype) {
    case DType::bf16:
      return static_cast<float>(reinterpret_cast<const bf16*>(data)[i]);
    case DType::f16:
      return static_cast<float>(reinterpret_cast<const f16*>(data)[i]);
    default:
      return reinterpret_cast<const float*>(data)[i];
  }
}
inline void encode_element(std::byte* data, DType dtype, std::size_t i, float value) {
  switch (dtype) {
    case DType::bf16:
      reinterpret_cast<bf16*>(data)[i] = bf16(value);
      break;
    case DType::f16:
      reinterpret_cast<f16*>(data)[i] = f16(value);
      break;
    default:
      reinterpret_cast<float*>(data)[i] = value;
      break;
  }
}

/// A float tensor on both sides. The host copy holds what the dtype can.
struct Values {
  DType dtype;
  std::vector<float> host;
  DeviceArray<std::byte> device;

  Values(DType type, std::size_t count) : dtype(type), host(count, NAN), device(count * dtype_size(type)) {}
  void upload() {
    std::vector<std::byte> raw(host.size() * dtype_size(dtype));
    for (std::size_t i = 0; i < host.size(); ++i) {
      encode_element(raw.data(), dtype, i, host[i]);
      host[i] = decode_element(raw.data(), dtype, i);
    }
    device.set(raw);
  }
  void randomise(Random& random, float scale) {
    for (float& x : host) x = random.normal(scale);
    upload();
  }
  std::vector<float> download() const {
    const std::vector<std::byte> raw = device.values();
    std::vector<float> out(host.size());
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = decode_element(raw.data(), dtype, i);
    return out;
  }
};

struct Shape {
  DType dtype = DType::bf16;
  int heads = 2, kv_heads = 2, dim = 64;
  std::vector<std::pair<int, int>> lengths;  // (Tq, Tk)
  MaskKind mask = MaskKind::none;
  float p = 0.0f;
  DType out = DType::bf16;
  bool packed_qkv = false;  // q, k, v interleaved as a QKV projection leaves them; needs Tq = Tk, H = Hkv
  float q_scale = 1.0f;
};

/// Gradients and results in f64.
struct Reference {
  std::vector<double> out, lse, dq, dk, dv, dbias;
  std::vector<double> bound;  // Σ_j P|v| of each element of out
  std::vector<double> size;   // most of Σ_d |q k| · scale of each row, and of its bias
};

struct DeviceProblem {
  Shape shape;
  std::vector<std::int32_t> cu_q{0}, cu_k{0}, doc_q, doc_k;
  int most_q = 1, most_k = 1;
  Values q, k, v, dout, out, dq, dk, dv;  // packed_qkv: q holds all three
  std::size_t k_offset = 0, v_offset = 0;
  DeviceArray<float> lse, bias, dbias;
  DeviceArray<std::byte> workspace;
  DeviceArray<std::uint32_t> drawn;
  DeviceArray<std::int64_t> drawn_begin;
  std::vector<float> bias_host;
  std::vector<std::uint8_t> visible_host;
  DeviceArray<std::int32_t> d_cu_q, d_cu_k, d_doc_q, d_doc_k;
  DeviceArray<std::uint8_t> visible;
  DeviceArray<cuda::AttentionTile> tiles, query_tiles, key_tiles;
  cuda::ForwardArgs args;
  cuda::BackwardArgs grad;

  static std::vector<std::int32_t> sums(const Shape& s, bool keys) {
    std::vector<std::int32_t> cu{0};
    for (const auto& [tq, tk] : s.lengths) cu.push_back(cu.back() + (keys ? tk : tq));
    return cu;
  }
  static std::size_t elements(const Shape& s, int rows, int heads) {
    return static_cast<std::size_t>(rows) * heads * s.dim;
  }

  explicit DeviceProblem(const Shape& s, std::uint64_t seed = 1)
      : shape(s),
        cu_q(sums(s, false)),
        cu_k(sums(s, true)),
        q(s.dtype, elements(s, rows_q(), s.heads) * (s.packed_qkv ? 3 : 1)),
        k(s.dtype, s.packed_qkv ? 0 : elements(s, rows_k(), s.kv_heads)),
        v(s.dtype, k.host.size()),
        dout(s.dtype, elements(s, rows_q(), s.heads)),
        out(s.out, dout.host.size()),
        dq(s.out, dout.host.size()),
        dk(s.out, elements(s, rows_k(), s.kv_heads)),
        dv(s.out, dk.host.size()),
        lse(static_cast<std::size_t>(rows_q()) * s.heads),
        d_cu_q(cu_q),
        d_cu_k(cu_k) {
    Random random(seed);
    q.randomise(random, s.q_scale);
    k.randomise(random, 1.0);
    v.randomise(random, 1.0);
    dout.randomise(random, 1.0);
    for (const auto& [tq, tk] : s.lengths) {
      most_q = std::max(most_q, tq);
      most_k = std::max(most_k, tk);
    }
    args.dtype = s.dtype;
    args.out_dtype = s.out;
    const std::int64_t hd = static_cast<std::int64_t>(s.heads) * s.dim,
                       kd = static_cast<std::int64_t>(s.kv_heads) * s.dim;
    const auto rows = [](const Values& x, std::int64_t row, std::int64_t dim) {
      return cuda::HeadRows{x.device.get(), row, dim};
    };
    args.q = rows(q, s.packed_qkv ? 3 * hd : hd, s.dim);
    args.k = rows(k, kd, s.dim);
    args.v = rows(v, kd, s.dim);
    if (s.packed_qkv) {
      k_offset = static_cast<std::size_t>(hd);
      v_offset = 2 * k_offset;
      args.k = {q.device.get() + k_offset * dtype_size(s.dtype), 3 * hd, s.dim};
      args.v = {q.device.get() + v_offset * dtype_size(s.dtype), 3 * hd, s.dim};
    }
    args.out = rows(out, hd, s.dim);
    args.lse = lse.get();
    args.lse_head = rows_q();
    args.lse_row = 1;
    args.cu_q = d_cu_q.get();
    args.cu_k = d_cu_k.get();
    args.batch = batch();
    args.heads = s.heads;
    args.kv_heads = s.kv_heads;
    args.dim = s.dim;
    args.q_rows = rows_q();
    args.k_rows = rows_k();
    args.scale = 1.0f / std::sqrt(static_cast<float>(s.dim));
    args.dropout.seed = 0x1234567890abcdefu;
    args.dropout.offset = 7;
    args.dropout.threshold = dropout_threshold(s.p);
    args.dropout.scale = 1.0f / (1.0f - s.p);
    set_mask(random);
    set_tiles();
    grad.forward = args;
    grad.grad_dtype = s.out;
    grad.dout = rows(dout, hd, s.dim);
    grad.dq = rows(dq, hd, s.dim);
    grad.dk = rows(dk, kd, s.dim);
    grad.dv = rows(dv, kd, s.dim);
    cuda::DeviceTraits traits;
    must(cuda::read_traits(0, traits), "device");
    workspace.reset(cuda::backward_workspace_bytes(grad, traits));
    workspace.fill(0xff);
    grad.workspace = workspace.get();
    if (args.mask.bias != nullptr) {
      dbias.reset(bias_host.size());
      dbias.fill(0);
      grad.dbias = dbias.get();
    }
  }
  DeviceProblem(const DeviceProblem&) = delete;

  /// Draws what dropout keeps, which both passes read from then on.
  void draw() {
    std::vector<std::int64_t> begins;
    std::int64_t words = 0;
    for (const auto& [tq, tk] : shape.lengths) {
      begins.push_back(words);
      words += shape.heads * cuda::drawn_words(tq, tk);
    }
    put(drawn_begin, begins);
    drawn.reset(static_cast<std::size_t>(words));
    args.dropout.drawn = drawn.get();
    args.dropout.drawn_begin = drawn_begin.get();
    grad.forward.dropout = args.dropout;
    must(cuda::draw_dropout(args, nullptr), "draw");
  }

  int batch() const { return static_cast<int>(shape.lengths.size()); }
  int rows_q() const { return cu_q.back(); }
  int rows_k() const { return cu_k.back(); }
  float q_value(int row, int head, int d) const { return q.host[row * args.q.row + head * args.q.head + d]; }
  float k_value(int row, int head, int d) const {
    return (shape.packed_qkv ? q : k).host[k_offset + row * args.k.row + head * args.k.head + d];
  }
  float v_value(int row, int head, int d) const {
    return (shape.packed_qkv ? q : v).host[v_offset + row * args.v.row + head * args.v.head + d];
  }
  std::size_t out_at(int row, int head, int d) const {
    return (static_cast<std::size_t>(row) * shape.heads + head) * shape.dim + d;
  }
  std::size_t bias_at(int b, int h, int i, int j) const {
    return ((static_cast<std::size_t>(b) * shape.heads + h) * most_q + i) * most_k + j;
  }

  template <class T>
  static void put(DeviceArray<T>& array, const std::vector<T>& values) {
    array.reset(values.size());
    array.set(values);
  }
  void set_mask(Random& random) {
    cuda::DeviceMask& mask = args.mask;
    mask.kind = shape.mask;
    if (shape.mask == MaskKind::sliding_window) mask.left = 70, mask.right = 9;
    if (shape.mask == MaskKind::document) {
      mask.right = 0;
      for (int i = 0; i < rows_q(); ++i) doc_q.push_back(static_cast<int>(random.range(0, 2)));
      for (int i = 0; i < rows_k(); ++i) doc_k.push_back(static_cast<int>(random.range(0, 2)));
      put(d_doc_q, doc_q);
      put(d_doc_k, doc_k);
      mask.document_q = d_doc_q.get();
      mask.document_k = d_doc_k.get();
    }
    if (shape.mask != MaskKind::additive_bias && shape.mask != MaskKind::boolean) return;
    const std::size_t count = static_cast<std::size_t>(batch()) * shape.heads * most_q * most_k;
    mask.batch = static_cast<std::int64_t>(shape.heads) * most_q * most_k;
    mask.head = static_cast<std::int64_t>(most_q) * most_k;
    mask.row = most_k;
    mask.key = 1;
    if (shape.mask == MaskKind::boolean) {
      for (std::size_t i = 0; i < count; ++i) visible_host.push_back(random.range(0, 3) != 0);
      for (int j = 0; j < most_k; ++j) visible_host[j] = 0;  // the first query sees nothing
      put(visible, visible_host);
      mask.visible = visible.get();
    } else {
      for (std::size_t i = 0; i < count; ++i) bias_host.push_back(i % 7 == 0 ? -INFINITY : random.normal());
      put(bias, bias_host);
      mask.bias = bias.get();
    }
  }
  void set_tiles() {
    cuda::WorkListShape list{
        cu_q,       cu_k,           shape.heads,     cuda::forward_tile_rows(shape.dtype),
        shape.mask, args.mask.left, args.mask.right, 4 * shape.dim};
    const std::vector<cuda::AttentionTile> forward = cuda::query_tiles(list);
    list.rows = cuda::backward_tile_rows(shape.dtype, shape.dim);
    const std::vector<cuda::AttentionTile> queries = cuda::query_tiles(list);
    list.heads = shape.kv_heads;
    const std::vector<cuda::AttentionTile> keys = cuda::key_tiles(list);
    put(tiles, forward);
    put(query_tiles, queries);
    put(key_tiles, keys);
    args.tiles = tiles.get();
    args.tile_count = static_cast<std::int32_t>(forward.size());
    grad.query_tiles = query_tiles.get();
    grad.query_tile_count = static_cast<std::int32_t>(queries.size());
    grad.key_tiles = key_tiles.get();
    grad.key_tile_count = static_cast<std::int32_t>(keys.size());
  }

  /// Written from the contract alone.
  bool sees(int b, int h, int i, int j) const {
    const int tq = cu_q[b + 1] - cu_q[b], tk = cu_k[b + 1] - cu_k[b], p = i + tk - tq;
    const cuda::DeviceMask& mask = args.mask;
    switch (mask.kind) {
      case MaskKind::causal_upper_left:
        return j <= i;
      case MaskKind::causal_lower_right:
        return j <= p;
      case MaskKind::sliding_window:
        return p - mask.left <= j && j <= p + mask.right;
      case MaskKind::document:
        return j <= p && doc_q[cu_q[b] + i] == doc_k[cu_k[b] + j];
      case MaskKind::boolean:
        return visible_host[bias_at(b, h, i, j)] != 0;
      default:
        return true;
    }
  }
  double keep(int b, int h, int i, int j) const {
    if (shape.p == 0) return 1;
    const PhiloxWords words = philox({static_cast<std::uint32_t>(j / 4), static_cast<std::uint32_t>(i),
                                      static_cast<std::uint32_t>(b * shape.heads + h), args.dropout.offset},
                                     args.dropout.seed);
    const auto threshold =
        static_cast<std::uint32_t>(std::floor(static_cast<double>(shape.p) * 4294967296.0));
    return words[static_cast<std::size_t>(j % 4)] >= threshold ? 1.0 / (1.0 - static_cast<double>(shape.p))
                                                               : 0.0;
  }

  Reference reference(bool gradients) const {
    Reference r;
    r.out.assign(out.host.size(), 0);
    r.bound = r.out;
    r.lse.assign(lse.size(), 0);
    r.size.assign(lse.size(), 0);
    if (gradients) {
      r.dq.assign(dq.host.size(), 0);
      r.dk.assign(dk.host.size(), 0);
      r.dv.assign(dv.host.size(), 0);
      r.dbias.assign(bias_host.size(), 0);
    }
    const int tasks = batch() * shape.kv_heads, workers = std::max(1u, std::thread::hardware_concurrency());
    std::vector<std::thread> threads;
    for (int w = 0; w < workers; ++w) {
      threads.emplace_back([&, w] {
        for (int t = w; t < tasks; t += workers) attend(r, t / shape.kv_heads, t % shape.kv_heads, gradients);
      });
    }
    for (std::thread& thread : threads) thread.join();
    return r;
  }
  void attend(Reference& r, int b, int kv, bool gradients) const {
    const int group = shape.heads / shape.kv_heads, tk = cu_k[b + 1] - cu_k[b], D = shape.dim;
    std::vector<double> p(tk), z(tk), dp(tk);
    for (int h = kv * group; h < (kv + 1) * group; ++h) {
      for (int i = 0; i < cu_q[b + 1] - cu_q[b]; ++i) {
        const int row = cu_q[b] + i;
        double top = -INFINITY, sum = 0, delta_i = 0;
        for (int j = 0; j < tk; ++j) {
          p[j] = -INFINITY;
          if (!sees(b, h, i, j)) continue;
          double dot = 0, size = 0;
          for (int d = 0; d < D; ++d) {
            const double term =
                double{q_value(row, h, d)} * double{k_value(cu_k[b] + j, kv, d)} * double{args.scale};
            dot += term;
            size += std::fabs(term);
          }
          p[j] = dot + (bias_host.empty() ? 0.0 : double{bias_host[bias_at(b, h, i, j)]});
          top = std::max(top, p[j]);
          double& most = r.size[static_cast<std::size_t>(h) * rows_q() + row];
          most = std::max(most, size + std::fabs(std::isfinite(p[j]) ? p[j] : 0.0));
        }
        for (double& x : p) sum += x = std::isinf(top) ? 0 : std::exp(x - top);
        r.lse[static_cast<std::size_t>(h) * rows_q() + row] = sum == 0 ? -INFINITY : top + std::log(sum);
        for (int j = 0; j < tk; ++j) {
          p[j] = sum == 0 ? 0 : p[j] / sum;
          z[j] = p[j] == 0 ? 0 : keep(b, h, i, j);
          for (int d = 0; d < D && z[j] != 0; ++d) {
            const double term = p[j] * z[j] * double{v_value(cu_k[b] + j, kv, d)};
            r.out[out_at(row, h, d)] += term;
            r.bound[out_at(row, h, d)] += std::fabs(term);
          }
        }
        if (!gradients) continue;
        const std::size_t kv_row = static_cast<std::size_t>(shape.kv_heads) * D;
        for (int j = 0; j < tk; ++j) {
          dp[j] = 0;
          if (p[j] == 0) continue;
          for (int d = 0; d < D; ++d) {
            const double g = double{dout.host[out_at(row, h, d)]};
            dp[j] += g * double{v_value(cu_k[b] + j, kv, d)} * z[j];
            r.dv[(cu_k[b] + j) * kv_row + kv * D + d] += p[j] * z[j] * g;
          }
          delta_i += p[j] * dp[j];
        }
        for (int j = 0; j < tk; ++j) {
          const double ds = p[j] * (dp[j] - delta_i);
          if (!r.dbias.empty()) r.dbias[bias_at(b, h, i, j)] = ds;
          for (int d = 0; d < D && ds != 0; ++d) {
            r.dq[out_at(row, h, d)] += double{args.scale} * ds * double{k_value(cu_k[b] + j, kv, d)};
            r.dk[(cu_k[b] + j) * kv_row + kv * D + d] += double{args.scale} * ds * double{q_value(row, h, d)};
          }
        }
      }
    }
  }
};

}  // namespace inkling::test
