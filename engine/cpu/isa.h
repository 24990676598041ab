// Which instruction set the CPU kernels use, chosen once at run time and explained.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace inkling {

/// Families of kernels, in rising order. Bits of results agree within one of them, not across them.
enum class Isa : std::uint8_t {
  portable,     ///< plain C++ with 4-lane vectors; runs anywhere
  avx2,         ///< AVX2, FMA, F16C
  avx512,       ///< AVX-512 F, BW, DQ, VL
  avx512_vnni,  ///< and VNNI: 8-bit dot products; bf16 weights are widened to f32
  avx512_bf16,  ///< and BF16: bf16 weights meet bf16 activations in vdpbf16ps
};

inline constexpr std::string_view kIsaNames[] = {"portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16"};
constexpr std::string_view isa_name(Isa isa) noexcept {
  return kIsaNames[static_cast<std::size_t>(isa)];
}
std::optional<Isa> parse_isa(std::string_view name) noexcept;

/// True when this CPU and this build can run `isa`.
bool isa_supported(Isa isa) noexcept;

/// The families that can run here, portable first.
std::vector<Isa> supported_isas();

struct IsaChoice {
  Isa isa = Isa::portable;
  struct Refusal {
    Isa isa;
    std::string reason;
  };
  std::vector<Refusal> refused;  ///< every other family, with the reason
};

/// The best family, or `forced`. Throws Error{device} when `forced` cannot run here.
/// avx512_bf16 is taken by itself only where vdpbf16ps runs at full rate (AMD Zen 4 and later); on Intel's
/// cores without AMX it runs at half the rate of widening to f32, so avx512_vnni is better there.
IsaChoice choose_isa(std::optional<Isa> forced = std::nullopt);

/// Model name of this CPU, for reports.
std::string cpu_name();

}  // namespace inkling
