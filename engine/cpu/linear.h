// linear_block(): a block of prepared rows times one panel of weights, in any format. Include only from
// sources of one ISA.
//
//   out[m][n] = residual[m][n] + act(Σ_k x[m][k] w[k][n] + bias[n])
//
// One walk per format; a row more or less changes no bit (tile.h says why for floats; integer sums are exact
// within a group and f32 across groups in order).
// Longer than a header: it is the source of one walk, compiled once per ISA.
#pragma once

#include <bit>

#include "engine/cpu/panels.h"
#include "engine/cpu/rows.h"
#include "engine/cpu/tile.h"

namespace inkling::cpu {

template <class V>
struct LinearKernels {
  using F = typename V::F;
  using I = typename V::I;
  static constexpr int L = V::kLanes;
  static constexpr int NV = V::kPanelVectors;
  static constexpr std::int64_t NR = NV * L;
  static constexpr std::int64_t kBlockRows = 120;   // C of a block is at most 30 KiB
  static constexpr std::int64_t kMatrixRows = 480;  // and at most 120 KiB where each block packs anew
  static constexpr std::int64_t kChunk =
      256;  // k per pass over a block: the panel's part stays near the core
  static_assert((kMatrixRows + kChunk) * NR * 4 + kChunk * NR * 2 <= std::int64_t{kLinearScratch});

  static void linear_block(const LinearBlock& block) {
    auto* c = reinterpret_cast<float*>(block.scratch);  // (rows, NR)
    if (block.weight == nullptr) {
      if (is_sum(block)) {
        unpacked(block, block.out + block.row_begin * block.out_stride + block.panel * NR, block.out_stride,
                 block.residual == nullptr ? Sum::start : Sum::go_on);
      } else {
        unpacked(block, c, NR, Sum::start);
        finish(block, c);
      }
      return;
    }
    const std::byte* panel = block.weight->panel_data(block.panel);
    switch (block.format) {
      case WeightFormat::f32:
        floats(block, reinterpret_cast<const float*>(panel), c);
        break;
      case WeightFormat::f16:
        floats(block, reinterpret_cast<const f16*>(panel), c);
        break;
      case WeightFormat::bf16:
        if constexpr (requires { &V::dot_bf16; }) {
          pairs(block, reinterpret_cast<const bf16*>(panel), c);
        } else {
          floats(block, reinterpret_cast<const bf16*>(panel), c);
        }
        break;
      case WeightFormat::int8:
        integers<Int8>(block, panel, c);
        break;
      case WeightFormat::int4:
        integers<Int4>(block, panel, c);
        break;
    }
    finish(block, c);
  }

 private:
  // --- f32, f16, bf16 weights and f32 activations
  template <class W>
  static void floats(const LinearBlock& b, const W* panel, float* c) {
    const auto* x = static_cast<const float*>(b.rows.data) + b.row_begin * b.rows.stride;
    const std::int64_t rows = b.row_end - b.row_begin, k = b.k;
    const int vectors = vectors_of(b);
    if (rows <= V::kTileRows) {
      with_lines_ahead(b, panel + k * NR, k * NR * std::int64_t{sizeof(W)}, [&](auto ahead) {
        product<V, W>(x, b.rows.stride, rows, panel, NR, k, vectors, c, NR, Sum::start, ahead);
      });
      return;
    }
    float* wide = c + kBlockRows * NR;  // (kChunk, NR): narrow weights are widened once per block
    for (std::int64_t begin = 0; begin < k; begin += kChunk) {
      const std::int64_t count = k - begin < kChunk ? k - begin : kChunk;
      const Sum sum = begin == 0 ? Sum::start : Sum::go_on;
      const W* narrow = panel + begin * NR;
      const float* w = wide;
      if constexpr (std::is_same_v<W, float>) {
        w = narrow;
      } else {
        for (std::int64_t i = 0; i < count * NR; i += L) V::store(wide + i, V::load(narrow + i));
      }
      with_lines_ahead(b, narrow + count * NR, kChunk * NR * std::int64_t{sizeof(W)}, [&](auto ahead) {
        product<V, float>(x + begin, b.rows.stride, rows, w, NR, count, vectors, c, NR, sum, ahead);
      });
    }
  }

  /// What follows in the slab of weights is the panel's next chunk, or the next panel, as a rule the next
  /// task of this thread; beyond the end nothing comes, and nothing fails. The fewer tiles of rows walk a
  /// chunk, the more of what follows each has to ask for.
  template <class Fn>
  static void with_lines_ahead(const LinearBlock& b, const void* from, std::int64_t bytes, Fn&& fn) {
    const auto* at = static_cast<const char*>(from);
    const std::int64_t rows = b.row_end - b.row_begin, lines = bytes / 64;
    if (rows <= V::kTileRows) return fn(LinesAhead<4>{at, lines / 4});
    if (rows <= 3 * V::kTileRows) return fn(LinesAhead<2>{at, lines / 2});
    fn(LinesAhead<1>{at, lines});
  }

