// Ctrl-C and SIGTERM: the first asks the work to stop at its next boundary and gives it 450 ms, the second
// stops at once. The libraries install no handlers; this program does.
#pragma once

#include <exception>

namespace inkling::app {

/// The work was stopped by a signal: exit status 128 + signal.
class Interrupted : public std::exception {
 public:
  explicit Interrupted(int signal) noexcept : signal_(signal) {}
  int signal() const noexcept { return signal_; }

 private:
  int signal_;
};

/// Also ignores SIGPIPE: writes fail with EPIPE.
void install_signal_handlers();

/// From now on a boundary may be as far away as it is: the first signal waits for it, the second still stops
/// at once. For work that saves itself before it ends.
void wait_for_boundaries() noexcept;

/// The signal that asked us to stop, or 0.
int pending_signal() noexcept;

/// Throws Interrupted when a signal has asked us to stop.
void check_interrupt();

}  // namespace inkling::app
