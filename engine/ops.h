// The plain ops of a transformer on one device, behind one seam.
//
// A caller describes an op in a small struct of views and calls the free function; the function checks the
// arguments once (Error{usage}: op, argument, expected, got) and makes one virtual call to the Backend of the
// context. All that an op is given lies in the Backend's memory, lists of indices included; those of a device
// are not looked at, and what is out of range there is undefined. Activations are f32, rows contiguous
// ("row-major, any row stride"); x, out and pre_activation of linear(), and out of layer_norm(), may have the
// Backend's activation_dtype() instead.
// Every output row is reduced in one fixed order that depends on neither the number of rows, nor the threads,
// nor the chunking: bits are equal alone and in any batch. Ops of one context must not run concurrently.
// Gradients: training_ops.h.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "engine/activation.h"
#include "engine/packed_matrix.h"
#include "engine/tensor.h"

namespace inkling {

class ExecContext;
struct DrawSettings;

/// Layer normalisation (Ba et al. 2016): (x − mean) / √(var + epsilon) · weight + bias, over a row of C.
struct LayerNorm {
  const float* weight = nullptr;  ///< (C); null means no normalisation at all where a LayerNorm is optional
  const float* bias = nullptr;    ///< (C) or null
  float epsilon = 1e-5f;
};

/// out = residual + act(norm(x[rows]) · w + bias). Fused: what is null or none costs nothing. What is written
/// overlaps nothing that is read, but for out and residual.
struct LinearArgs {
  TensorView x;                          ///< (M', K) f32
  std::span<const std::int32_t> rows;    ///< the M rows of x to take, in order; empty: all of them
  LayerNorm norm;                        ///< applied to each row of x first
  const PackedMatrix* weight = nullptr;  ///< (K, N); or null and `matrix` instead
  const float* bias = nullptr;           ///< (N) or null
  Activation activation = Activation::none;
  TensorView residual;          ///< (M, N) f32 or empty; may be `out` itself
  TensorView out;               ///< (M, N) f32
  TensorView pre_activation{};  ///< (M, N) f32, written: what the activation is applied to; or empty
  /// (K, N) f32, any strides, in the place of `weight`: packed on the way, block by block, for weights that
  /// change from step to step and rows enough to pay for it. Or already rounded to the activation_dtype() of
  /// its format.
  TensorView matrix{};
  WeightFormat matrix_format = WeightFormat::f32;  ///< f32 or bf16: what it is packed to
};
void linear(ExecContext& context, const LinearArgs& args);

/// out[i] = token_table[ids[i]] + position_table[positions[i]].
struct EmbedArgs {
  std::span<const std::int32_t> ids;          ///< (M), each in [0, V)
  std::span<const std::int32_t> positions;    ///< (M), each in [0, rows of position_table)
  const PackedMatrix* token_table = nullptr;  ///< (C, V): column id is the token's vector, as in a tied head;
  TensorView token_rows;                      ///< or null and (V, C) f32 here instead
  TensorView position_table;                  ///< (T, C) f32
  TensorView out;                             ///< (M, C) f32
};
void embed(ExecContext& context, const EmbedArgs& args);

/// out[i] = norm(x[rows[i]]), or x[rows[i]] when norm.weight is null.
struct NormArgs {
  TensorView x;                        ///< (M', C) f32
  std::span<const std::int32_t> rows;  ///< the M rows to take; empty: all
  LayerNorm norm;
  TensorView out;  ///< (M, C) f32
};
void layer_norm(ExecContext& context, const NormArgs& args);

/// In place over each row: x = e^(x − max) / Σ. A row of −inf alone gives zeros.
void softmax(ExecContext& context, TensorView x);
/// In place: log of the softmax of each row. A row of −inf alone gives NaN.
void log_softmax(ExecContext& context, TensorView x);
/// In place: x = activation(x).
void activate(ExecContext& context, TensorView x, Activation activation);

/// The k largest of each row, the largest first, ties by rising index: what a token is drawn from, without
/// the row. NaN counts as −inf.
struct TopArgs {
  TensorView x;                 ///< (M, N) f32
  TensorView values;            ///< (M, k) f32, contiguous, 1 ≤ k ≤ min(N, kMostTop)
  std::int32_t* ids = nullptr;  ///< (M, k)
};
inline constexpr std::int64_t kMostTop = 1024;
void top(ExecContext& context, const TopArgs& args);

/// One id for each draw, by the rule of draw_rule.h: the same on every device.
struct DrawArgs {
  TensorView logits;                       ///< (R, V) f32, NaN counts as −inf, V ≤ kMostDrawn
  const DrawSettings* settings = nullptr;  ///< (M), each of a row below R
  std::int64_t count = 0;                  ///< M
  std::int32_t* ids = nullptr;             ///< (M)
  std::int32_t* host_ids = nullptr;        ///< (M) the same in memory of allocate_on_host(), or null
};
void draw(ExecContext& context, const DrawArgs& args);

/// A matrix as a file holds it: element (k, n) at data + (k·k_stride + n·n_stride) elements. f32, f16 or
/// bf16. In host memory, or in the device's.
struct MatrixSource {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t k = 0, n = 0;
  std::int64_t k_stride = 0, n_stride = 0;
};
/// Packs for the context's kernels, on all its threads, into `memory` (packed_nbytes() bytes, aligned to 64;
/// the caller keeps it alive) or into memory of the matrix's own. Throws Error{out_of_memory}.
PackedMatrix pack(ExecContext& context, const MatrixSource& source, WeightFormat format,
                  std::byte* memory = nullptr);
/// What pack() has left at `memory` (aligned to 64), perhaps in another process: the matrix, with nothing
/// moved.
PackedMatrix packed_at(const ExecContext& context, const std::byte* memory, std::int64_t k, std::int64_t n,
                       WeightFormat format);
/// Bytes that a packed matrix takes, a multiple of 64.
std::size_t packed_nbytes(const ExecContext& context, std::int64_t k, std::int64_t n, WeightFormat format);
/// Column n of a packed matrix as f32 (K): what the kernels multiply with, quantisation included.
void unpack_column(const ExecContext& context, const PackedMatrix& matrix, std::int64_t n, float* out);

}  // namespace inkling
