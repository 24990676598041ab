#include "engine/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <array>
#include <utility>

namespace inkling {
namespace {

constexpr std::array<std::string_view, 6> kNames{"trace", "debug", "info", "warn", "error", "off"};

spdlog::level::level_enum to_spdlog(LogLevel level) {
  constexpr std::array<spdlog::level::level_enum, 6> kLevels{spdlog::level::trace, spdlog::level::debug,
                                                             spdlog::level::info,  spdlog::level::warn,
                                                             spdlog::level::err,   spdlog::level::off};
  return kLevels[static_cast<std::size_t>(level)];
}

}  // namespace

struct Log::Impl {
  LogLevel level = LogLevel::off;
  std::shared_ptr<spdlog::logger> logger;  // for to_stderr
  Sink sink;                               // for to_sink
};

bool parse_log_level(std::string_view name, LogLevel& level) {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return level = static_cast<LogLevel>(i), true;
  }
  return false;
}

Log::Log() : impl_(std::make_shared<Impl>()) {}

Log Log::to_stderr(LogLevel level) {
  auto impl = std::make_shared<Impl>();
  impl->level = level;
  // Not registered with spdlog: the logger belongs to this object, not to the process.
  impl->logger =
      std::make_shared<spdlog::logger>("inkling", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  impl->logger->set_level(to_spdlog(level));
  impl->logger->set_pattern("[%H:%M:%S.%e] %^%l%$ %v");
  Log log;
  log.impl_ = std::move(impl);
  return log;
}

Log Log::to_sink(LogLevel level, Sink sink) {
  auto impl = std::make_shared<Impl>();
  impl->level = level;
  impl->sink = std::move(sink);
  Log log;
  log.impl_ = std::move(impl);
  return log;
}

bool Log::enabled(LogLevel level) const noexcept {
  return level >= impl_->level && level != LogLevel::off;
}

void Log::write(LogLevel level, std::string_view message) const {
  if (!enabled(level)) return;
  if (impl_->logger) impl_->logger->log(to_spdlog(level), "{}", message);
  if (impl_->sink) impl_->sink(level, message);
}

}  // namespace inkling
