// Texts made to be slow: doubling the text must not do much more than double the time.
#include <ctime>

#include "tests/tokenizer/fixtures.h"
#include "tests/tokenizer/generated_text.h"

using namespace inkling;
using namespace inkling::test;

namespace {

double seconds_to_encode(const Tokenizer& tokenizer, const std::string& text) {
  const std::clock_t begin = std::clock();
  const auto ids = tokenizer.encode(text).value();
  const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  if (tokenizer.kind() == TokenizerKind::byte_level_bpe) REQUIRE(tokenizer.decode(ids).value() == text);
  return seconds;
}

std::string repeat(std::string_view unit, std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += unit;
  return text;
}

// The smallest of a few ratios: noise only ever makes one of the two times longer.
template <class Make>
void check_scaling(const Tokenizer& tokenizer, std::size_t bytes, Make&& make) {
  const std::string once = make(bytes), twice = make(2 * bytes);
  double ratio = 1e9;
  for (int i = 0; i < 5 && ratio > 2.5; ++i) {
    ratio = std::min(
        ratio, seconds_to_encode(tokenizer, twice) / std::max(seconds_to_encode(tokenizer, once), 1e-4));
  }
  CHECK(ratio < 3.0);
}

void check_hostile(const Tokenizer& tokenizer, std::size_t bytes) {
  for (const char* unit : {"a", " ", "\n", "é", "\xFF", "'", "ab ", "<|endoftext", "\u3000", "hello"}) {
    CAPTURE(unit);
    check_scaling(tokenizer, bytes, [&](std::size_t size) { return repeat(unit, size); });
  }
  check_scaling(tokenizer, bytes, [](std::size_t size) {
    SplitMix64 random(1);
    std::string text(size, 'a');
    for (char& c : text) c = static_cast<char>('a' + random.below(26));
    return text;
  });
}

}  // namespace

TEST_CASE("hostile: one-word texts take near-linear time") {
  check_hostile(tiny(), 1'000'000);
}

TEST_CASE("[golden] hostile: also with GPT-2's merges, 8 MB of one letter, a million spaces") {
  if (!have_data("gpt2-tokenizer/tokenizer.json")) return;
  const Tokenizer tokenizer = Tokenizer::load(data_dir() / "gpt2-tokenizer").value();
  check_hostile(tokenizer, 1'000'000);
  CHECK(tokenizer.encode(std::string(8'388'608, 'a')).value().size() == 2'097'152);
  CHECK(tokenizer.encode(std::string(1'000'000, ' ')).value().size() == 1'000'000);
}

TEST_CASE("[golden] speed: English through GPT-2's merges (the figure is for people, not a check)") {
  if (!have_data("text/kjv.txt")) return;
  const Tokenizer tokenizer = Tokenizer::load(data_dir() / "gpt2-tokenizer").value();
  const std::string text = read_file(data_dir() / "text/kjv.txt");
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const std::clock_t begin = std::clock();
    CHECK(tokenizer.encode(text).value().size() == 1'226'829);
    best = std::min(best, static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
  }
  MESSAGE("kjv.txt: " << static_cast<double>(text.size()) / 1e6 / best << " MB/s");
}

TEST_CASE("hostile: texts beyond the limit are refused with both numbers") {
  const Tokenizer tokenizer = tiny();
  const auto refused = tokenizer.encode(std::string(tokenizer.max_input_bytes() + 1, ' '));
  REQUIRE(!refused);
  CHECK(refused.error().code() == Code::input);
  CHECK(refused.error().message().find(std::to_string(tokenizer.max_input_bytes())) != std::string::npos);
  CHECK(refused.error().message().find(std::to_string(tokenizer.max_input_bytes() + 1)) != std::string::npos);
}

TEST_CASE("[golden] hostile: SentencePiece on runs of known and unknown characters") {
  for (const char* name : {"test_unigram.model", "botchan_1000_bpe.model"}) {
    if (!have_data(std::string("sentencepiece/") + name)) continue;
    const Tokenizer tokenizer = Tokenizer::load(data_dir() / "sentencepiece" / name).value();
    for (const char* unit : {"a", "字", " ", "a字", "ﬁ"}) {
      CAPTURE(unit);
      check_scaling(tokenizer, 300'000, [&](std::size_t size) { return repeat(unit, size); });
    }
  }
}
