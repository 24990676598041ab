// Error, Result and Log: what they hold, give back and let through.
#include <doctest/doctest.h>

#include <array>
#include <clocale>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/decimal.h"
#include "engine/base/error.h"
#include "engine/base/log.h"
#include "engine/base/result.h"
#include "engine/base/shown.h"

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

TEST_CASE("numbers as text are printf's in the C locale, whatever the locale is") {
  const auto printed = [](const char* pattern, int precision, double value) {
    std::array<char, 400> text;
    std::snprintf(text.data(), text.size(), pattern, precision, value);
    return std::string(text.data());
  };
  const double values[] = {0.0,
                           -0.0,
                           1e-5,
                           0.1,
                           1.0 / 3,
                           -2.5,
                           1234567.0,
                           1e9,
                           1e22,
                           5e-324,
                           3.0e-31,
                           0.9995,
                           std::numeric_limits<double>::max(),
                           -std::numeric_limits<double>::max(),
                           std::numeric_limits<double>::infinity()};
  for (const double value : values) {
    for (const int digits : {1, 6, 9, 12, 17}) {
      CHECK(significant(value, digits) == printed("%.*g", digits, value));
      CHECK(fixed(value, digits) == printed("%.*f", digits, value));
    }
    CHECK(fixed(value, 0) == printed("%.*f", 0, value));
  }
  // The rest of the test needs a locale with a comma, and not every machine has one.
  const std::string before = std::setlocale(LC_NUMERIC, nullptr);
  for (const char* name : {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "fr_FR"}) {
    if (std::setlocale(LC_NUMERIC, name) != nullptr) break;
  }
  CHECK(significant(2.5, 9) == "2.5");
  CHECK(fixed(2.5, 3) == "2.500");
  std::setlocale(LC_NUMERIC, before.c_str());
}

TEST_CASE("a stranger's words are shown without what drives a terminal, and cut between characters") {
  CHECK(shown("wte.weight, naïve – 🖋") == "wte.weight, naïve – 🖋");
  CHECK(shown(std::string("a\0b\x1b[2J\x7f", 8)) == "a?b?[2J?");
  CHECK(shown("\xc2\x80|\xc2\x9b|\xc2\x9f|\xc2\xa0") == "?|?|?|\xc2\xa0");
  CHECK(in_quotes("a\nb") == "\"a?b\"");
  CHECK(shown("\xc2") == "\xc2");
  CHECK(shown("\xc2\x1b") == "\xc2?");
  const std::string eighty(80, 'x');
  CHECK(shown(eighty) == eighty);
  CHECK(shown(eighty + "y") == eighty + "...");
  for (const std::string character : {"ï", "–", "🖋"}) {
    for (std::size_t before = 70; before <= 80; ++before) {
      const std::string start(before, 'x');
      const std::string kept = before + character.size() <= 80 ? start + character : start;
      CHECK(shown(start + character + std::string(30, '\x01')).substr(0, kept.size()) == kept);
      CHECK(shown(start + character + std::string(30, 'y')) ==
            kept + std::string(kept == start ? 0 : 80 - kept.size(), 'y') + "...");
    }
  }
  CHECK(shown(std::string(500, '\x80')) == std::string(80, '\x80') + "...");  // no UTF-8, and no less a text
}
