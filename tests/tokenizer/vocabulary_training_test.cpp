#include "tokenizer/vocabulary_training.h"

#include "tests/tokenizer/fixtures.h"
#include "tests/tokenizer/generated_text.h"

using namespace inkling;
using namespace inkling::test;

namespace {

Json vocabulary_golden() {
  return Json::parse(read_file(source_dir() / "tests/golden/vocabulary_golden.json"));
}

using Files = std::vector<VocabularyFile>;

Files train_bpe(const std::string& text, const Json& options) {
  const std::string_view texts[] = {text};
  return train_byte_level_bpe(texts, {.vocab_size = options["vocab_size"].get<std::int64_t>(),
                                      .min_frequency = options["min_frequency"].get<std::int64_t>()})
      .value();
}

Tokenizer load_bpe(const Files& files) {
  REQUIRE(files.size() == 2);
  return Tokenizer::from_vocab_and_merges(files[0].content, files[0].name, files[1].content, files[1].name)
      .value();
}

// The golden script hashes the rules, a line each, byte by byte.
void check_merges(const Json& expected, const Files& files) {
  const std::string rules = files[1].content.substr(files[1].content.find('\n') + 1);
  std::vector<std::int32_t> bytes;
  for (const char c : rules) bytes.push_back(static_cast<unsigned char>(c));
  CHECK(static_cast<std::size_t>(std::ranges::count(rules, '\n')) == expected["merges"].get<std::size_t>());
  CHECK(rules.ends_with(expected["last"].get<std::string>() + '\n'));
  CHECK(fnv1a(bytes) == expected["fnv1a"].get<std::string>());
}

// Without U+2581: SentencePiece writes spaces with it, so it decodes as one.
std::string without_marks(std::string text) {
  for (std::size_t at = 0; (at = text.find("\u2581", at)) != std::string::npos;) text.erase(at, 3);
  return text;
}

std::string odd_text() {
  return "ROMEO:\n\n  But, soft!  what light — naïve 日本 🙂?\n\t  It is the east\n" +
         without_marks(generated_text(5, 300));
}

void refuses(const Result<Files>& result, Code code, std::string_view says) {
  REQUIRE(!result);
  CHECK(result.error().code() == code);
  CHECK_MESSAGE(result.error().message().find(says) != std::string::npos, result.error().message());
}

}  // namespace

TEST_CASE("vocabulary training: byte-level merges in the golden order") {
  const Json small = vocabulary_golden()["small"];
  const auto texts = small["texts"].get<std::vector<std::string>>();
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  const Files files = train_byte_level_bpe(views, {.vocab_size = 300}).value();
  std::string rules = "#version: 0.2\n";
  for (const auto& rule : small["merges"]) rules += rule.get<std::string>() + '\n';
  CHECK(files[1].content == rules);
  const Tokenizer tokenizer = load_bpe(files);
  CHECK(tokenizer.vocab_size() == 256 + 18 + 1);
  CHECK(tokenizer.eos_id() == 274);
  CHECK(tokenizer.id_of("!") == 0);
  CHECK(tokenizer.encode(" newest").value() == std::vector<std::int32_t>{tokenizer.id_of("Ġnewest").value()});
}

TEST_CASE("vocabulary training: byte-level merges of generated texts of many scripts") {
  const Json golden = vocabulary_golden();
  for (const Json& each : golden["generated"]) {
    const std::string text = generated_text(each["seed"].get<std::uint64_t>(), each["runs"].get<int>());
    const Files files = train_bpe(text, each);
    check_merges(each, files);
    CHECK(load_bpe(files).decode(load_bpe(files).encode(text).value()).value() == text);
  }
}

TEST_CASE("[golden] vocabulary training: byte-level merges of books") {
  const Json golden = vocabulary_golden();
  for (const auto& [name, each] : golden["files"].items()) {
    if (!have_data(name)) return;
    check_merges(each, train_bpe(read_file(data_dir() / name), each));
  }
}

TEST_CASE("vocabulary training: long runs end at the longest token that a file may hold") {
  const std::string text(20000, 'a');
  const std::string_view texts[] = {text};
  const Tokenizer tokenizer =
      load_bpe(train_byte_level_bpe(texts, {.vocab_size = 400, .min_frequency = 1}).value());
  std::size_t longest = 0;
  for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    longest = std::max(longest, tokenizer.token_bytes(id).size());
  CHECK(longest == 4096);
  CHECK(tokenizer.decode(tokenizer.encode(text).value()).value() == text);
}

