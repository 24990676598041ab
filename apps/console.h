// Console: the two streams of the program. Standard output carries the model's text or JSON and nothing else;
// whatever is said about the work goes to standard error.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "engine/base/error.h"
#include "engine/base/log.h"
#include "engine/profiler.h"
#include "weights/atomic_file.h"

namespace inkling::app {

/// Whoever read our output has closed it (EPIPE): end quietly.
class ReaderGone : public std::exception {};

enum class Color : std::uint8_t { automatic, on, off };

/// What every command can be told about its output.
struct ConsoleOptions {
  LogLevel log_level = LogLevel::warn;
  bool quiet = false;  ///< errors only
  Color color = Color::automatic;
  bool profile = false;         ///< a table of where the time went, at the end
  std::filesystem::path trace;  ///< the same, range by range, as a Chrome trace; empty: none
};

class Console {
 public:
  explicit Console(const ConsoleOptions& options = {});

  /// Writes all bytes to standard output at once: nothing is buffered. Throws Error{output} or ReaderGone.
  static void write(std::string_view bytes);
  /// A line on standard error, unless quiet.
  void note(std::string_view line) const;
  /// A line on standard error.
  static void say(std::string_view line);
  /// A line on a terminal's standard error in place of the one before; empty: none.
  static void status(std::string_view line);
  /// "inkling: error: …" on standard error.
  void error(std::string_view message) const;

  bool quiet() const noexcept { return options_.quiet; }
  const Log& log() const noexcept { return log_; }
  /// What contexts shall record into; null unless --profile or --trace asks for it.
  Profiler* profiler() const noexcept { return profiler_.get(); }
  /// Begins to record if the options ask for it. Throws Error{output} when the trace cannot be written.
  void start_recording();
  /// Whether there is anything to report.
  bool has_recorded() const;
  /// What was recorded: the table on standard error, the trace to its file. Throws Error{output}.
  void report();

 private:
  ConsoleOptions options_;
  Log log_;
  std::unique_ptr<Profiler> profiler_;
  std::optional<AtomicFile> trace_;
};

bool stdout_is_terminal() noexcept;
bool stderr_is_terminal() noexcept;

/// A line "label 42%" on a terminal's standard error: only for work that passes half a second, at most ten
/// times a second, gone when the Progress is.
class Progress {
 public:
  Progress(const Console& console, std::string label);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(double share);

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  bool enabled_, shown_ = false;
  Clock::time_point next_;
};

/// Seconds of a steady clock, for timings.
double now() noexcept;

/// "%.3g" and its like, without the locale.
std::string format(const char* pattern, double value);

}  // namespace inkling::app
