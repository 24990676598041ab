// ThreadPool: the caller and size() − 1 workers share the tasks of one job at a time.
//
// Every worker starts with a contiguous share of the tasks, so that it streams contiguous weights, and then
// takes single tasks from the others' shares: a core that the host steals for a while stalls no more than the
// task it holds. Workers spin for a moment after a job and then sleep on a futex. A job costs well under a
// microsecond.
//
// Results never depend on which worker ran a task; tasks must not depend on each other. One job at a time:
// run() is for one calling thread at a time and must not be called from inside a task.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "engine/tensor.h"

namespace inkling {

class ThreadPool {
 public:
  /// `threads` ≥ 1 counts the caller. Throws Error{out_of_memory} when one cannot be started.
  explicit ThreadPool(int threads);
  ~ThreadPool() { stop(); }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const noexcept { return static_cast<int>(shares_.size()); }

  /// Calls task(index, worker) once for every index in [0, count), worker in [0, size()); returns when all
  /// are done. Allocates nothing. When tasks throw, the others run all the same, for any number of threads;
  /// the first exception is rethrown here after the job has ended.
  template <class Task>
  void run(std::int64_t count, Task&& task) {
    using Callable = std::remove_reference_t<Task>;
    dispatch(
        count,
        [](void* self, std::int64_t index, int worker) { (*static_cast<Callable*>(self))(index, worker); },
        const_cast<void*>(static_cast<const void*>(&task)));
  }

  /// Makes scratch(worker) at least `bytes` long for every worker; keeps no content. Not from inside a job.
  void reserve_scratch(std::size_t bytes);
  /// 64-byte aligned memory private to `worker` while it runs a task.
  std::byte* scratch(int worker) const noexcept { return scratch_[static_cast<std::size_t>(worker)].data(); }

  /// Jobs run so far: one job is one synchronisation point.
  std::uint64_t jobs() const noexcept { return jobs_; }

 private:
  using Invoke = void (*)(void* task, std::int64_t index, int worker);
  struct alignas(64) Share {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };

  void dispatch(std::int64_t count, Invoke invoke, void* task);
  void work(int worker);
  void run_one(std::int64_t index, int worker) noexcept;
  void rethrow();
  void worker_main(int worker);
  bool enter() noexcept;
  void stop() noexcept;

  Invoke invoke_ = nullptr;
  void* task_ = nullptr;
  std::vector<Share> shares_;
  alignas(64) std::atomic<std::int64_t> unfinished_{0};
  alignas(64) std::atomic<std::uint32_t> epoch_{0};   // bumped per job; what sleepers wait on
  alignas(64) std::atomic<std::uint32_t> inside_{0};  // workers inside the job, and the "open" bit
  std::atomic<bool> stop_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;
  std::uint64_t jobs_ = 0;
  std::vector<Buffer> scratch_;
  std::vector<std::jthread> threads_;
};

}  // namespace inkling
