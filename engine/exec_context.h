// ExecContext: everything an op needs to run, made once and passed down. There is no default context.
//
// Owns the thread pool, the choice of instruction set and the Backend. One thread at a time may run ops on a
// context; two contexts never share anything and may run side by side.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/backend.h"
#include "engine/base/log.h"
#include "engine/cpu/isa.h"
#include "engine/cpu/thread_pool.h"

namespace inkling {

class Profiler;

struct ExecOptions {
  Device device = Device::cpu;  ///< automatic: cuda where it can run, else cpu, with the reason logged
  int ordinal = 0;              ///< which GPU
  int threads = 0;              ///< the caller's included; 0: the CPUs that this process may run on
  std::optional<Isa> isa;       ///< unset: environment INKLING_CPU_ISA, else the best
  Log log;
  Profiler* profiler = nullptr;  ///< records every op; outlives the context; null: nothing is recorded
};

class ExecContext {
 public:
  /// Throws Error{device} when the device or instruction set asked for is absent, Error{usage} for a bad
  /// option.
  explicit ExecContext(const ExecOptions& options = {});
  ~ExecContext();

  Backend& backend() noexcept { return *backend_; }
  const Backend& backend() const noexcept { return *backend_; }
  Device device() const noexcept { return backend_->device(); }
  /// Throws Error{device}, "WHAT: …", unless this is a context of the CPU: for what has no other form yet.
  void require_cpu(const char* what) const {
    require(device() == Device::cpu, Code::device, [&] {
      return std::string(what) + ": expected a context of the CPU, got " + backend_->description();
    });
  }
  ThreadPool& pool() noexcept { return *pool_; }
  const ThreadPool& pool() const noexcept { return *pool_; }
  Isa isa() const noexcept { return isa_.isa; }
  const IsaChoice& isa_choice() const noexcept { return isa_; }
  const Log& log() const noexcept { return log_; }
  /// Null when nothing is recorded.
  Profiler* profiler() const noexcept { return profiler_; }
  /// Records into `profiler` from here on, or nothing; returns what recorded before. Between ops.
  Profiler* record_into(Profiler* profiler) noexcept { return std::exchange(profiler_, profiler); }

  /// What a higher layer keeps with this context (its policies, its workspace): one T per type, made on first
  /// use.
  template <class T>
  T& attached() {
    static char kTag = 0;
    for (const auto& [tag, value] : attached_) {
      if (tag == &kTag) return *static_cast<T*>(value.get());
    }
    attached_.emplace_back(&kTag, std::make_shared<T>());
    return *static_cast<T*>(attached_.back().second.get());
  }

 private:
  Log log_;
  Profiler* profiler_;
  IsaChoice isa_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Backend> backend_;
  std::vector<std::pair<const char*, std::shared_ptr<void>>> attached_;  // keyed by the address of a tag
};

/// CPUs that this process may run on (its affinity mask), at least 1.
int available_cpus();

}  // namespace inkling
