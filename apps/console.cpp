#include "apps/console.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "apps/signals.h"
#include "tokenizer/utf8.h"

namespace inkling::app {
namespace {

constexpr std::size_t kTracePieces = std::size_t{1} << 16;  // bytes written at once

// Writes what it can: standard error has nowhere to report its own failures to.
void write_stderr(std::string_view bytes) noexcept {
  while (!bytes.empty()) {
    const ssize_t count = ::write(STDERR_FILENO, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;
    bytes.remove_prefix(static_cast<std::size_t>(count));
  }
}

bool wants_color(Color color) {
  if (color != Color::automatic) return color == Color::on;
  const char* no_color = std::getenv("NO_COLOR");
  return stderr_is_terminal() && (no_color == nullptr || *no_color == '\0');
}

}  // namespace

Console::Console(const ConsoleOptions& options)
    : options_(options), log_(Log::to_stderr(options.quiet ? LogLevel::error : options.log_level)) {}

void Console::start_recording() {
  if (options_.profile || !options_.trace.empty()) profiler_ = std::make_unique<Profiler>();
  if (!options_.trace.empty()) trace_.emplace(AtomicFile::create(options_.trace).value());
}

bool Console::has_recorded() const {
  return profiler_ != nullptr && !profiler_->rows().empty();
}

void Console::report() {
  if (profiler_ == nullptr) return;
  if (!has_recorded()) note("inkling: nothing was recorded: the command has run no op");
  if (options_.profile && has_recorded()) say(profiler_->table());
  if (!trace_) return;
  std::string pieces;
  profiler_->write_trace([&](std::string_view piece) {
    pieces += piece;
    if (pieces.size() < kTracePieces) return;
    trace_->write(pieces).value();
    pieces.clear();
  });
  trace_->write(pieces).value();
  trace_->commit().value();
  trace_.reset();
  if (profiler_->left_out() > 0) {
    note("inkling: the trace has room for the first ranges only; " + std::to_string(profiler_->left_out()) +
         " more are left out");
  }
}

void Console::write(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(STDOUT_FILENO, bytes.data(), bytes.size());
    if (count >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(count));
      continue;
    }
    if (errno == EINTR) {
      check_interrupt();  // a reader that does not read must not hold us
      continue;
    }
    if (errno == EPIPE) throw ReaderGone();
    throw Error(Code::output, "standard output: " + std::string(std::strerror(errno)));
  }
}

void Console::note(std::string_view line) const {
  if (!options_.quiet) say(line);
}

void Console::say(std::string_view line) {
  write_stderr(std::string(line) + '\n');
}

void Console::status(std::string_view line) {
  write_stderr("\r\x1b[K" + std::string(line));
}

void Console::error(std::string_view message) const {
  const bool color = wants_color(options_.color);
  say(std::string("inkling: ") + (color ? "\x1b[1;31merror:\x1b[0m " : "error: ") + to_valid_utf8(message));
}

bool stdout_is_terminal() noexcept {
  return ::isatty(STDOUT_FILENO) == 1;
}
bool stderr_is_terminal() noexcept {
  return ::isatty(STDERR_FILENO) == 1;
}

Progress::Progress(const Console& console, std::string label)
    : label_(std::move(label)),
      enabled_(!console.quiet() && stderr_is_terminal()),
      next_(Clock::now() + std::chrono::milliseconds(500)) {}

Progress::~Progress() {
  if (shown_) Console::status({});
}

void Progress::update(double share) {
  if (!enabled_) return;
  const auto time = Clock::now();
  if (time < next_) return;
  next_ = time + std::chrono::milliseconds(100);
  shown_ = true;
  Console::status(label_ + ' ' + format("%.0f", share * 100) + '%');
}

double now() noexcept {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string format(const char* pattern, double value) {
  char text[64];
  const int length = std::snprintf(text, sizeof text, pattern, value);
  return {text, static_cast<std::size_t>(length)};
}

}  // namespace inkling::app
