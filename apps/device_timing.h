// How long calls take on a device that runs behind the caller.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "apps/timing.h"
#include "engine/exec_context.h"

namespace inkling::app {

/// Seconds of one of call(0) … call(calls − 1), which are recorded as one chain and repeated: what the device
/// takes, with as good as nothing of what starting costs. Each sample is as many chains as take 10 ms.
template <class Call>
Spread time_recorded(ExecContext& context, int repeats, int calls, Call&& call) {
  constexpr double kSample = 0.01;
  const auto recorder = context.backend().recorder();
  const std::array<std::uint64_t, 1> key{};
  const auto run = [&](int chains) {
    const double start = now();
    for (int i = 0; i < chains; ++i) {
      recorder->run(key, [&] {
        for (int c = 0; c < calls; ++c) call(c);
      });
    }
    context.backend().synchronise();
    check_interrupt();
    return now() - start;
  };
  run(2);  // makes what is kept; is recorded
  const double once = run(1);
  const int chains = static_cast<int>(std::clamp(std::ceil(kSample / once), 1.0, 1000.0));
  std::vector<double> samples(static_cast<std::size_t>(repeats));
  for (double& sample : samples) sample = run(chains) / chains / calls;
  return spread_of(std::move(samples));
}

}  // namespace inkling::app