  /// Vectors of a panel in which there are columns.
  static int vectors_of(const LinearBlock& b) {
    const std::int64_t columns = b.n - b.panel * NR;
    return columns >= NR ? NV : static_cast<int>((columns + L - 1) / L);
  }

  /// Whether the sums are the output, or go on from it, in whole vectors: they then need no other place.
  static bool is_sum(const LinearBlock& b) {
    return b.format == WeightFormat::f32 && b.bias == nullptr && b.pre_activation == nullptr &&
           b.activation == Activation::none && b.n % L == 0 &&
           (b.residual == nullptr || (b.residual == b.out && b.residual_stride == b.out_stride));
  }

  // --- a matrix that is packed on the way: each chunk of the panel serves all rows of the block
  static void unpacked(const LinearBlock& b, float* c, std::ptrdiff_t ldc, Sum first) {
    float* wide = reinterpret_cast<float*>(b.scratch) + kMatrixRows * NR;  // (kChunk, NR)
    auto* narrow = reinterpret_cast<bf16*>(wide + kChunk * NR);            // as much in bf16
    const std::int64_t rows = b.row_end - b.row_begin;
    for (std::int64_t begin = 0; begin < b.k; begin += kChunk) {
      const std::int64_t count = b.k - begin < kChunk ? b.k - begin : kChunk;
      const Sum sum = begin == 0 ? first : Sum::go_on;
      if (lies_well(b)) {
        const float* w = static_cast<const float*>(b.matrix->data) + b.panel * NR;
        chunk(b, w + begin * b.matrix->k_stride, b.matrix->k_stride, begin, count, c, ldc, sum,
              NothingAhead());
        continue;
      }
      PanelKernels<V>::gather_f32(*b.matrix, b.panel, begin, count, wide);
      if (b.format == WeightFormat::bf16) {
        PanelKernels<V>::store_bf16(wide, count, narrow);
        if constexpr (requires { &V::dot_bf16; }) {
          const auto* x = static_cast<const bf16*>(b.rows.data) + b.row_begin * b.rows.stride + begin;
          for_row_tiles<V::kTileRows>(rows, [&]<int MR>(std::int64_t row) {
            pair_tile<MR>(x + row * b.rows.stride, b.rows.stride, narrow, (count + 1) / 2, c + row * NR, sum,
                          NothingAhead());
          });
          continue;
        } else {
          for (std::int64_t i = 0; i < count * NR; i += L) V::store(wide + i, V::load(narrow + i));
        }
      }
      chunk(b, wide, NR, begin, count, c, ldc, sum, rows_ahead(b, begin + count));
    }
  }

  /// The piece of an f32 matrix that is packed next: the panel's chunk of k from `begin`, or at the panel's
  /// end the first of the next one. Pages are huge, as a rule, and what lies beyond the matrix fails nothing.
  static RowsAhead rows_ahead(const LinearBlock& b, std::int64_t begin) {
    const MatrixSource& m = *b.matrix;
    if (m.dtype != DType::f32) return {};
    const bool by_k = m.n_stride == 1;  // a row of memory is one k
    if (!by_k && m.k_stride != 1) return {};
    const std::int64_t panel = begin < b.k ? b.panel : b.panel + 1, k = begin < b.k ? begin : 0;
    RowsAhead ahead;
    ahead.from = static_cast<const char*>(m.data) + (panel * NR * m.n_stride + k * m.k_stride) * 4;
    ahead.stride = (by_k ? m.k_stride : m.n_stride) * 4;
    ahead.shift = std::countr_zero(static_cast<std::uint64_t>(by_k ? NR : kChunk) * 4 / 64);
    ahead.steps = NR * kChunk * 4 / 64;
    return ahead;
  }

  /// C (+)= k from `begin` of the block's rows times as many rows of w.
  template <class Ahead>
  static void chunk(const LinearBlock& b, const float* w, std::ptrdiff_t ldw, std::int64_t begin,
                    std::int64_t count, float* c, std::ptrdiff_t ldc, Sum sum, Ahead ahead) {
    const auto* x = static_cast<const float*>(b.rows.data);
    const std::int64_t rows = b.row_end - b.row_begin;
    const int vectors = vectors_of(b);
    if (b.rows.by_columns) {
      x += begin * b.rows.stride + b.row_begin;
      product<V, float, By::columns>(x, b.rows.stride, rows, w, ldw, count, vectors, c, ldc, sum, ahead);
    } else {
      x += b.row_begin * b.rows.stride + begin;
      product<V, float>(x, b.rows.stride, rows, w, ldw, count, vectors, c, ldc, sum, ahead);
    }
  }

