// Scaled dot-product attention: the one contract of every backend.
//
//   out[i,h] = Σ_j P[i,j] v[j,h/G],   P = dropout(softmax_j(scale · q[i,h]·k[j,h/G] + mask[i,j])),   G = H /
//   Hkv
//
// Input is packed: B sequences back to back, sequence b owning rows cu_q[b] … cu_q[b+1] of q and cu_k[b] … of
// k and v; a dense batch is the equal-length case. Any strides, as long as the D elements of a head lie side
// by side: views into the (N, 3C) output of a QKV projection are fine. Accumulation is f32.
//
// Bits: a query row's result depends on its own q, keys, values, mask, and on nothing else; neither the
// batch, nor the number of queries, threads or chunks changes one bit within an ISA and backend; flash and
// decode agree bit for bit. A row that sees no key gives zeros, and lse = −inf.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "engine/tensor.h"

namespace inkling {

class ExecContext;
class KvSequence;

/// Which keys a query sees. Tq, Tk are the lengths of its sequence; i, j count from its start.
enum class MaskKind : std::uint8_t {
  none,                ///< every key
  causal_upper_left,   ///< j ≤ i
  causal_lower_right,  ///< j ≤ i + Tk − Tq: the last query sees the last key; what a KV cache needs
  sliding_window,      ///< p − left ≤ j ≤ p + right with p = i + Tk − Tq
  document,            ///< as sliding_window, and document_q[i] = document_k[j]
  additive_bias,       ///< every key; bias[i,j] is added to the scaled score (−inf hides)
  boolean,             ///< the keys where bias[i,j] is true
};

constexpr std::string_view mask_kind_name(MaskKind kind) noexcept {
  constexpr std::string_view kNames[] = {"none",           "causal_upper_left", "causal_lower_right",
                                         "sliding_window", "document",          "additive_bias",
                                         "boolean"};
  return kNames[static_cast<std::size_t>(kind)];
}

inline constexpr std::int64_t kUnlimited = INT64_MAX / 4;

struct Mask {
  MaskKind kind = MaskKind::none;
  std::int64_t left = kUnlimited, right = kUnlimited;  ///< sliding_window, document: ≥ 0
  std::span<const std::int32_t> document_q;            ///< (N) document of each query row
  std::span<const std::int32_t> document_k;            ///< (S) document of each key row
  TensorView bias;  ///< (B or 1, H or 1, ≥ Tq, ≥ Tk): f32 for additive_bias, boolean for boolean; extents 1
                    ///< broadcast
};

/// Zeroes each weight with probability p and scales the others by 1/(1−p). Element (b, h, i, j) is kept as a
/// pure function of (seed, offset, b, h, i, j) by Philox-4x32-10 (engine/philox.h), so any device and any
/// reference can redraw it. p = 0: no dropout.
struct Dropout {
  float p = 0.0f;
  std::uint64_t seed = 0;
  std::uint64_t offset = 0;  ///< differs per layer and step
};

struct SdpaArgs {
  TensorView q;                              ///< (N, H, D) f32, bf16 or f16
  TensorView k, v;                           ///< (S, Hkv, D), dtype of q; empty when `cache` is given
  std::span<const KvSequence* const> cache;  ///< (B) keys and values 0 … length−1 of each sequence instead
  int layer = 0;                             ///< of the cache
  std::span<const std::int32_t> cu_q;        ///< (B+1), rising from 0 to N
  std::span<const std::int32_t> cu_k;        ///< (B+1), rising from 0 to S; empty with a cache
  std::optional<float> scale;                ///< unset: 1/√D
  Mask mask;  ///< upper-left or lower-right must be chosen: there is no "is_causal"
  Dropout dropout;
  TensorView out;  ///< (N, H, D), f32 or dtype of q
  TensorView lse;  ///< (H, N) f32 natural log of Σ e^score, or empty
};

}  // namespace inkling
