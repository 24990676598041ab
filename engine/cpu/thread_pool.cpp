#include "engine/cpu/thread_pool.h"

#include <chrono>
#include <new>
#include <string>
#include <system_error>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace inkling {
namespace {

constexpr std::uint32_t kOpen = std::uint32_t{1} << 31;
// Long enough to bridge the gap between two ops or the sampling of a token, short enough to be polite.
constexpr std::chrono::microseconds kSpin{200};

void pause() noexcept {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until done() or the time is over; true when done() held.
template <class Done>
bool spin(Done&& done) {
  const auto limit = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < limit);
  return done();
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  const auto refuse = [](const char* reason) {
    throw Error(Code::out_of_memory, "thread pool: cannot start thread: " + std::string(reason));
  };
  try {
    shares_ = std::vector<Share>(static_cast<std::size_t>(threads < 1 ? 1 : threads));
    scratch_.resize(shares_.size());
    threads_.reserve(shares_.size() - 1);
    for (int worker = 1; worker < size(); ++worker) {
      threads_.emplace_back([this, worker] { worker_main(worker); });
    }
  } catch (const std::system_error& error) {
    stop();
    refuse(error.what());
  } catch (const std::bad_alloc&) {
    stop();
    refuse("no memory");
  }
}

// Whatever ends a pool ends its threads here: each would be waited for, and sleeps until it is told.
void ThreadPool::stop() noexcept {
  stop_ = true;
  epoch_.fetch_add(1);
  epoch_.notify_all();
  threads_.clear();
}

void ThreadPool::reserve_scratch(std::size_t bytes) {
  for (Buffer& buffer : scratch_) {
    if (buffer.size() < bytes) buffer = Buffer(bytes);
  }
}

void ThreadPool::dispatch(std::int64_t count, Invoke invoke, void* task) {
  if (count <= 0) return;
  ++jobs_;
  invoke_ = invoke;
  task_ = task;
  if (count == 1 || size() == 1) {
    for (std::int64_t i = 0; i < count; ++i) run_one(i, 0);
    return rethrow();
  }
  const auto workers = static_cast<std::int64_t>(size());
  for (std::int64_t w = 0; w < workers; ++w) {
    Share& share = shares_[static_cast<std::size_t>(w)];
    share.next.store(count * w / workers, std::memory_order_relaxed);
    share.end = count * (w + 1) / workers;
  }
  unfinished_.store(count, std::memory_order_relaxed);
  inside_.store(kOpen, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();  // free when nobody sleeps

  work(0);
  while (!spin([&] { return unfinished_.load(std::memory_order_acquire) == 0; })) std::this_thread::yield();
  // Closed: a worker that wakes late finds nothing to enter, so only those inside are waited for.
  inside_.fetch_and(~kOpen, std::memory_order_acq_rel);
  while (!spin([&] { return inside_.load(std::memory_order_acquire) == 0; })) std::this_thread::yield();
  rethrow();
}

void ThreadPool::run_one(std::int64_t index, int worker) noexcept {
  try {
    invoke_(task_, index, worker);
  } catch (...) {
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::rethrow() {
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

// Own share first, then one task at a time from the others'.
void ThreadPool::work(int worker) {
  std::int64_t finished = 0;
  for (int i = 0; i < size(); ++i) {
    Share& share = shares_[static_cast<std::size_t>((worker + i) % size())];
    while (true) {
      const std::int64_t index = share.next.fetch_add(1, std::memory_order_relaxed);
      if (index >= share.end) break;
      run_one(index, worker);
      ++finished;
    }
  }
  if (finished > 0) unfinished_.fetch_sub(finished, std::memory_order_acq_rel);
}

bool ThreadPool::enter() noexcept {
  std::uint32_t seen = inside_.load(std::memory_order_acquire);
  while ((seen & kOpen) != 0) {
    if (inside_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) return true;
  }
  return false;
}

void ThreadPool::worker_main(int worker) {
  std::uint32_t seen = 0;
  while (true) {
    const auto changed = [&] { return epoch_.load(std::memory_order_acquire) != seen; };
    if (!spin(changed)) epoch_.wait(seen, std::memory_order_acquire);
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    if (!enter()) continue;
    work(worker);
    inside_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace inkling
