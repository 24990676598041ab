// Scaled dot-product attention: the one contract of every backend.
//
//   out[i,h] = Σ_j P[i,j] v[j,h/G],   P = dropout(softmax_j(scale · q[i,h]·k[j,h/G] + mask[i,j])),
//   G = H/Hkv
//
// Input is packed: B sequences back to back, sequence b owning rows cu_q[b] … cu_q[b+1] of q and cu_k[b] … of
// k and v; a dense batch is the equal-length case. Any strides, as long as the D elements of a head lie side
// by side: views into the (N, 3C) output of a QKV projection are fine. out and lse overlap no input.
// Accumulation is f32 (math: f64).
//
// Bits: a query row's result depends on its own q, keys, values, mask, and on nothing else; neither the
// batch, nor the number of queries, threads or chunks changes one bit within an ISA and backend; flash and
// decode agree bit for bit. A row that sees no key gives zeros, and lse = −inf.
//
// Tensors lie in the memory of the context's device; offsets and documents on the host. A GPU has flash and
// decode, which agree there to rounding; a call like the last one copies nothing there and waits for nothing.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

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
  /// (B, H, ≥ Tq, ≥ Tk) of the longest sequences: f32 for additive_bias, boolean for boolean. Extents of 1
  /// broadcast; any strides.
  TensorView bias;
  /// Unset, or what every sequence must have: the lengths that a mask was made for (CausalBias::mask()).
  struct Lengths {
    std::int64_t q = 0, k = 0;
  };
  std::optional<Lengths> lengths;
};

/// Zeroes each weight with probability p and scales the others by 1/(1−p). Weight (b, h, i, j) is kept when
/// word j mod 4 of philox({j / 4, i, b·H + h, offset}, seed) (engine/philox.h) is at least ⌊p · 2³²⌋, so any
/// device and any reference can redraw it; the rate is exact to 2⁻³². p = 0: no dropout.
struct Dropout {
  float p = 0.0f;  ///< in [0, 1)
  std::uint64_t seed = 0;
  std::uint32_t offset = 0;  ///< differs per layer and step
  /// Memory of sdpa_drawn_bytes(), at a multiple of kDrawnAlignment bytes, where sdpa() may leave what it
  /// drew, for sdpa_backward() of the same arguments to read: drawing costs a GPU more than attention itself.
  /// Or null. The results are the same.
  void* drawn = nullptr;
};
inline constexpr std::size_t kDrawnAlignment = 16;
/// 2 bits per query, key and head, in rows of whole 16 bytes.
std::size_t sdpa_drawn_bytes(std::int64_t heads, std::span<const std::int32_t> cu_q,
                             std::span<const std::int32_t> cu_k) noexcept;
/// Whether the device of `context` may use that memory for heads of `dim` in `dtype`: the kernels for compute
/// capability 9.0 do, up to 64 in 16 bits. Where it is false, null loses nothing.
bool sdpa_reads_drawn(ExecContext& context, DType dtype, std::int64_t dim);

struct SdpaArgs {
  TensorView q;                              ///< (N, H, D) f32, bf16 or f16
  TensorView k, v;                           ///< (S, Hkv, D), dtype of q; empty when `cache` is given
  std::span<const KvSequence* const> cache;  ///< (B) keys and values 0 … length−1 of each sequence instead
  int layer = 0;                             ///< of the cache
  std::span<const std::int32_t> cu_q;        ///< (B+1), rising from 0 to N
  /// (B+1), rising from 0 to S. With a cache empty, or sequence b has cu_k[b+1] − cu_k[b] keys, those behind
  /// length() included.
  std::span<const std::int32_t> cu_k;
  std::optional<float> scale;  ///< unset: 1/√D
  Mask mask;                   ///< upper-left or lower-right must be chosen: there is no "is_causal"
  Dropout dropout;
  TensorView out;  ///< (N, H, D), f32 or dtype of q
  TensorView lse;  ///< (H, N) f32 natural log of Σ e^score, or empty
};

/// How attention can be computed. All give the same function; flash and decode also the same bits.
enum class SdpaBackend : std::uint8_t {
  math,    ///< materialises the weights in f64: the oracle. O(Tq·Tk) memory per thread; O(T) on a GPU
  flash,   ///< tiled with an online softmax: O(T) memory, threads over (sequence, head, query block)
  decode,  ///< few queries: threads over (sequence, head, 512 keys) too, keys and values read once
};

constexpr std::string_view sdpa_backend_name(SdpaBackend backend) noexcept {
  constexpr std::string_view kNames[] = {"math", "flash", "decode"};
  return kNames[static_cast<std::size_t>(backend)];
}
std::optional<SdpaBackend> parse_sdpa_backend(std::string_view name) noexcept;

/// Which backends may be taken, in order of preference.
struct SdpaPolicy {
  std::vector<SdpaBackend> order = {SdpaBackend::decode, SdpaBackend::flash, SdpaBackend::math};
  /// Most bytes that grow with Tq·Tk; passing it is a refusal.
  std::size_t memory_limit = std::size_t{64} << 20;
};

struct SdpaSupport {
  bool ok = true;
  std::string reason;  ///< why not, with the values that caused it
};

struct SdpaChoice {
  struct Refusal {
    SdpaBackend backend;
    std::string reason;
  };
  std::optional<SdpaBackend> backend;  ///< none: every allowed backend refused
  std::vector<Refusal> refused;        ///< every other backend, those that the policy leaves out included
  /// One line per backend, for people.
  std::string to_string() const;
};

/// Whether `backend` can run `args`. Throws Error{usage} when the arguments themselves are wrong.
SdpaSupport supports(ExecContext& context, SdpaBackend backend, const SdpaArgs& args);
/// Bytes growing with Tq·Tk that `backend` would take for `args`: what memory_limit is held against. 0 but
/// for math on the CPU, of whose gradients it is 0 too. SIZE_MAX when it is more than that.
std::size_t sdpa_quadratic_bytes(ExecContext& context, SdpaBackend backend, const SdpaArgs& args);
/// What sdpa() would take under the policy of the context, and why not the others. Runs nothing.
SdpaChoice choose(ExecContext& context, const SdpaArgs& args);
/// Computes args.out (and args.lse) and returns the backend that did it. Throws Error{usage} for wrong
/// arguments, and with every refusal when no allowed backend can run them.
SdpaBackend sdpa(ExecContext& context, const SdpaArgs& args);

/// Replaces the policy of one context until the end of the scope. Scopes nest.
class SdpaScope {
 public:
  SdpaScope(ExecContext& context, SdpaPolicy policy);
  SdpaScope(ExecContext& context, std::initializer_list<SdpaBackend> order);
  ~SdpaScope();
  SdpaScope(const SdpaScope&) = delete;
  SdpaScope& operator=(const SdpaScope&) = delete;

 private:
  ExecContext& context_;
  SdpaPolicy previous_;
};
/// The policy in force.
const SdpaPolicy& sdpa_policy(ExecContext& context);

}  // namespace inkling
