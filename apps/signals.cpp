#include "apps/signals.h"

#include <signal.h>
#include <sys/time.h>
#include <unistd.h>

namespace inkling::app {
namespace {

volatile sig_atomic_t pending = 0;
volatile sig_atomic_t patient = 0;

// Output is written as it comes, so leaving in the middle of a long step loses nothing.
extern "C" void leave(int) {
  ::_exit(128 + static_cast<int>(pending));
}

extern "C" void stop(int signal) {
  if (pending != 0) ::_exit(128 + signal);
  pending = signal;
  if (patient != 0) return;
  itimerval patience{};
  patience.it_value.tv_usec = 450'000;
  ::setitimer(ITIMER_REAL, &patience, nullptr);
}

void handle(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;  // no SA_RESTART: a blocked read or write must return
  sigemptyset(&action.sa_mask);
  ::sigaction(signal, &action, nullptr);
}

}  // namespace

void install_signal_handlers() {
  handle(SIGINT, stop);
  handle(SIGTERM, stop);
  handle(SIGALRM, leave);
  handle(SIGPIPE, SIG_IGN);
}

void wait_for_boundaries() noexcept {
  patient = 1;
}

int pending_signal() noexcept {
  return static_cast<int>(pending);
}

void check_interrupt() {
  if (pending != 0) throw Interrupted(pending_signal());
}

}  // namespace inkling::app
