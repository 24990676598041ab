// PackedBatch: the only batch there is. Tokens of B sequences back to back; nothing pads.
//
// Prefill is one long sequence, decode is many of length 1, a server step mixes both, scoring wants every
// row. Reused from step to step: clear() keeps the memory.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/kv_cache.h"

namespace inkling {

struct PackedBatch {
  std::vector<std::int32_t> ids;         ///< (N)
  std::vector<std::int32_t> positions;   ///< (N) place of each token in its sequence, from 0
  std::vector<std::int32_t> cu_seqlens;  ///< (B+1) sequence b owns tokens cu_seqlens[b] … cu_seqlens[b+1]
  std::vector<std::int32_t> cu_wanted;   ///< (B+1) its wanted logits are rows cu_wanted[b] … cu_wanted[b+1]
  std::vector<KvSequence*> sequences;    ///< (B) each at most once
  /// Tokens whose ids are in the memory of the step's device and not known here, where ids has zeros.
  struct Drawn {
    std::int64_t first = 0, count = 0;
    const std::int32_t* ids = nullptr;
  };
  std::vector<Drawn> drawn;

  PackedBatch() { clear(); }

  void clear() {
    ids.clear();
    positions.clear();
    sequences.clear();
    drawn.clear();
    cu_seqlens.assign(1, 0);
    cu_wanted.assign(1, 0);
  }

  /// Appends `tokens` to `sequence` at its length(); logits are wanted after the last `wanted` of them.
  void add(KvSequence& sequence, std::span<const std::int32_t> tokens, std::int64_t wanted) {
    auto position = static_cast<std::int32_t>(sequence.length());
    for (const std::int32_t id : tokens) {
      ids.push_back(id);
      positions.push_back(position++);
    }
    cu_seqlens.push_back(static_cast<std::int32_t>(ids.size()));
    cu_wanted.push_back(cu_wanted.back() + static_cast<std::int32_t>(wanted));
    sequences.push_back(&sequence);
  }

  /// Appends the token whose id the device has at `id`; its logits are wanted.
  void add_drawn(KvSequence& sequence, const std::int32_t* id) {
    const Drawn last = drawn.empty() ? Drawn() : drawn.back();
    if (last.count > 0 && last.first + last.count == tokens() && last.ids + last.count == id) {
      ++drawn.back().count;
    } else {
      drawn.push_back({tokens(), 1, id});
    }
    constexpr std::int32_t kUnknown[] = {0};
    add(sequence, kUnknown, 1);
  }

  /// Throws Error{usage}, naming figure and limit, unless the lists agree in length, offsets rise, ids are
  /// below `vocab_size` and positions below `n_positions`, and each sequence is there once and has room() for
  /// its tokens, which stand at its length() and after, and as many of them as rows are wanted.
  void validate(std::int64_t vocab_size, std::int64_t n_positions) const;

  std::int64_t size() const noexcept { return static_cast<std::int64_t>(sequences.size()); }  ///< B
  std::int64_t tokens() const noexcept { return static_cast<std::int64_t>(ids.size()); }      ///< N
  std::int64_t wanted() const noexcept { return cu_wanted.back(); }                           ///< R
};

}  // namespace inkling
