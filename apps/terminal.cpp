#include "apps/terminal.h"

#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

namespace inkling::app {
namespace {

// The one thing a signal handler may touch.
volatile std::sig_atomic_t interrupted = 0;

void on_signal(int number) {
  if (interrupted != 0) ::_exit(128 + number);
  interrupted = number;
}

}  // namespace

void Output::write(std::string_view text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size()) return;
  if (errno == EPIPE) throw Gone{};
  throw Error(Code::output, "standard output: " + std::string(std::strerror(errno)));
}

void Output::flush() {
  errno = 0;
  if (std::fflush(stdout) == 0) return;
  if (errno == EPIPE) throw Gone{};
  throw Error(Code::output, "standard output: " + std::string(std::strerror(errno)));
}

int report(const Error& error) {
  std::fprintf(stderr, "inkling: error: %s\n", error.what());
  return static_cast<int>(error.code());
}

bool stderr_is_terminal() {
  return ::isatty(STDERR_FILENO) == 1;
}

Progress::Progress(std::string what, bool wanted)
    : what_(std::move(what)),
      wanted_(wanted && stderr_is_terminal()),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {}

Progress::~Progress() {
  if (shown_) std::fprintf(stderr, "\r\033[K");
}

void Progress::show(double share) {
  using namespace std::chrono_literals;
  if (!wanted_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - start_ < 500ms || now - last_ < 100ms) return;
  last_ = now;
  shown_ = true;
  std::fprintf(stderr, "\r\033[K%s %3.0f %%", what_.c_str(), 100.0 * share);
}

InterruptGuard::InterruptGuard() {
  interrupted = 0;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

InterruptGuard::~InterruptGuard() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

int InterruptGuard::signal() noexcept {
  return interrupted;
}

}  // namespace inkling::app
