// What happens to single scores and weights: documents, bias, boolean masks, dropout. Shared by the forward
// and backward loops. Include only from sources of one ISA.
#pragma once

#include "attention/cpu/kernels.h"
#include "engine/philox.h"

namespace inkling::cpu {

template <class V>
struct ScoreRows {
  static constexpr float kLog2E = 1.44269504088896341f;

  /// Scores s[0 … count) of keys base … in base-2 units: hides what the mask hides, adds its bias.
  static void mask(const ScoreMask& m, std::int64_t query, std::int64_t head, std::int64_t base,
                   std::int64_t count, float* s) {
    constexpr float kHidden = -__builtin_inff();
    if (m.document_q != nullptr) {
      const std::int32_t document = m.document_q[query];
      const std::int32_t* keys = m.document_k + base;
      for (std::int64_t j = 0; j < count; ++j) s[j] = keys[j] == document ? s[j] : kHidden;
    }
    const std::ptrdiff_t at = head * m.head + query * m.row + base * m.key;
    if (m.bias != nullptr) {
      const float* bias = m.bias + at;
      for (std::int64_t j = 0; j < count; ++j) s[j] += bias[j * m.key] * kLog2E;
    }
    if (m.visible != nullptr) {
      const std::uint8_t* visible = m.visible + at;
      for (std::int64_t j = 0; j < count; ++j) s[j] = visible[j * m.key] != 0 ? s[j] : kHidden;
    }
  }

  /// Multiplies p[0 … count) of keys base … by 0 or scale. base is a multiple of 64 and count at most 64.
  /// Sixteen counters run side by side, so that the compiler turns the rounds into vectors.
  static void drop(const DropoutRule& rule, std::int64_t query, std::int64_t head, std::int64_t base,
                   std::int64_t count, float* p) {
    constexpr int kLanes = 16;
    std::uint32_t c[4][kLanes];
    for (int i = 0; i < kLanes; ++i) {
      c[0][i] = static_cast<std::uint32_t>(base / 4 + i);
      c[1][i] = static_cast<std::uint32_t>(query);
      c[2][i] = rule.head + static_cast<std::uint32_t>(head);
      c[3][i] = rule.offset;
    }
    auto k0 = static_cast<std::uint32_t>(rule.seed), k1 = static_cast<std::uint32_t>(rule.seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1) {
      for (int i = 0; i < kLanes; ++i) {
        const std::uint64_t a = std::uint64_t{kPhiloxM0} * c[0][i], b = std::uint64_t{kPhiloxM1} * c[2][i];
        c[0][i] = static_cast<std::uint32_t>(b >> 32) ^ c[1][i] ^ k0;
        c[2][i] = static_cast<std::uint32_t>(a >> 32) ^ c[3][i] ^ k1;
        c[1][i] = static_cast<std::uint32_t>(b);
        c[3][i] = static_cast<std::uint32_t>(a);
      }
    }
    for (std::int64_t j = 0; j < count; ++j) p[j] *= c[j % 4][j / 4] >= rule.threshold ? rule.scale : 0.0f;
  }
};

}  // namespace inkling::cpu
