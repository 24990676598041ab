// How an id is drawn from a row of logits: the arithmetic that every device shares, so that equal logits give
// equal ids everywhere.
//
//   a logit that is no number    counts as −inf, which is never drawn beside any other
//   greedy                       the largest logit, of equals the lowest id
//   else                         the top_k by falling logit, equals by rising id; of those, in that order,
//                                as many as have top_p of their mass; of those, those with at least min_p of
//                                the largest mass; of those, by falling logit under top_k and by rising id
//                                without, the one at which the sum of masses passes the point drawn
//
// The mass of a token is e^((logit − max) / temperature) in units of 2⁻⁴⁰, an integer: a sum of masses is the
// same in any order, so that a GPU may add them as it likes, and no cut depends on rounding. What is less
// likely than the likeliest by more than 2⁻⁴¹ is never drawn; all of a vocabulary of 50257 such would have
// 2·10⁻⁸ of the mass. e^x is f32, relative error 2·10⁻⁷.
//
// Compile without contraction: a fused multiply-add rounds once where this rounds twice.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "engine/philox.h"

namespace inkling {

/// One draw. Temperature 1 and no cut by default.
struct DrawSettings {
  std::int32_t row = 0;         ///< of the logits
  std::int32_t forbidden = -1;  ///< an id that is never drawn: its logit counts as −inf; −1: none
  float scale = 1.0f;           ///< 1 / temperature; 0: greedy
  std::int32_t top_k = 0;       ///< 0: off; else below V and at most kMostTop
  double top_p = 1.0;           ///< 1: off
  double min_p = 0.0;           ///< 0: off
  std::uint64_t seed = 0;       ///< of Philox, with counter (position, sample, 0, 0)
  std::uint32_t position = 0;   ///< of the token drawn, in its sequence
  std::uint32_t sample = 0;     ///< among the samples of one prompt
};

inline constexpr float kNever = -std::numeric_limits<float>::infinity();
/// A logit as draws see it: orders of tokens want numbers.
constexpr float drawable(float logit) noexcept {
  return logit > kNever ? logit : kNever;
}

inline constexpr std::uint64_t kFullMass = std::uint64_t{1} << 40;  // of the likeliest
inline constexpr std::int64_t kMostDrawn = std::int64_t{1} << 22;   // V: masses sum to less than 2⁶³

/// e^x for −87 ≤ x ≤ 0, relative error 2e-7. Cody–Waite reduction x = n ln2 + r and a polynomial of degree 6,
/// as in engine/cpu/simd/math.h; plain arithmetic that a compiler turns into vectors.
constexpr float exp_near(float x) noexcept {
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  const float shifted = x * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  const auto exponent = (std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(kRound)) << 23;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(p) + exponent);
}

/// exp_near(), and 0 below −87.
constexpr float exp_negative(float x) noexcept {
  // The limit by the bits of |x| and without a comparison, which would keep the compiler from using vectors.
  constexpr auto kLimit = std::bit_cast<std::int32_t>(87.0f);
  const std::int32_t beyond = (std::bit_cast<std::int32_t>(x) & 0x7fffffff) - kLimit;
  const std::int32_t keep = beyond >> 31;  // all ones within the limit
  const float near = exp_near(-std::bit_cast<float>(kLimit + (beyond & keep)));
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(near) & static_cast<std::uint32_t>(keep));
}

inline constexpr double kMassRound = 6144.0;  // 1.5 · 2^12: adding it rounds to a multiple of 2^-40

/// A weight of at most 1 as a mass, to the nearest, plus the bits of kMassRound: what sums are made of in
/// vectors, which have no conversion to 64-bit integers.
constexpr std::uint64_t biased_mass(float weight) noexcept {
  return std::bit_cast<std::uint64_t>(static_cast<double>(weight) + kMassRound);
}
inline constexpr auto kMassBias = std::bit_cast<std::uint64_t>(kMassRound);

/// The mass of a token beside the largest logit of its row. Below e^−32 there is none.
constexpr std::uint64_t mass_of(float logit, float largest, float scale) noexcept {
  const float x = (logit - largest) * scale;
  return x > -32.0f ? biased_mass(exp_near(x)) - kMassBias : 0;
}

/// Tokens are kept until their masses sum to this: top_p of `total`, within [1, total].
constexpr std::uint64_t mass_to_keep(double top_p, std::uint64_t total) noexcept {
  const auto mass = static_cast<std::uint64_t>(top_p * static_cast<double>(total));
  return std::min(std::max<std::uint64_t>(mass, 1), total);
}

/// The smallest mass that min_p lets pass.
constexpr std::uint64_t least_mass(double min_p) noexcept {
  const double mass = min_p * static_cast<double>(kFullMass);
  const auto whole = static_cast<std::uint64_t>(mass);
  return whole + (static_cast<double>(whole) < mass ? 1 : 0);
}

/// Where a draw falls within [0, total): floor(total · r / 2⁶⁴) of 64 random bits r.
constexpr std::uint64_t drawn_point(const DrawSettings& draw, std::uint64_t total) noexcept {
  const PhiloxWords words = philox({draw.position, draw.sample, 0, 0}, draw.seed);
  const std::uint64_t high = total >> 32, low = total & 0xffffffffu;
  const std::uint64_t middle = high * words[1] + (low * words[1] >> 32);  // total < 2⁶³: no overflow
  const std::uint64_t other = low * words[0] + (middle & 0xffffffffu);
  return high * words[0] + (middle >> 32) + (other >> 32);
}

}  // namespace inkling
