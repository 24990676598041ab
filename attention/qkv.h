// Attention over the output of a QKV projection, packed: queries, keys and values side by side in each row.
#pragma once

#include <cstdint>
#include <span>

#include "attention/heads.h"
#include "attention/sdpa.h"
#include "attention/sdpa_backward.h"

namespace inkling {

/// sdpa() of qkv (N, 3C) with H heads into out (N, C), each sequence attending to itself.
inline SdpaArgs attention_of(const TensorView& qkv, std::int64_t heads,
                             std::span<const std::int32_t> cu_seqlens, const TensorView& out,
                             MaskKind mask = MaskKind::causal_lower_right) {
  const std::int64_t c = out.shape[1], dim = c / heads;
  SdpaArgs args;
  args.q = heads_of(qkv, 0, heads, dim);
  args.k = heads_of(qkv, c, heads, dim);
  args.v = heads_of(qkv, 2 * c, heads, dim);
  args.cu_q = args.cu_k = cu_seqlens;
  args.mask.kind = mask;
  args.out = heads_of(out, 0, heads, dim);
  return args;
}

/// Its gradient, from that of out, dout (N, C), into dqkv (N, 3C).
inline SdpaBackwardArgs gradient_of(const SdpaArgs& attention, const TensorView& dout,
                                    const TensorView& dqkv) {
  const std::int64_t heads = attention.q.shape[1], dim = attention.q.shape[2], c = heads * dim;
  SdpaBackwardArgs args;
  args.forward = attention;
  args.dout = heads_of(dout, 0, heads, dim);
  args.dq = heads_of(dqkv, 0, heads, dim);
  args.dk = heads_of(dqkv, c, heads, dim);
  args.dv = heads_of(dqkv, 2 * c, heads, dim);
  return args;
}

}  // namespace inkling
