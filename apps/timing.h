// How long a call takes: the median and the spread of some samples.
#pragma once

#include <algorithm>
#include <vector>

#include "apps/console.h"
#include "apps/signals.h"

namespace inkling::app {

struct Spread {
  double median = 0, min = 0, max = 0;  ///< seconds
};

/// Each sample is as many calls as take 10 ms, so that the clock's grain does not show. One call warms up.
template <class Call>
Spread time_calls(int repeats, Call&& call) {
  constexpr double kSample = 0.01;
  std::vector<double> all;
  call();
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
  std::sort(all.begin(), all.end());
  return {all[all.size() / 2], all.front(), all.back()};
}

}  // namespace inkling::app
