#include "tokenizer/utf8.h"

#include <doctest/doctest.h>

#include <string>

#include "tests/tokenizer/generated_text.h"

using namespace inkling;
using inkling::test::SplitMix64;

namespace {

const std::string kFffd{kReplacementCharacter};

std::string repaired_in_chunks(std::string_view bytes, SplitMix64& random) {
  Utf8Replacer replacer;
  std::string out;
  while (!bytes.empty()) {
    const std::size_t size = 1 + random.below(std::min<std::size_t>(bytes.size(), 5));
    replacer.push(bytes.substr(0, size), out);
    bytes.remove_prefix(size);
  }
  replacer.finish(out);
  return out;
}

}  // namespace

TEST_CASE("utf8: every scalar survives every split") {
  int scalars = 0;
  bool all_valid = true, all_back = true, all_split = true;
  for (char32_t scalar = 0; scalar <= 0x10FFFF; ++scalar) {
    if (scalar == 0xD800) scalar = 0xE000;
    ++scalars;
    std::string text;
    append_utf8(scalar, text);
    std::size_t at = 0;
    all_valid &= is_valid_utf8(text);
    all_back &= next_scalar(text, at) == scalar && at == text.size();
    for (std::size_t cut = 0; cut <= text.size(); ++cut) {
      Utf8Replacer replacer;
      std::string out;
      replacer.push(std::string_view(text).substr(0, cut), out);
      all_split &= out.size() == (cut == text.size() ? cut : 0);
      replacer.push(std::string_view(text).substr(cut), out);
      all_split &= out == text;
      replacer.finish(out);
      all_split &= out == text;
    }
  }
  CHECK(scalars == 1112064);
  CHECK(all_valid);
  CHECK(all_back);
  CHECK(all_split);
}

TEST_CASE("utf8: maximal subparts, as in Unicode 15 tables 3-8 to 3-11") {
  CHECK(to_valid_utf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41") ==
        kFffd + kFffd + kFffd + kFffd + kFffd + kFffd + kFffd + kFffd + "A");
  CHECK(to_valid_utf8("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41") ==
        kFffd + kFffd + kFffd + kFffd + kFffd + kFffd + kFffd + kFffd + "A");
  CHECK(to_valid_utf8("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42") ==
        kFffd + kFffd + kFffd + kFffd + kFffd + "A" + kFffd + kFffd + "B");
  CHECK(to_valid_utf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41") == kFffd + kFffd + kFffd + kFffd + "A");
  CHECK(to_valid_utf8("\xF0\x9F\x98") == kFffd);
  CHECK(to_valid_utf8("") == "");
}

TEST_CASE("utf8: the valid prefix ends where the text breaks") {
  CHECK(valid_utf8_prefix("abcdefghijk") == 11);
  CHECK(valid_utf8_prefix("abcdefgh\xC3\xA9") == 10);
  CHECK(valid_utf8_prefix("abcdefgh\xC3") == 8);
  CHECK(valid_utf8_prefix("abcdefghi\xFFzzzzzzzzzz") == 9);
  CHECK(valid_utf8_prefix("\xF5") == 0);
}

TEST_CASE("utf8: chunks of any size give the same repair, which is valid") {
  SplitMix64 random(11);
  bool same = true, valid = true;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = test::random_bytes(random, random.below(12));
    for (char& c : bytes) {  // more of the lead and continuation bytes that matter
      if (random.below(3) == 0) c = "\xE2\x82\xAC\xF0\x9F\x98\x80\xED\xA0z"[random.below(10)];
    }
    const std::string whole = to_valid_utf8(bytes);
    same &= repaired_in_chunks(bytes, random) == whole;
    valid &= is_valid_utf8(whole);
    if (is_valid_utf8(bytes)) same &= whole == bytes;
  }
  CHECK(same);
  CHECK(valid);
}
