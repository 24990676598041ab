// How long a call takes: the median and the spread of some samples.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "apps/console.h"
#include "apps/signals.h"

namespace inkling::app {

struct Spread {
  double median = 0, min = 0, max = 0;
};

/// Of at least one sample, in the samples' unit.
inline Spread spread_of(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const std::size_t half = samples.size() / 2;
  const double median = samples.size() % 2 == 1 ? samples[half] : (samples[half - 1] + samples[half]) / 2;
  return {median, samples.front(), samples.back()};
}

/// Whether the caller has made the call once already, which for a slow one is as long as a sample.
enum class WarmUp : std::uint8_t { once, done };

/// Seconds of a call. Each sample is as many calls as take 10 ms, so that the clock's grain does not show.
template <class Call>
Spread time_calls(int repeats, Call&& call, WarmUp warm_up = WarmUp::once) {
  constexpr double kSample = 0.01;
  std::vector<double> all;
  if (warm_up == WarmUp::once) call();
  for (int i = 0; i < repeats; ++i) {
    const double start = now();
    double passed = 0;
    int calls = 0;
    do {
      call();
      ++calls;
      passed = now() - start;
    } while (passed < kSample);
    all.push_back(passed / calls);
    check_interrupt();
  }
  return spread_of(std::move(all));
}

}  // namespace inkling::app
