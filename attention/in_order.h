// run_in_order(): tasks handed out strictly in order, whoever asks, so that long ones can go first.
// ThreadPool's contiguous shares would start every worker but the first with short ones.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "engine/cpu/thread_pool.h"

namespace inkling {

/// Calls task(index, worker) once for every index in [0, count); returns when all are done. One pool job.
template <class Task>
void run_in_order(ThreadPool& pool, std::int64_t count, Task&& task) {
  std::atomic<std::int64_t> next{0};
  pool.run(std::min<std::int64_t>(pool.size(), count), [&](std::int64_t, int worker) {
    for (std::int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < count;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      task(i, worker);
    }
  });
}

}  // namespace inkling
