#include "tokenizer/stop_matcher.h"

#include <doctest/doctest.h>

#include <ctime>

#include "tests/tokenizer/generated_text.h"

using namespace inkling;
using inkling::test::SplitMix64;

namespace {

/// Where the text ends: the stop string that completes first, of several the longest.
std::string offline(const std::string& text, const std::vector<std::string>& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const auto& stop : stops) {
      if (std::string_view(text).substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

/// The longest end of the text that is a proper beginning of a stop string.
std::size_t must_hold(const std::string& text, const std::vector<std::string>& stops) {
  for (std::size_t size = text.size(); size > 0; --size) {
    for (const auto& stop : stops) {
      if (stop.size() > size && stop.starts_with(text.substr(text.size() - size))) return size;
    }
  }
  return 0;
}

std::string random_word(SplitMix64& random, std::uint64_t longest) {
  std::string word(1 + random.below(longest), 'a');
  for (char& c : word) c = static_cast<char>('a' + random.below(2));
  return word;
}

}  // namespace

TEST_CASE("stop matcher: any chunking equals the offline trim and holds back no more than it must") {
  SplitMix64 random(42);
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops(random.below(4));
    for (auto& stop : stops) stop = random_word(random, 6);
    const std::string text = random_word(random, 24);
    auto matcher = StopMatcher::create(stops).value();
    std::string shown;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t size = 1 + random.below(text.size() - at);
      shown += matcher.push(std::string_view(text).substr(at, size));
      at += size;
      if (!matcher.matched()) REQUIRE(at - shown.size() == must_hold(text.substr(0, at), stops));
    }
    shown += matcher.finish();
    REQUIRE(shown == offline(text, stops));
    REQUIRE(matcher.matched().has_value() == (offline(text, stops) != text));
  }
}

TEST_CASE("stop matcher: names the stop string, swallows the rest, begins again") {
  auto matcher = StopMatcher::create(std::vector<std::string>{"END", "\n\n", "ND"}).value();
  CHECK(matcher.push("one\n") == "one");
  CHECK(matcher.push("twoE") == "\ntwo");
  CHECK(matcher.push("ND more") == "");
  CHECK(matcher.matched() == 0);
  CHECK(matcher.push("anything") == "");
  CHECK(matcher.finish() == "");
  matcher.reset();
  CHECK(!matcher.matched());
  CHECK(matcher.push("x\n") == "x");
  CHECK(matcher.finish() == "\n");
}

TEST_CASE("stop matcher: refuses an empty stop string and too much text") {
  CHECK(StopMatcher::create(std::vector<std::string>{"a", ""}).error().code() == Code::usage);
  CHECK(StopMatcher::create(std::vector<std::string>{std::string(StopMatcher::kMaxStopBytes + 1, 'x')})
            .error()
            .code() == Code::usage);
  CHECK(StopMatcher::create(std::vector<std::string>{std::string(StopMatcher::kMaxStopBytes, 'x')})
            .has_value());
}

TEST_CASE("stop matcher: time is linear when every byte nearly matches") {
  const auto seconds = [](std::size_t size) {
    auto matcher = StopMatcher::create(std::vector<std::string>{std::string(5000, 'a') + 'b'}).value();
    const std::string chunk(1000, 'a');
    const std::clock_t begin = std::clock();
    for (std::size_t done = 0; done < size; done += chunk.size()) matcher.push(chunk);
    return static_cast<double>(std::clock() - begin);
  };
  double ratio = 1e9;
  for (int i = 0; i < 5; ++i) ratio = std::min(ratio, seconds(4'000'000) / seconds(2'000'000));
  CHECK(ratio < 3.0);
}
