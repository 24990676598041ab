// Log: where the engine's remarks go. An explicit object that the application owns and passes down; the
// libraries hold no logger of their own and a null Log is silence.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace inkling {

enum class LogLevel : std::uint8_t { trace, debug, info, warn, error, off };

/// Parses "trace" … "off"; false when the name is unknown.
bool parse_log_level(std::string_view name, LogLevel& level);

/// Thread-safe. Copies share one sink.
class Log {
 public:
  using Sink = std::function<void(LogLevel, std::string_view)>;

  /// Discards everything.
  Log();
  /// Lines "[time] level message" on standard error.
  static Log to_stderr(LogLevel level);
  /// Every message at or above `level` goes to `sink`, which may be called from any thread.
  static Log to_sink(LogLevel level, Sink sink);

  bool enabled(LogLevel level) const noexcept;
  void write(LogLevel level, std::string_view message) const;
  void debug(std::string_view message) const { write(LogLevel::debug, message); }
  void info(std::string_view message) const { write(LogLevel::info, message); }
  void warn(std::string_view message) const { write(LogLevel::warn, message); }

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace inkling
