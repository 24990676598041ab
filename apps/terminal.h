// What a program owes its terminal: results on standard output and nothing else there, errors on standard
// error, progress only where someone watches, and Ctrl-C at a token's boundary.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>
#include <string_view>

#include "engine/base/error.h"

namespace inkling::app {

/// Standard output. A write that fails throws Error{output}; a reader that went away (EPIPE) throws Gone.
class Output {
 public:
  struct Gone {};
  void write(std::string_view text);
  void line(std::string_view text) { write(std::string(text) + "\n"); }
  void flush();
};

/// "inkling: error: …" on standard error. Returns the exit code.
int report(const Error& error);

/// A line of progress on standard error: only on a terminal, only after half a second, at most ten times a
/// second.
class Progress {
 public:
  Progress(std::string what, bool wanted);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void show(double share);

 private:
  std::string what_;
  bool wanted_, shown_ = false;
  std::chrono::steady_clock::time_point start_, last_;
};

/// While it lives, the first SIGINT or SIGTERM sets a flag and the second ends the process at once.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  /// 0, or the signal that came.
  static int signal() noexcept;
};

bool stderr_is_terminal();

}  // namespace inkling::app
