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
