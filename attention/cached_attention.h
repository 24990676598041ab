// cached_attention: one layer's attention of a packed step over the KV cache. What the GPT-2 forward calls.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "attention/kv_cache.h"
#include "engine/tensor.h"

namespace inkling {

class ExecContext;

/// A packed step of B sequences with N new tokens in total, of which ΣTq are queries.
struct CachedAttentionArgs {
  int layer = 0;
  // q, k, v and out are f32, on a GPU in the dtype of the cache; any row and head stride, the D elements of a
  // head side by side.
  TensorView q;  ///< (N, H, D), of which the rows of queries are read; or (ΣTq, H, D), those alone
  TensorView k;  ///< (N, Hkv, D)
  TensorView v;  ///< (N, Hkv, D)
  /// (B+1) Sequence b's new tokens are rows cu_new[b] … cu_new[b+1] of k, v.
  std::span<const std::int32_t> cu_new;
  /// (B+1) Its queries, the last of its new tokens, are rows cu_q[b] … cu_q[b+1] of out.
  std::span<const std::int32_t> cu_q;
  /// (B) All different (PackedBatch::validate() checks it, once per step), of one pool, room() ≥ their new
  /// tokens.
  std::span<KvSequence* const> sequences;
  float scale = 1.0f;
  TensorView out;  ///< (ΣTq, H·D), any row stride; must not overlap q, k, v
};

/// Writes the new keys and values behind length() of each sequence, then computes causal (lower-right)
/// attention of the queries over all tokens up to themselves. Does not advance(): that is the caller's, after
/// the last layer.
///
/// Hkv must divide H. One synchronisation point when every sequence brings few tokens (a decode step), two
/// otherwise. No heap allocation once the scratch of the pool is warm. Bits: see sdpa.h; equal for any
/// chunking of the same tokens. Honours the policy of the context (SdpaScope): flash and decode are the same
/// loops with the same bits, decode alone refuses more than 16 query rows, math is the oracle, slow, and
/// refuses what passes memory_limit. Under an order with math before another, bits then depend on the step
/// and the threads, since what math takes does. Throws Error{usage}, with the reasons when no allowed backend
/// can run the step.
void cached_attention(ExecContext& context, const CachedAttentionArgs& args);

/// What the layers of a step share.
struct CachedStepArgs {
  std::int64_t heads = 0;  ///< H
  KvShape cache;           ///< the layers, Hkv, D and, on a GPU, the dtype that its layers will ask for
  std::span<const std::int32_t> cu_new, cu_q;
  std::span<KvSequence* const> sequences;
};
/// Part of a key of Recorder::run() around the step's layers, unless they are no chain that comes back.
struct CachedStep {
  bool repeats = true;
  std::array<std::uint64_t, 6> key{};
};
/// Tells the device about a step before its first layer, so that the layers copy nothing in; once more with
/// the queries of the last layer, where those are fewer. Nothing on the CPU. May be left out where layers are
/// not recorded. Throws Error{usage} for a cache that the layers would refuse, which a repeated recording
/// does not look at, and as cached_attention() does when no allowed backend can run the step.
CachedStep begin_cached_step(ExecContext& context, const CachedStepArgs& args);

}  // namespace inkling
