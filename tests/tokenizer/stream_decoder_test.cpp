#include "tokenizer/stream_decoder.h"

#include "tests/tokenizer/fixtures.h"
#include "tests/tokenizer/generated_text.h"

using namespace inkling;
using namespace inkling::test;

namespace {

std::string streamed(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids) {
  StreamDecoder decoder(tokenizer);
  std::string text;
  for (const std::int32_t id : ids) {
    const auto piece = decoder.push(id).value();
    REQUIRE(is_valid_utf8(piece));
    text += piece;
  }
  return text += decoder.finish();
}

}  // namespace

TEST_CASE("stream decoder: every scalar comes out with its last byte, not before") {
  const Tokenizer tokenizer = tiny();  // ids 0–255 are bytes
  StreamDecoder decoder(tokenizer);
  bool good = true;
  std::string bytes;
  for (char32_t scalar = 0; scalar <= 0x10FFFF; ++scalar) {
    if (scalar == 0xD800) scalar = 0xE000;
    bytes.clear();
    append_utf8(scalar, bytes);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      const auto piece = decoder.push(static_cast<unsigned char>(bytes[i]));
      good &= piece.has_value() &&
              *piece == (i + 1 == bytes.size() ? std::string_view(bytes) : std::string_view());
    }
  }
  CHECK(good);
  CHECK(decoder.finish().empty());
}

TEST_CASE("stream decoder: random ids stream to the repaired whole") {
  const Tokenizer tokenizer = tiny();
  SplitMix64 random(5);
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::int32_t> ids(random.below(20));
    for (auto& id : ids) id = static_cast<std::int32_t>(random.below(262));
    CHECK(streamed(tokenizer, ids) == to_valid_utf8(tokenizer.decode(ids).value()));
  }
}

TEST_CASE("stream decoder: an id out of range is refused and changes nothing") {
  StreamDecoder decoder(tiny());
  CHECK(decoder.push(0xC3).value().empty());
  for (const std::int32_t id : {-1, 262, 2147483647}) {
    const auto refused = decoder.push(id);
    REQUIRE(!refused);
    CHECK(refused.error().code() == Code::input);
    CHECK(refused.error().message().find(std::to_string(id)) != std::string::npos);
    CHECK(refused.error().message().find("262") != std::string::npos);
  }
  CHECK(decoder.push(0xA9).value() == "é");
  CHECK(decoder.push(0xC3).value().empty());
  CHECK(decoder.finish() == kReplacementCharacter);
  CHECK(decoder.finish().empty());
}

TEST_CASE("stream decoder: SentencePiece's first space goes, later ones stay") {
  const Tokenizer tokenizer = Tokenizer::from_sentencepiece(TinyModel().str(), "tiny.model").value();
  const std::int32_t bos = 1, space = 3, a = 4, word = 7;
  CHECK(streamed(tokenizer, {word, word}) == "ab ab");
  CHECK(streamed(tokenizer, {bos, word}) == "ab");
  CHECK(streamed(tokenizer, {a, word}) == "a ab");
  CHECK(streamed(tokenizer, {space, space, word, space}) == "ab ");  // remove_extra_whitespaces is on
  StreamDecoder decoder(tokenizer);
  CHECK(decoder.push(word).value() == "ab");
  CHECK(decoder.finish().empty());
  CHECK(decoder.push(word).value() == "ab");  // as new
}
