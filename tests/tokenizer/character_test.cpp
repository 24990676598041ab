#include <chrono>

#include "tests/tokenizer/fixtures.h"

using namespace inkling;
using namespace inkling::test;

TEST_CASE("characters: ids both ways, offsets in bytes") {
  const auto tokenizer =
      Tokenizer::from_characters(
          R"({"stoi": {"a": 0, "é": 2, "字": 1}, "itos": {"0": "a", "1": "字", "2": "é"}})", "m")
          .value();
  CHECK(tokenizer.kind() == TokenizerKind::characters);
  CHECK(tokenizer.vocab_size() == 3);
  CHECK(tokenizer.encode("é字a").value() == std::vector<std::int32_t>{2, 1, 0});
  CHECK(tokenizer.encode_with_offsets("é字a").value() ==
        std::vector<TokenSpan>{{2, 0, 2}, {1, 2, 5}, {0, 5, 6}});
  CHECK(tokenizer.decode(std::vector<std::int32_t>{2, 1, 0}).value() == "é字a");
  CHECK(!tokenizer.eos_id());
}

TEST_CASE("characters: what is not in the vocabulary is named") {
  const auto tokenizer = Tokenizer::from_characters(R"({"stoi": {"a": 0}})", "m").value();
  const auto unknown = tokenizer.encode("aaé");
  REQUIRE(!unknown);
  CHECK(unknown.error().code() == Code::input);
  CHECK(unknown.error().message().find("byte 2") != std::string::npos);
  CHECK(unknown.error().message().find("U+00E9") != std::string::npos);
  const auto invalid = tokenizer.encode("a\xFF");
  REQUIRE(!invalid);
  CHECK(invalid.error().message().find("offset 1") != std::string::npos);
}

TEST_CASE("characters: the inverse map is walked once, whatever its length") {
  std::string stoi, itos;
  constexpr int kCount = 60'000;  // looked up one by one, 1.8 · 10⁹ comparisons of keys
  for (int id = 0; id < kCount; ++id) {
    const std::string character{'\xF0', static_cast<char>(0x90 | (id >> 12)),
                                static_cast<char>(0x80 | ((id >> 6) & 63)),
                                static_cast<char>(0x80 | (id & 63))};
    stoi += ",\"" + character + "\":" + std::to_string(id);
    itos += ",\"" + std::to_string(id) + "\":\"" + character + '"';
  }
  const auto begin = std::chrono::steady_clock::now();
  const auto tokenizer = Tokenizer::from_characters(
      "{\"stoi\":{" + stoi.substr(1) + "},\"itos\":{" + itos.substr(1) + "}}", "m");
  REQUIRE(tokenizer);
  CHECK(tokenizer->vocab_size() == kCount);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(3));
  for (const char* key : {"00", "1 ", "-0", "+0", "2", ""}) {
    const auto refused = Tokenizer::from_characters(
        R"({"stoi": {"a": 0, "b": 1}, "itos": {"1": "b", ")" + std::string(key) + R"(": "a"}})", "m");
    REQUIRE(!refused);
    CHECK(refused.error().message().starts_with("m: itos." + std::string(key) + ": expected the id"));
  }
}

TEST_CASE("[golden] characters: tinyshakespeare has 65") {
  if (!have_data("text/tinyshakespeare.txt")) return;
  const std::string text = read_file(data_dir() / "text/tinyshakespeare.txt");
  std::vector<char> seen(text.begin(), text.end());
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  Json json;
  for (std::size_t i = 0; i < seen.size(); ++i) json["stoi"][std::string(1, seen[i])] = i;
  const auto tokenizer = Tokenizer::from_characters(json.dump(), "meta.json").value();
  CHECK(tokenizer.vocab_size() == 65);
  const auto ids = tokenizer.encode(text).value();
  CHECK(ids.size() == 1115394);
  CHECK(tokenizer.decode(ids).value() == text);
}
