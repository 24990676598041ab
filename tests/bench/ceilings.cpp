// What this machine can do at most: arithmetic peaks and read bandwidth, with 1 and with T threads, as one
// JSON object.
//
//     g++ -O3 -std=c++20 -march=native -pthread ceilings.cpp -o ceilings && ./ceilings 2
//
// Arithmetic: twelve independent accumulator chains in registers, so latency is hidden and nothing is loaded.
// Reads: each thread sums its own contiguous half of a huge-page buffer, with a software prefetch 4 KiB
// ahead. Best of several passes, because a ceiling is what is possible and every disturbance only lowers it.
// An ISA that is missing reads 0.

#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

namespace {

constexpr int kPasses = 5;
constexpr int kChains = 12;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds from a common start until the last of `threads` has run body(thread) once; best of kPasses.
template <class Body>
double best_seconds(int threads, Body body) {
  double best = 1e30;
  for (int pass = 0; pass < kPasses; ++pass) {
    std::atomic<int> ready{0};
    std::atomic<bool> go{false};
    std::vector<double> end(static_cast<std::size_t>(threads));
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t)
      pool.emplace_back([&, t] {
        ++ready;
        while (!go) _mm_pause();
        body(t);
        end[static_cast<std::size_t>(t)] = now();
      });
    while (ready < threads) std::this_thread::yield();
    const double start = now();
    go = true;
    for (auto& thread : pool) thread.join();
    best = std::min(best, *std::max_element(end.begin(), end.end()) - start);
  }
  return best;
}

#if !defined(__AVX512F__)
#error "the peers' benchmark measures its ceilings with AVX-512"
#endif

// One step of kChains chains: OP zmm31, zmm30 into zmm0..zmm11. Registers are named because g++ 12 keeps an
// array of accumulators in memory here, which would measure stores. Both operands are zero: no rate depends
// on the values.
#define CHAIN(op, n) op " %%zmm31, %%zmm30, %%zmm" #n "\n\t"
#define CHAINS(op)                                                                                        \
  asm volatile(CHAIN(op, 0) CHAIN(op, 1) CHAIN(op, 2) CHAIN(op, 3) CHAIN(op, 4) CHAIN(op, 5) CHAIN(op, 6) \
                   CHAIN(op, 7) CHAIN(op, 8) CHAIN(op, 9) CHAIN(op, 10) CHAIN(op, 11)::                   \
                       : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",  \
                         "xmm10", "xmm11")

template <class Step>
double giga_per_second(int threads, double ops_per_instruction, Step step) {
  constexpr long kSteps = 4'000'000;
  const double seconds = best_seconds(threads, [&](int) {
    asm volatile("vpxord %%zmm30, %%zmm30, %%zmm30\n\tvpxord %%zmm31, %%zmm31, %%zmm31" ::: "xmm30", "xmm31");
    for (long i = 0; i < kSteps; ++i) step();
  });
  return static_cast<double>(threads) * kSteps * kChains * ops_per_instruction / seconds / 1e9;
}

double fma_gflops(int threads) {
  return giga_per_second(threads, 32, [] { CHAINS("vfmadd231ps"); });
}

double bf16_gflops([[maybe_unused]] int threads) {
#if defined(__AVX512BF16__)
  return giga_per_second(threads, 64, [] { CHAINS("vdpbf16ps"); });
#else
  return 0;
#endif
}

double vnni_gops([[maybe_unused]] int threads) {
#if defined(__AVX512VNNI__)
  return giga_per_second(threads, 128, [] { CHAINS("vpdpbusd"); });
#else
  return 0;
#endif
}

long sum(const char* p, std::size_t bytes) {
  __m512i s0 = _mm512_setzero_si512();
  __m512i s1 = s0;
  __m512i s2 = s0;
  __m512i s3 = s0;
  for (std::size_t i = 0; i + 256 <= bytes; i += 256) {
    for (std::size_t line = 0; line < 256; line += 64) _mm_prefetch(p + i + 4096 + line, _MM_HINT_T0);
    s0 = _mm512_add_epi64(s0, _mm512_load_si512(p + i));
    s1 = _mm512_add_epi64(s1, _mm512_load_si512(p + i + 64));
    s2 = _mm512_add_epi64(s2, _mm512_load_si512(p + i + 128));
    s3 = _mm512_add_epi64(s3, _mm512_load_si512(p + i + 192));
  }
  alignas(64) long lanes[8];
  _mm512_store_si512(lanes, _mm512_add_epi64(_mm512_add_epi64(s0, s1), _mm512_add_epi64(s2, s3)));
  return std::accumulate(lanes, lanes + 8, 0L);
}

}  // namespace

int main(int argc, char** argv) {
  const int most = argc > 1 ? std::max(1, std::atoi(argv[1])) : 2;
  std::vector<int> counts{1};
  if (most > 1) counts.push_back(most);

  constexpr std::size_t kBuffer = 500'000'000;
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  void* map =
      mmap(nullptr, kBuffer + 2 * kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) return 1;
  madvise(map, kBuffer + 2 * kHugePage, MADV_HUGEPAGE);
  std::memset(map, 1, kBuffer + 2 * kHugePage);
  const char* data = static_cast<const char*>(map);

  const char* separator = "{";
  for (const int threads : counts) {
    std::printf("%s\"fma_gflops_%dt\": %.1f, \"bf16_gflops_%dt\": %.1f, \"vnni_gops_%dt\": %.1f", separator,
                threads, fma_gflops(threads), threads, bf16_gflops(threads), threads, vnni_gops(threads));
    separator = ", ";
    for (const std::size_t megabytes : {500, 250, 125, 65}) {
      const std::size_t part = megabytes * 1'000'000 / static_cast<std::size_t>(threads) / 4096 * 4096;
      std::vector<long> sums(static_cast<std::size_t>(threads));
      const double seconds = best_seconds(threads, [&](int t) {
        const auto index = static_cast<std::size_t>(t);
        sums[index] = sum(data + index * part, part);
      });
      for (const long s : sums)
        if (s == 42) std::puts("");  // keeps the sums alive
      const double bytes = static_cast<double>(part) * threads;
      std::printf(", \"read%zu_gbs_%dt\": %.1f", megabytes, threads, bytes / seconds / 1e9);
    }
  }
  std::puts("}");
}
