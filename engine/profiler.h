// Profiler: where the time of a context goes, range by range, with the bytes and flops behind it.
//
//   Profiler profiler;
//   ExecContext context({.profiler = &profiler});
//   …
//   std::puts(profiler.table().c_str());
//
// Every op opens a range; callers may open their own around them. Ranges nest: a range's self time is its
// total less that of the ranges inside. Without a profiler a range costs one load and one branch, and the
// work it would report is not even computed: 0.3 ns on a Zen 4, 66 times in a decode step of GPT-2 124M,
// which takes milliseconds. With one it costs two readings of the clock, 0.1 µs.
//
// For the one thread that runs ops on the context; read it between ops.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/exec_context.h"

namespace inkling {

/// What a range must at least do.
struct ProfileWork {
  double bytes = 0;  ///< that must be read and written once
  /// Additions, multiplications, divisions, roots and functions such as exp, each as one; a fused
  /// multiply-add as two. Comparisons and integers are none.
  double flops = 0;
  /// Of the call, outermost extent first; 0: none. The last two tell calls of one name apart: "linear
  /// 768x2304".
  std::array<std::int64_t, 3> shape{};
};

class Profiler {
 public:
  /// Keeps the first `max_events` ranges one by one for the trace (48 bytes each); sums go on without end.
  explicit Profiler(std::size_t max_events = std::size_t{1} << 18);

  /// All ranges of one name.
  struct Row {
    std::string name;
    std::int64_t calls = 0;
    double total_seconds = 0, self_seconds = 0;
    double bytes = 0, flops = 0;
  };
  /// By falling self time. Ranges that are still open do not count.
  std::vector<Row> rows() const;
  /// rows() for people: name, calls, total and self time, share of all self time, GB/s, GFLOP/s; the `most`
  /// first.
  std::string table(std::size_t most = 20) const;

  /// Writes the ranges as a Chrome trace (JSON; chrome://tracing, Perfetto), in pieces.
  void write_trace(const std::function<void(std::string_view piece)>& write) const;
  /// Ranges that the trace has no room for.
  std::int64_t left_out() const noexcept { return left_out_; }

  /// Opens a range; `name` must outlive the Profiler. Rather use ProfileRange.
  void begin(std::string_view name, const ProfileWork& work);
  void end() noexcept;

 private:
  struct Sum {
    std::string_view name;
    std::array<std::int64_t, 2> shape{};
    std::int64_t calls = 0;
    std::uint64_t total_ns = 0, self_ns = 0;
    double bytes = 0, flops = 0;
    std::string title() const;
  };
  struct Open {
    std::size_t sum;
    std::uint64_t start_ns, inside_ns;
    ProfileWork work;
  };
  struct Event {
    std::uint32_t sum;
    std::uint64_t start_ns, length_ns;
    std::int64_t rows;
    double bytes, flops;
  };

  std::size_t sum_of(std::string_view name, const ProfileWork& work);

  std::size_t max_events_;
  std::uint64_t origin_ns_;
  std::vector<Sum> sums_;
  std::vector<Open> open_;
  std::vector<Event> events_;
  std::int64_t left_out_ = 0;
};

/// A range from here to the end of the scope. `work` is a callable that returns a ProfileWork.
class ProfileRange {
 public:
  template <class Work>
  ProfileRange(const ExecContext& context, std::string_view name, Work&& work)
      : profiler_(context.profiler()) {
    if (profiler_ != nullptr) [[unlikely]]
      profiler_->begin(name, std::forward<Work>(work)());
  }
  ProfileRange(const ExecContext& context, std::string_view name)
      : ProfileRange(context, name, [] { return ProfileWork{}; }) {}
  ~ProfileRange() {
    if (profiler_ != nullptr) [[unlikely]]
      profiler_->end();
  }
  ProfileRange(const ProfileRange&) = delete;
  ProfileRange& operator=(const ProfileRange&) = delete;

 private:
  Profiler* profiler_;
};

}  // namespace inkling