  /// Whether the tiles may read the matrix where it is: whole vectors side by side, in short rows.
  static bool lies_well(const LinearBlock& b) {
    const MatrixSource& m = *b.matrix;
    return b.format == WeightFormat::f32 && m.dtype == DType::f32 && m.n_stride == 1 && m.n % L == 0 &&
           m.k_stride <= kShortRow;
  }

  // --- bf16 weights and bf16 activations: pairs of k per instruction
  static void pairs(const LinearBlock& b, const bf16* panel, float* c) {
    const auto* x = static_cast<const bf16*>(b.rows.data) + b.row_begin * b.rows.stride;
    const std::int64_t rows = b.row_end - b.row_begin, half = (b.k + 1) / 2;
    const std::int64_t step = rows <= V::kTileRows ? half : kChunk;  // few rows walk the panel once
    for (std::int64_t begin = 0; begin < half; begin += step) {
      const std::int64_t count = half - begin < step ? half - begin : step;
      const bf16* w = panel + begin * 2 * NR;
      with_lines_ahead(b, w + count * 2 * NR, step * 2 * NR * std::int64_t{sizeof(bf16)}, [&](auto ahead) {
        for_row_tiles<V::kTileRows>(rows, [&]<int MR>(std::int64_t row) {
          const bf16* pairs_of_x = x + row * b.rows.stride + 2 * begin;
          const Sum sum = begin == 0 ? Sum::start : Sum::go_on;
          if (ahead.any()) {
            pair_tile<MR>(pairs_of_x, b.rows.stride, w, count, c + row * NR, sum, ahead);
            ahead.advance(count);
          } else {
            pair_tile<MR>(pairs_of_x, b.rows.stride, w, count, c + row * NR, sum, NothingAhead());
          }
        });
      });
    }
  }