TEST_CASE("vocabulary training: SentencePiece models are lossless and of the size asked for") {
  std::string text = odd_text();
  for (int i = 0; i < 400; ++i)
    text += "It is the " + std::to_string(i * i * 7919) + "th sun, and Juliet is not.\n";
  for (const auto kind : {SentencePieceKind::bpe, SentencePieceKind::unigram}) {
    // The odd text has hundreds of characters: those beyond the coverage are bytes.
    const SentencePieceTrainingOptions options{kind, 500, 0.98};
    const std::string_view texts[] = {text};
    const Files files = train_sentencepiece(texts, options).value();
    REQUIRE(files.size() == 1);
    CHECK(files[0].name == "tokenizer.model");
    const Tokenizer tokenizer = Tokenizer::from_sentencepiece(files[0].content, files[0].name).value();
    CHECK(tokenizer.vocab_size() == 500);
    CHECK(tokenizer.eos_id() == 1);
    CHECK(!tokenizer.bos_id());
    CHECK(tokenizer.id_of("\n"));
    for (const std::string& each :
         {odd_text(), std::string("  a"), std::string("\n\n \n"), without_marks(generated_text(4, 500))}) {
      CHECK(bool(tokenizer.decode(tokenizer.encode(each).value()).value() == each));
    }
    CHECK(train_sentencepiece(texts, options).value()[0].content == files[0].content);
  }
}

TEST_CASE("vocabulary training: SentencePiece sees the end of lines beyond its limit") {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += i % 3 == 0 ? "zebra " : "apple ";
  text += std::string(9000, 'q');
  const std::string_view texts[] = {text};
  const auto files = train_sentencepiece(texts, {SentencePieceKind::bpe, 300, 1.0}).value();
  const Tokenizer tokenizer = Tokenizer::from_sentencepiece(files[0].content, "m").value();
  CHECK(tokenizer.encode("zebra").value().size() <= 2);
  CHECK(tokenizer.encode("qqqqqqqq").value().size() <= 4);
}

TEST_CASE("vocabulary training: characters in the order of their code points") {
  const std::string_view texts[] = {"béa\n", "字a\"\\"};
  const Files files = train_characters(texts).value();
  REQUIRE(files.size() == 1);
  CHECK(files[0].name == "meta.json");
  const Tokenizer tokenizer = Tokenizer::from_characters(files[0].content, files[0].name).value();
  CHECK(tokenizer.encode("\n\"\\abé字").value() == std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6});
  CHECK(tokenizer.vocab_size() == 7);
}

TEST_CASE("vocabulary training: what cannot be trained on is refused by name") {
  const std::string_view nothing[] = {"", ""}, bytes[] = {"fine", "ab\xFF"}, text[] = {"a text"},
                         ends[] = {"\n\n"};
  refuses(train_byte_level_bpe({}, {}), Code::input, "expected text");
  refuses(train_byte_level_bpe(nothing, {}), Code::input, "expected text");
  refuses(train_byte_level_bpe(bytes, {}), Code::input,
          "text 1: expected UTF-8, got an ill-formed byte at offset 2");
  refuses(train_byte_level_bpe(text, {.vocab_size = 256}), Code::usage, "vocab_size: expected 257 to");
  refuses(train_byte_level_bpe(text, {.min_frequency = 0}), Code::usage, "min_frequency");
  refuses(train_characters(nothing), Code::input, "expected text");
  refuses(train_characters(bytes), Code::input, "offset 2");
  refuses(train_sentencepiece(nothing, {}), Code::input, "expected text");
  refuses(train_sentencepiece(ends, {}), Code::input, "line ends alone");
  refuses(train_sentencepiece(text, {SentencePieceKind::bpe, 0, 1.0}), Code::usage, "vocab_size");
  refuses(train_sentencepiece(text, {SentencePieceKind::bpe, 500, 0.5}), Code::usage, "character_coverage");
  // 256 bytes, <unk>, </s>, the line end, and five characters.
  for (const auto kind : {SentencePieceKind::bpe, SentencePieceKind::unigram}) {
    refuses(train_sentencepiece(text, {kind, 263, 1.0}), Code::usage,
            "vocab_size: expected at least 264, for bytes, marks and the characters of the text, got 263");
    CHECK(train_sentencepiece(text, {kind, 264, 1.0}));
  }
}

TEST_CASE("vocabulary training: texts of which SentencePiece's trainer would end the process are refused") {
  using namespace std::string_view_literals;
  const std::string run(28, 'b'), tabs = std::string(300, '\t') + "ab", rare = std::string(300, 'a') + "b";
  for (const std::string_view text : {"<unk>\n</s>"sv, "\t\t\n\t"sv, "<0x41><0x0A>"sv, "\0\t"sv,
                                      "\u2585xy\n\t"sv, std::string_view(run), "字\n字字"sv}) {
    for (const auto kind : {SentencePieceKind::bpe, SentencePieceKind::unigram}) {
      const std::string_view one[] = {text};
      refuses(train_sentencepiece(one, {kind, 300, 1.0}), Code::input, "expected two different characters");
    }
  }
  // Characters beyond the coverage are not learnt; with all of them there are two.
  for (const std::string_view text : {std::string_view(tabs), std::string_view(rare)}) {
    const std::string_view one[] = {text};
    refuses(train_sentencepiece(one, {SentencePieceKind::unigram, 300, 0.98}), Code::input, "two different");
    CHECK(train_sentencepiece(one, {SentencePieceKind::unigram, 300, 1.0}).has_value());
  }
  const std::string_view little[] = {"<unk\t<0x4"};
  CHECK(train_sentencepiece(little, {SentencePieceKind::unigram, 300, 1.0}).has_value());
}
