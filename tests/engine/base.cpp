// Error, Result and Log: what they hold, give back and let through.
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/error.h"
#include "engine/base/log.h"
#include "engine/base/result.h"

using namespace inkling;

TEST_CASE("an error tells what and where, and a check that passes builds no message") {
  bool built = false;
  const auto message = [&] { return built = true, std::string("op: argument: expected 1, got 2"); };
  CHECK_NOTHROW(require(true, Code::usage, message));
  CHECK_FALSE(built);
  try {
    require(false, Code::input, message);
    FAIL("nothing was thrown");
  } catch (const Error& error) {
    CHECK(error.code() == Code::input);
    CHECK(error.message() == "op: argument: expected 1, got 2");
    CHECK(error.where().find("base.cpp:") != std::string::npos);
    CHECK(error.message().find("base.cpp") == std::string::npos);
  }
}

TEST_CASE("a result is a value or the error that value() throws") {
  Result<std::unique_ptr<int>> value = std::make_unique<int>(7);
  REQUIRE(value);
  CHECK(**value == 7);
  CHECK(*std::move(value).value() == 7);
  const Result<int> failed = Error(Code::file, "f: missing");
  CHECK_FALSE(failed.has_value());
  CHECK(failed.error().code() == Code::file);
  CHECK_THROWS_WITH_AS((void)failed.value(), "f: missing", Error);
  CHECK(Result<void>().has_value());
  const Result<void> nothing = Error(Code::output, "disk full");
  CHECK_THROWS_WITH_AS(nothing.value(), "disk full", Error);
}

TEST_CASE("a log lets through its level and above, and is silent by itself") {
  std::vector<std::string> heard;
  const auto sink = [&](LogLevel, std::string_view text) { heard.emplace_back(text); };
  const Log log = Log::to_sink(LogLevel::info, sink);
  log.debug("one");
  log.info("two");
  log.warn("three");
  CHECK(heard == std::vector<std::string>{"two", "three"});
  CHECK_FALSE(log.enabled(LogLevel::off));
  CHECK_FALSE(Log().enabled(LogLevel::error));
  CHECK_FALSE(Log::to_sink(LogLevel::off, sink).enabled(LogLevel::error));
  LogLevel level = LogLevel::off;
  CHECK(parse_log_level("debug", level));
  CHECK(level == LogLevel::debug);
  CHECK_FALSE(parse_log_level("loud", level));
  CHECK(level == LogLevel::debug);
}
