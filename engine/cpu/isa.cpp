#include "engine/cpu/isa.h"

#include <cstring>
#include <fstream>

#include "engine/base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace inkling {
namespace {

#if defined(__x86_64__)
// clang 14 does not know __builtin_cpu_supports("f16c").
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

// What is missing for `isa`, or "" when it can run.
std::string missing(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const auto need = [](bool have, const char* name) {
    return have ? "" : std::string("this CPU lacks ") + name;
  };
  std::string reason;
  const auto check = [&](bool have, const char* name) {
    if (reason.empty()) reason = need(have, name);
  };
  if (isa >= Isa::avx2) {
    check(__builtin_cpu_supports("avx2"), "AVX2");
    check(__builtin_cpu_supports("fma"), "FMA");
    check(has_f16c(), "F16C");
  }
  if (isa >= Isa::avx512) {
    check(__builtin_cpu_supports("avx512f"), "AVX512F");
    check(__builtin_cpu_supports("avx512bw"), "AVX512BW");
    check(__builtin_cpu_supports("avx512dq"), "AVX512DQ");
    check(__builtin_cpu_supports("avx512vl"), "AVX512VL");
  }
  if (isa >= Isa::avx512_vnni) check(__builtin_cpu_supports("avx512vnni"), "AVX512_VNNI");
  if (isa >= Isa::avx512_bf16) check(__builtin_cpu_supports("avx512bf16"), "AVX512_BF16");
  return reason;
#else
  return isa == Isa::portable ? "" : "not an x86-64 CPU";
#endif
}

bool amd() {
#if defined(__x86_64__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0) return false;
  char vendor[13] = {};
  std::memcpy(vendor, &ebx, 4);
  std::memcpy(vendor + 4, &edx, 4);
  std::memcpy(vendor + 8, &ecx, 4);
  return std::string_view(vendor) == "AuthenticAMD";
#else
  return false;
#endif
}

constexpr Isa kAll[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16};

}  // namespace

std::optional<Isa> parse_isa(std::string_view name) noexcept {
  for (const Isa isa : kAll) {
    if (isa_name(isa) == name) return isa;
  }
  return std::nullopt;
}

bool isa_supported(Isa isa) noexcept {
  return missing(isa).empty();
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : kAll) {
    if (isa_supported(isa)) isas.push_back(isa);
  }
  return isas;
}

IsaChoice choose_isa(std::optional<Isa> forced) {
  IsaChoice choice;
  if (forced) {
    const std::string reason = missing(*forced);
    require(reason.empty(), Code::device,
            [&] { return "isa: " + std::string(isa_name(*forced)) + " was asked for, but " + reason; });
    choice.isa = *forced;
  } else {
    for (const Isa isa : kAll) {
      if (isa == Isa::avx512_bf16 && !amd()) continue;
      if (isa_supported(isa)) choice.isa = isa;
    }
  }
  for (const Isa isa : kAll) {
    if (isa == choice.isa) continue;
    std::string reason = missing(isa);
    if (reason.empty() && forced) reason = std::string(isa_name(choice.isa)) + " was asked for";
    if (reason.empty() && isa < choice.isa) reason = std::string(isa_name(choice.isa)) + " is faster";
    if (reason.empty()) reason = "vdpbf16ps runs at half the rate of f32 FMA on this CPU";
    choice.refused.push_back({isa, reason});
  }
  return choice;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown CPU";
}

}  // namespace inkling
