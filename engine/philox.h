// Philox-4x32-10: the one source of randomness. Counter-based (Salmon, Moraes, Dror & Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011, §3.3): philox(counter, seed) is a pure function, so the same seed
// gives the same dropout mask and the same sample on every device, in every batch and in any order of work.
#pragma once

#include <array>
#include <cstdint>

namespace inkling {

using PhiloxWords = std::array<std::uint32_t, 4>;

inline constexpr std::uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;  // multipliers
inline constexpr std::uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;  // key steps

/// Four random words.
constexpr PhiloxWords philox(PhiloxWords c, std::uint64_t seed) noexcept {
  auto k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1) {
    const std::uint64_t a = std::uint64_t{kPhiloxM0} * c[0], b = std::uint64_t{kPhiloxM1} * c[2];
    c = {static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(b),
         static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(a)};
  }
  return c;
}

/// The top 53 bits of two words as a double in [0, 1): exact on every machine.
constexpr double philox_unit(std::uint32_t high, std::uint32_t low) noexcept {
  return static_cast<double>((std::uint64_t{high} << 32 | low) >> 11) * 0x1p-53;
}

/// Dropout keeps an element whose word is at least this: the rate is exact to 2⁻³².
constexpr std::uint32_t dropout_threshold(float p) noexcept {
  return static_cast<std::uint32_t>(static_cast<double>(p) * 0x1p32);
}

// Known answers of the authors' Random123 library.
static_assert(philox({0, 0, 0, 0}, 0) == PhiloxWords{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
static_assert(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, 0xffffffffffffffff) ==
              PhiloxWords{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
static_assert(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822) ==
              PhiloxWords{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});

}  // namespace inkling
