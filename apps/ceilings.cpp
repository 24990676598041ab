#include "apps/ceilings.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "apps/console.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace inkling::app {
namespace {

// Seconds of a pool-wide job, best of several for about half a second.
template <class Work>
double best_seconds(Work&& work) {
  double best = 1e30;
  for (const double end = now() + 0.4; now() < end;) {
    const double start = now();
    work();
    best = std::min(best, now() - start);
  }
  return best;
}

std::uint64_t xor_of(const std::byte* data, std::size_t bytes) {
  using Lanes = std::uint64_t __attribute__((vector_size(64), may_alias));
  Lanes sum[4] = {};
  for (std::size_t i = 0; i < bytes; i += 256) {
    for (std::size_t line = 0; line < 4; ++line) {
      __builtin_prefetch(data + i + 4096 + 64 * line);
      sum[line] ^= *reinterpret_cast<const Lanes*>(data + i + 64 * line);
    }
  }
  const Lanes all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
  return all[0] ^ all[1] ^ all[2] ^ all[3] ^ all[4] ^ all[5] ^ all[6] ^ all[7];
}

double read_gb_s(ThreadPool& pool) {
  constexpr std::int64_t kParts = 256;
  constexpr std::size_t kPart = std::size_t{1} << 20;
  const Buffer memory(kParts * kPart + 8192);
  std::memset(memory.data(), 1, memory.size());
  std::atomic<std::uint64_t> kept{0};
  const double seconds = best_seconds([&] {
    pool.run(kParts, [&](std::int64_t part, int) {
      kept.fetch_xor(xor_of(memory.data() + static_cast<std::size_t>(part) * kPart, kPart));
    });
  });
  return static_cast<double>(kParts * kPart) / seconds / 1e9;
}

constexpr int kSteps = 100'000;
constexpr int kChains = 12;  // independent accumulators, so that latency hides

#if defined(__x86_64__)
// Registers by name: g++ 12 keeps an array of accumulators in memory, which would measure stores. Zeros in,
// zeros out.
#define INKLING_CHAIN(p, n) "vfmadd231ps %%" p "14, %%" p "15, %%" p #n "\n\t"
#define INKLING_CHAINS(p) \
  INKLING_CHAIN(p, 0)     \
  INKLING_CHAIN(p, 1)     \
  INKLING_CHAIN(p, 2)     \
  INKLING_CHAIN(p, 3)     \
  INKLING_CHAIN(p, 4)     \
  INKLING_CHAIN(p, 5)     \
  INKLING_CHAIN(p, 6)     \
  INKLING_CHAIN(p, 7) INKLING_CHAIN(p, 8) INKLING_CHAIN(p, 9) INKLING_CHAIN(p, 10) INKLING_CHAIN(p, 11)
#define INKLING_CLOBBERS                                                                                     \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm14", \
      "xmm15"

__attribute__((target("avx512f"))) void chains_512() {
  asm volatile("vzeroall" ::: INKLING_CLOBBERS);
  for (int i = 0; i < kSteps; ++i) asm volatile(INKLING_CHAINS("zmm")::: INKLING_CLOBBERS);
}
__attribute__((target("avx2,fma"))) void chains_256() {
  asm volatile("vzeroall" ::: INKLING_CLOBBERS);
  for (int i = 0; i < kSteps; ++i) asm volatile(INKLING_CHAINS("ymm")::: INKLING_CLOBBERS);
}
#undef INKLING_CHAIN
#undef INKLING_CHAINS
#undef INKLING_CLOBBERS

double fma_gflop_s(ThreadPool& pool, Isa isa) {
  if (isa == Isa::portable) return 0;
  const bool wide = isa >= Isa::avx512;
  const std::int64_t tasks = std::int64_t{4} * pool.size();
  const double seconds =
      best_seconds([&] { pool.run(tasks, [&](std::int64_t, int) { wide ? chains_512() : chains_256(); }); });
  const double per_step = 2.0 * kChains * (wide ? 16 : 8);
  return static_cast<double>(tasks) * kSteps * per_step / seconds / 1e9;
}
#else
double fma_gflop_s(ThreadPool&, Isa) {
  return 0;
}
#endif

}  // namespace

Ceilings measure_ceilings(ExecContext& context) {
  context.require_cpu("ceilings");
  return {read_gb_s(context.pool()), measure_gflop_s(context)};
}

double measure_gflop_s(ExecContext& context) {
  return fma_gflop_s(context.pool(), context.isa());
}

double peak_rss_mb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) * 1024 / 1e6;
  }
  return 0;
}

}  // namespace inkling::app