  template <int MR, class Ahead>
  static void pair_tile(const bf16* x, std::ptrdiff_t stride, const bf16* w, std::int64_t count, float* c,
                        Sum sum, Ahead ahead) {
    F acc[MR][NV];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[r][j] = sum == Sum::start ? V::zero() : V::load(c + r * NR + j * L);
    }
#pragma GCC unroll 2
    for (std::int64_t i = 0; i < count; ++i, w += 2 * NR) {
      if constexpr (MR <= 2) {
        prefetch<4 * NR>(w + 24 * 2 * NR);
      } else {
        ahead(i);
      }
      I wv[NV];
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) wv[j] = V::load_u8(reinterpret_cast<const std::uint8_t*>(w + 2 * j * L));
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const I xv = V::iset1(load_word(x + r * stride + 2 * i));
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) acc[r][j] = V::dot_bf16(acc[r][j], xv, wv[j]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) V::store(c + r * NR + j * L, acc[r][j]);
    }
  }

  // --- int8 and int4 weights, quantised activations
  struct Int8 {
    static constexpr std::int64_t kGroup = kInt8Group;
    static constexpr std::int64_t kStep = 4;         // k per row of bytes
    static constexpr std::int64_t kHeader = NR * 2;  // bytes of scales before a group
    static constexpr bool kMinima = false;
    static I take(I bytes, int) { return bytes; }
    static I dot(I acc, I w, I x) { return V::dot_u8(acc, w, x); }
  };
  struct Int4 {
    static constexpr std::int64_t kGroup = kInt4Group;
    static constexpr std::int64_t kStep = 8;
    static constexpr std::int64_t kHeader = NR * 4;
    static constexpr bool kMinima = true;
    static I take(I bytes, int part) { return part == 0 ? V::low_nibbles(bytes) : V::high_nibbles(bytes); }
    static I dot(I acc, I w, I x) { return V::dot_u4(acc, w, x); }
  };

  // Each tile of rows walks the whole panel: its sums stay in L1 while the panel comes from L2.
  template <class Format>
  static void integers(const LinearBlock& b, const std::byte* panel, float* c) {
    const auto bytes = static_cast<std::int64_t>(b.weight->panel_bytes);
    with_lines_ahead(b, panel + bytes, bytes, [&](auto ahead) {
      for_row_tiles<V::kTileRows>(b.row_end - b.row_begin, [&]<int MR>(std::int64_t row) {
        const std::byte* group = panel;
        for (std::int64_t begin = 0, g = 0; begin < b.k; begin += Format::kGroup, ++g) {
          const std::int64_t count = b.k - begin < Format::kGroup ? b.k - begin : Format::kGroup;
          const std::int64_t steps = (count + Format::kStep - 1) / Format::kStep;
          group_tile<Format, MR>(b, b.row_begin + row, g, group, steps, c + row * NR,
                                 begin == 0 ? Sum::start : Sum::go_on, ahead);
          ahead.advance(steps);
          group += Format::kHeader + steps * 4 * NR;
        }
      });
    });
  }

  /// C (+)= one group: exact integer sums, then scale × sum (+ minimum × Σx) in f32.
  template <class Format, int MR, class Ahead>
  static void group_tile(const LinearBlock& b, std::int64_t row, std::int64_t g, const std::byte* group,
                         std::int64_t steps, float* c, Sum sum, Ahead ahead) {
    const std::ptrdiff_t stride = b.rows.stride, groups = b.rows.groups;
    const auto* q = static_cast<const std::int8_t*>(b.rows.data) + row * stride + g * Format::kGroup;
    const float* x_scale = b.rows.scale + row * groups + g;
    const std::int32_t* x_sum = b.rows.sum + row * groups + g;
    const auto* w = reinterpret_cast<const std::uint8_t*>(group + Format::kHeader);
    I acc[MR][NV];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const I start = Format::kMinima ? V::izero() : V::iset1(-128 * x_sum[r * groups]);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[r][j] = start;
    }
    for (std::int64_t i = 0; i < steps; ++i, w += 4 * NR, q += Format::kStep) {
      if constexpr (MR <= 2) {
        prefetch<4 * NR>(w + 24 * 4 * NR);
      } else {
        ahead(i);
      }
#pragma GCC unroll 2
      for (int part = 0; part < Format::kStep / 4; ++part) {
        I wv[NV];
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) wv[j] = Format::take(V::load_u8(w + 4 * j * L), part);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
          const I xv = V::iset1(load_word(q + r * stride + 4 * part));
#pragma GCC unroll 8
          for (int j = 0; j < NV; ++j) acc[r][j] = Format::dot(acc[r][j], wv[j], xv);
        }
      }
    }
    const auto* scales = reinterpret_cast<const f16*>(group);
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      const F scale = V::load(scales + j * L);
      const F minimum = Format::kMinima ? V::load(scales + NR + j * L) : V::zero();
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        float* out = c + r * NR + j * L;
        const float xs = x_scale[r * groups];
        F total = sum == Sum::start ? V::zero() : V::load(out);
        total = V::fma(V::mul(V::to_float(acc[r][j]), scale), V::set1(xs), total);
        if constexpr (Format::kMinima) {
          total = V::fma(minimum, V::set1(xs * static_cast<float>(x_sum[r * groups])), total);
        }
        V::store(out, total);
      }
    }
  }

  // --- the end of every product
  static void finish(const LinearBlock& b, const float* c) {
    switch (b.activation) {
      case Activation::none:
        return finish_rows(b, c, [](F v) { return v; });
      case Activation::gelu_tanh:
        return finish_rows(b, c, [](F v) { return simd::gelu_tanh<V>(v); });
      case Activation::gelu_erf:
        return finish_rows(b, c, [](F v) { return simd::gelu_erf<V>(v); });
      case Activation::relu:
        return finish_rows(b, c, [](F v) { return simd::relu<V>(v); });
    }
  }

  // One pass from the block's sums to the output: with few inputs this is a tenth of a product's time.
  template <class Act>
  static void finish_rows(const LinearBlock& b, const float* c, Act&& act) {
    const std::int64_t first = b.panel * NR;
    const std::int64_t columns = b.n - first < NR ? b.n - first : NR;
    const float* bias = b.bias != nullptr ? b.bias + first : nullptr;
    for (std::int64_t m = b.row_begin; m < b.row_end; ++m, c += NR) {
      const float* residual = b.residual != nullptr ? b.residual + m * b.residual_stride + first : nullptr;
      float* before =
          b.pre_activation != nullptr ? b.pre_activation + m * b.pre_activation_stride + first : nullptr;
      float* out = b.out + m * b.out_stride + first;
      RowKernels<V>::each(columns, [&](std::int64_t j, auto load, auto store) {
        F v = V::load(c + j);  // rows of c are whole vectors
        if (bias != nullptr) v = V::add(load(bias + j), v);
        if (before != nullptr) store(before + j, v);
        v = act(v);
        if (residual != nullptr) v = V::add(load(residual + j), v);
        store(out + j, v);
      });
    }
  }

  template <std::int64_t Bytes>
  static void prefetch(const void* p) {
    for (std::int64_t line = 0; line < Bytes; line += 64)
      __builtin_prefetch(static_cast<const char*>(p) + line);
  }

  static std::int32_t load_word(const void* p) {
    std::int32_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
  }
};

}  // namespace inkling::cpu
