// CpuKernels: one table of function pointers per instruction set; everything above is plain C++.
//
// A product runs in two steps. prepare() turns a row of activations into what the weights want to meet (f32,
// bf16, or signed bytes with a scale per group), applying the LayerNorm on the way. linear_block() multiplies
// a block of prepared rows with one panel and applies bias, activation and residual while the block is in
// cache.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/philox.h"
#include "engine/training_ops.h"

namespace inkling::cpu {

/// How prepared activations are stored.
enum class InputKind : std::uint8_t { f32, bf16, quantised };

/// Rows of prepared activations. f32 rows may be the caller's own.
struct Rows {
  InputKind kind = InputKind::f32;
  const void* data = nullptr;         // (M, stride) of float, bf16 or int8
  std::ptrdiff_t stride = 0;          // elements from row to row
  bool by_columns = false;            // or from column to column: f32 beside a matrix alone
  const float* scale = nullptr;       // (M, groups) quantised only
  const std::int32_t* sum = nullptr;  // (M, groups) sum of the group's bytes
  std::int64_t groups = 0;
};

/// One row to prepare. `out`, `scale` and `sum` are the row's own; `out` is as long as the padded K.
struct PrepareRow {
  const float* x = nullptr;  // (K)
  std::int64_t k = 0, k_padded = 0;
  LayerNorm norm;
  std::int64_t group = 0;  // inputs per scale, 0 for floats
  void* out = nullptr;
  float* scale = nullptr;
  std::int32_t* sum = nullptr;
  float* normed = nullptr;  // (K) scratch, needed by bf16 and quantised
};

/// A block of rows times one panel of a packed matrix, or of one that is packed on the way.
struct LinearBlock {
  const PackedMatrix* weight = nullptr;
  const MatrixSource* matrix = nullptr;  // f32, used when weight is null
  WeightFormat format = WeightFormat::f32;
  std::int64_t k = 0, n = 0;
  Rows rows;  // rows.data is row 0 of the matrix, not of the block
  std::int64_t row_begin = 0, row_end = 0, panel = 0;
  const float* bias = nullptr;
  float* pre_activation = nullptr;
  std::ptrdiff_t pre_activation_stride = 0;
  Activation activation = Activation::none;
  const float* residual = nullptr;
  std::ptrdiff_t residual_stride = 0;
  float* out = nullptr;
  std::ptrdiff_t out_stride = 0;
  std::byte* scratch = nullptr;  // linear_scratch bytes
};

/// One row of layer_norm_backward. Everything is (N).
struct LayerNormBackwardRow {
  const float* x = nullptr;
  const float* dout = nullptr;
  const float* weight = nullptr;
  float epsilon = 0;
  std::int64_t n = 0;
  float* dx = nullptr;       // added to, like the sums below
  float* dweight = nullptr;  // of a few rows
  float* dbias = nullptr;
};

/// One row of dropout: counter[0] counts blocks of four elements from 0.
struct DropoutRow {
  const float* from = nullptr;      // (N)
  const float* residual = nullptr;  // (N) or null
  float* x = nullptr;               // (N), written; may be `from`
  std::int64_t n = 0;
  PhiloxWords counter{};
  std::uint64_t seed = 0;
  std::uint32_t threshold = 0;
  float scale = 0;
};

/// What one step of AdamW is for every element (training_ops.h).
struct AdamWStep {
  float gradient_scale = 0;
  float decay = 0;  // 1 − learning_rate · weight_decay
  float to_m = 0;   // 1 − beta1
  float beta2 = 0;
  float to_v = 0;          // 1 − beta2
  float rate = 0;          // learning_rate / (1 − beta1^step)
  float inverse_root = 0;  // 1 / √(1 − beta2^step)
  float epsilon = 0;
};

struct CpuKernels {
  Isa isa = Isa::portable;
  std::int64_t panel = 0;                 // columns per panel
  std::int64_t block_rows = 0;            // most rows of one LinearBlock of a packed matrix
  std::int64_t matrix_rows = 0;           // and of one that is packed on the way
  InputKind bf16_input = InputKind::f32;  // what bf16 weights meet

  void (*pack_panel)(const MatrixSource& source, WeightFormat format, std::int64_t panel, std::byte* out,
                     std::byte* scratch);
  void (*unpack_column)(const PackedMatrix& matrix, std::int64_t n, float* out);
  void (*prepare)(InputKind kind, const PrepareRow& row);
  void (*linear_block)(const LinearBlock& block);
  void (*add_row)(const float* a, float* inout, std::int64_t n);
  void (*layer_norm)(const float* x, std::int64_t n, const LayerNorm& norm, float* out);
  void (*softmax)(float* x, std::int64_t n);
  void (*log_softmax)(float* x, std::int64_t n);
  void (*activate)(float* x, std::int64_t n, Activation activation);

  void (*layer_norm_backward)(const LayerNormBackwardRow& row);
  /// dx *= activation'(x), activated = activation(x) unless null.
  void (*activate_backward)(const float* x, float* dx, float* activated, std::int64_t n,
                            Activation activation);
  /// sums[c] += Σ_r x[r][c], x (rows, columns).
  void (*add_column_sums)(const float* x, std::ptrdiff_t stride, std::int64_t rows, std::int64_t columns,
                          float* sums);
  /// transpose.h
  void (*transpose)(const float* from, std::ptrdiff_t from_stride, std::int64_t rows, std::int64_t columns,
                    float* to, std::ptrdiff_t to_stride);
  void (*dropout)(const DropoutRow& row);
  float (*cross_entropy)(float* logits, std::int64_t n, std::int64_t target, float scale);
  double (*sum_of_squares)(const float* x, std::int64_t n);
  void (*adamw)(const AdamWStep& step, float* parameter, const float* gradient, float* m, float* v,
                std::int64_t n);
};

/// Rows of at most so many floats share pages and cache sets well enough that products read them across, too,
/// and a matrix of them in place: nothing is transposed or packed then.
inline constexpr std::int64_t kShortRow = 512;

/// Scratch that one linear_block of any shape needs.
inline constexpr std::size_t kLinearScratch = std::size_t{1} << 19;

/// The table of `isa`, which must be supported here.
const CpuKernels& kernels(Isa isa);

const CpuKernels& kernels_portable();
const CpuKernels& kernels_avx2();
const CpuKernels& kernels_avx512();
const CpuKernels& kernels_avx512_vnni();
const CpuKernels& kernels_avx512_bf16();

/// What activations meet weights of `format` in this table.
inline InputKind input_kind(const CpuKernels& table, WeightFormat format) noexcept {
  if (group_size(format) != 0) return InputKind::quantised;
  return format == WeightFormat::bf16 ? table.bf16_input : InputKind::f32;
}

/// K rounded up to what a panel's layout walks at once.
inline std::int64_t padded_k(const CpuKernels& table, WeightFormat format, std::int64_t k) noexcept {
  const std::int64_t step = format == WeightFormat::int4                   ? 8
                            : format == WeightFormat::int8                 ? 4
                            : input_kind(table, format) == InputKind::bf16 ? 2
                                                                           : 1;
  return (k + step - 1) / step * step;
}

/// Bytes of one panel, a multiple of 64.
std::size_t panel_nbytes(const CpuKernels& table, WeightFormat format, std::int64_t k) noexcept;

}  // namespace inkling::cpu
