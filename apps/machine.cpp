#include "apps/machine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "engine/ops.h"

namespace inkling::app {
namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class Work>
double best_of(int repeats, Work&& work) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const double start = seconds();
    work();
    best = std::min(best, seconds() - start);
  }
  return best;
}

}  // namespace

Ceilings measure_ceilings(ExecContext& context) {
  Ceilings result;
  constexpr std::int64_t kBytes = std::int64_t{256} << 20, kPart = std::int64_t{1} << 20;
  Buffer memory(static_cast<std::size_t>(kBytes));
  std::memset(memory.data(), 1, memory.size());
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(context.pool().size()) * 8);
  const double read = best_of(5, [&] {
    context.pool().run(kBytes / kPart, [&](std::int64_t part, int worker) {
      const auto* p = reinterpret_cast<const std::uint64_t*>(memory.data() + part * kPart);
      std::uint64_t a = 0, b = 0, c = 0, d = 0;
      for (std::int64_t i = 0; i < kPart / 8; i += 32) {
        __builtin_prefetch(p + i + 512), __builtin_prefetch(p + i + 520);
        __builtin_prefetch(p + i + 528), __builtin_prefetch(p + i + 536);
        for (int j = 0; j < 32; j += 4)
          a ^= p[i + j], b ^= p[i + j + 1], c ^= p[i + j + 2], d ^= p[i + j + 3];
      }
      sums[static_cast<std::size_t>(worker) * 8] += a + b + c + d;
    });
  });
  result.read_gb_s = static_cast<double>(kBytes) / read / 1e9;

  // A product whose panels stay in cache: the kernels' own peak.
  const std::int64_t m = 240, k = 256, n = 512;
  std::vector<float> x(static_cast<std::size_t>(m * k), 0.5f), w(static_cast<std::size_t>(k * n), 0.25f);
  std::vector<float> out(static_cast<std::size_t>(m * n));
  const PackedMatrix packed = pack(context, {w.data(), DType::f32, k, n, n, 1}, WeightFormat::f32);
  LinearArgs args;
  args.x = TensorView(x.data(), DType::f32, {m, k});
  args.weight = &packed;
  args.out = TensorView(out.data(), DType::f32, {m, n});
  const double product = best_of(20, [&] { linear(context, args); });
  result.fma_gflop_s = 2.0 * static_cast<double>(m * k * n) / product / 1e9;
  return result;
}

double peak_rss_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) / 1024.0;
  }
  return 0.0;
}

}  // namespace inkling::app
