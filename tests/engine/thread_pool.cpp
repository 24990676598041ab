#include "engine/cpu/thread_pool.h"

#include <doctest/doctest.h>

#include <atomic>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "tests/allocations.h"

using namespace inkling;

TEST_CASE("every task runs exactly once, for any count and any number of threads") {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    for (const std::int64_t count : {0, 1, 2, 3, 10, 1000}) {
      for (int repeat = 0; repeat < 50; ++repeat) {
        std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
        pool.run(count, [&](std::int64_t i, int worker) {
          REQUIRE(worker >= 0);
          REQUIRE(worker < threads);
          ++runs[static_cast<std::size_t>(i)];
        });
        for (const auto& r : runs) REQUIRE(r == 1);
      }
    }
  }
}

TEST_CASE("a pool that cannot be made says so and leaves no thread behind, whichever allocation fails") {
  std::int64_t failures = 0;
  for (bool made = false; !made; ++failures) {
    const test::FailingAllocation failing(failures);
    Code code = Code::internal;
    try {
      const ThreadPool pool(4);
      made = true;
    } catch (const Error& error) {
      code = error.code();
    }
    REQUIRE(failing.failed() != made);
    REQUIRE((made || code == Code::out_of_memory));
  }
  CHECK(failures > 4);  // the lists, and something of each thread
}

TEST_CASE("scratch belongs to one worker at a time") {
  ThreadPool pool(4);
  pool.reserve_scratch(64);
  std::atomic<int> mixed{0};
  pool.run(2000, [&](std::int64_t i, int worker) {
    auto* mine = reinterpret_cast<std::int64_t*>(pool.scratch(worker));
    *mine = i;
    for (int spin = 0; spin < 100; ++spin) {
      if (*static_cast<volatile std::int64_t*>(mine) != i) ++mixed;
    }
  });
  CHECK(mixed == 0);
}

TEST_CASE("an exception of a task reaches the caller after all others have run, and the pool lives on") {
  for (const int threads : {1, 3}) {
    for (const std::int64_t count : {1, 100}) {
      CAPTURE(threads);
      CAPTURE(count);
      ThreadPool pool(threads);
      std::atomic<std::int64_t> runs{0};
      const auto failing = [&](std::int64_t i, int) {
        if (i == 0) throw std::runtime_error("task 0");
        ++runs;
      };
      CHECK_THROWS_WITH(pool.run(count, failing), "task 0");
      CHECK(runs == count - 1);
      std::atomic<std::int64_t> sum{0};
      pool.run(100, [&](std::int64_t i, int) { sum += i; });
      CHECK(sum == 4950);
    }
  }
}

TEST_CASE("a slow task does not hold up the others' shares") {
  // Worker 0 waits in its first task until every task of the other half, and the rest of its own, is done.
  ThreadPool pool(2);
  std::atomic<int> done{0};
  pool.run(64, [&](std::int64_t i, int) {
    if (i == 0) {
      while (done < 63) std::this_thread::yield();
    } else {
      ++done;
    }
  });
  CHECK(done == 63);
}
