#include "tests/tokenizer/fixtures.h"
#include "tests/tokenizer/generated_text.h"
#include "tokenizer/stream_decoder.h"

using namespace inkling;
using namespace inkling::test;

namespace {

using Ids = std::vector<std::int32_t>;

void check_summary(const Json& expected, const Ids& ids) {
  CHECK(ids.size() == expected["tokens"].get<std::size_t>());
  CHECK(fnv1a(ids) == expected["fnv1a"].get<std::string>());
}

std::string repeat(std::string_view text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

std::string streamed(const Tokenizer& tokenizer, const Ids& ids) {
  StreamDecoder decoder(tokenizer);
  std::string text;
  for (const auto id : ids) text += decoder.push(id).value();
  return text += decoder.finish();
}

void check_offsets(const Tokenizer& tokenizer, const std::string& text, const Ids& ids) {
  const auto spans = tokenizer.encode_with_offsets(text).value();
  REQUIRE(spans.size() == ids.size());
  std::size_t at = 0;
  bool rising = true;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    rising &= spans[i].id == ids[i] && spans[i].begin >= at && spans[i].end >= spans[i].begin;
    at = spans[i].end;
  }
  CHECK(rising);
  CHECK(at <= text.size());
}

TinyModel with_bytes() {
  TinyModel model;
  model.trainer.varint(35, 1);
  for (int byte = 0; byte < 256; ++byte) {
    const char* digits = "0123456789ABCDEF";
    model.pieces.push_back({std::string("<0x") + digits[byte >> 4] + digits[byte & 15] + '>', 0, 6});
  }
  return model;
}

}  // namespace

TEST_CASE("[golden] sentencepiece: ids and texts are those of the Python package") {
  const Json models = golden()["sentencepiece"];
  REQUIRE(models.size() == 4);
  for (const auto& [name, expected] : models.items()) {
    CAPTURE(name);
    if (!have_data("sentencepiece/" + name)) continue;
    const Tokenizer tokenizer = Tokenizer::load(data_dir() / "sentencepiece" / name).value();
    CHECK(tokenizer.kind() == TokenizerKind::sentencepiece);
    CHECK(tokenizer.vocab_size() == expected["size"].get<int>());
    CHECK(tokenizer.bos_id().value_or(-1) == expected["bos"].get<int>());
    CHECK(tokenizer.eos_id().value_or(-1) == expected["eos"].get<int>());
    for (const auto& sample : expected["samples"]) {
      const std::string text = sample["text"];
      const Ids ids = tokenizer.encode(text).value();
      CHECK_MESSAGE(ids == sample["ids"].get<Ids>(), text);
      CHECK_MESSAGE(tokenizer.decode(ids).value() == sample["decoded"].get<std::string>(), text);
      CHECK(streamed(tokenizer, ids) == sample["decoded"].get<std::string>());
      check_offsets(tokenizer, text, ids);
    }
    const Ids botchan = tokenizer.encode(read_file(data_dir() / "sentencepiece/botchan.txt")).value();
    check_summary(expected["botchan"], botchan);
    CHECK(streamed(tokenizer, botchan) == to_valid_utf8(tokenizer.decode(botchan).value()));
    Ids generated;
    for (std::uint64_t seed = 0; seed < expected["generated"]["seeds"].get<std::uint64_t>(); ++seed) {
      const Ids ids = tokenizer.encode(generated_text(seed, expected["generated"]["runs"])).value();
      generated.insert(generated.end(), ids.begin(), ids.end());
    }
    check_summary(expected["generated"], generated);
    const int times = expected["unknown_run"]["repeat"];
    const std::string run = "a " + repeat("字", times) + " b" + repeat("字", times);
    const Ids ids = tokenizer.encode(run).value();  // long enough to be cut
    check_summary(expected["unknown_run"], ids);
    check_offsets(tokenizer, run, ids);
  }
}

TEST_CASE("sentencepiece: random ids stream to the repaired whole") {
  const TinyModel model = with_bytes();
  const Tokenizer tokenizer = Tokenizer::from_sentencepiece(model.str(), "bytes.model").value();
  SplitMix64 random(8);
  for (int round = 0; round < 3000; ++round) {
    Ids ids(random.below(12));
    for (auto& id : ids) id = static_cast<std::int32_t>(random.below(random.below(2) == 0 ? 9 : 264));
    REQUIRE(streamed(tokenizer, ids) == to_valid_utf8(tokenizer.decode(ids).value()));
  }
  CHECK(tokenizer.decode(tokenizer.encode("ab é").value()).value() == "ab é");
}

TEST_CASE("sentencepiece: a tiny model, the rule A → a, and bad UTF-8 is Code::input") {
  const Tokenizer tokenizer = Tokenizer::from_sentencepiece(TinyModel().str(), "tiny.model").value();
  CHECK(tokenizer.encode("ab").value() == Ids{7});
  CHECK(tokenizer.encode("Ab").value() == Ids{7});
  CHECK(tokenizer.encode("z").value() == Ids{3, 0});
  CHECK(tokenizer.description() == "SentencePiece unigram, 8 tokens");
  const auto invalid = tokenizer.encode("ab\xE2\x82");
  REQUIRE(!invalid);
  CHECK(invalid.error().code() == Code::input);
  CHECK(invalid.error().message().find("offset 2") != std::string::npos);
  const auto huge = tokenizer.encode(std::string(tokenizer.max_input_bytes() + 1, 'a'));
  REQUIRE(!huge);
  CHECK(huge.error().code() == Code::input);
}

TEST_CASE("sentencepiece: long texts are not cut where a piece begins a word") {
  const Tokenizer tokenizer = Tokenizer::from_sentencepiece(TinyModel().str(), "tiny.model").value();
  // Between "b" and "a" no piece reaches over, but after a cut "ab" would be the piece of a new word.
  constexpr int kTimes = 20'000;
  Ids expected(kTimes, 6);
  expected[0] = 7;
  CHECK(bool(tokenizer.encode(repeat("ab", kTimes)).value() == expected));
}

TEST_CASE("sentencepiece: no text encodes to a byte or control token by its name") {
  TinyModel words = with_bytes();
  words.trainer = Wire().varint(3, 3).varint(35, 1);
  words.normalizer = Wire().varint(3, 0);  // no space before the first word
  const std::pair<std::string, std::string> models[] = {{"unigram", with_bytes().str()},
                                                        {"word", words.str()}};
  for (const auto& [name, bytes] : models) {
    CAPTURE(name);
    const Tokenizer tokenizer = Tokenizer::from_sentencepiece(bytes, name).value();
    CHECK(tokenizer.decode(tokenizer.encode("xyz").value()).value() == "xyz");
    for (const char* text : {"<0x41>", "<s>", "</s>", "<unk>"}) {
      CAPTURE(text);
      const auto ids = tokenizer.encode(text);
      if (ids) {
        CHECK(tokenizer.decode(*ids).value() == text);
      } else {
        CHECK(name == "word");
        CHECK(ids.error().code() == Code::input);
      }
    }
  }
}
