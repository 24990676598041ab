#include <algorithm>

#include "tests/tokenizer/fixtures.h"
#include "tests/tokenizer/generated_text.h"
#include "tokenizer/pretokenizer.h"

using namespace inkling;
using namespace inkling::test;

namespace {

using Ids = std::vector<std::int32_t>;

Tokenizer gpt2(const char* file = "gpt2-tokenizer/tokenizer.json") {
  return Tokenizer::load(data_dir() / file).value();
}

std::vector<std::string> lines_between(std::string text, const std::string& separator) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; (at = text.find(separator)) != std::string::npos;
       text.erase(0, at + separator.size())) {
    parts.push_back(text.substr(0, at));
  }
  parts.push_back(text);
  return parts;
}

void check_summary(const Json& expected, const Ids& ids) {
  CHECK(ids.size() == expected["tokens"].get<std::size_t>());
  CHECK(fnv1a(ids) == expected["fnv1a"].get<std::string>());
}

}  // namespace

TEST_CASE("[golden] byte-level: the torture strings") {
  if (!have_data("gpt2-tokenizer/torture.inp")) return;
  const Tokenizer tokenizer = gpt2();
  const auto inputs =
      lines_between(read_file(data_dir() / "gpt2-tokenizer/torture.inp"), "\n__ggml_vocab_test__\n");
  auto outputs = lines_between(read_file(data_dir() / "gpt2-tokenizer/torture.out"), "\n");
  REQUIRE(outputs.size() == 47);  // 46 and nothing after the last separator
  REQUIRE(inputs.size() == 47);
  outputs.pop_back();
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    std::string line;
    const Ids ids = tokenizer.encode(inputs[i]).value();
    for (const auto id : ids) line += ' ' + std::to_string(id);
    CHECK_MESSAGE(line == outputs[i], inputs[i]);
  }
}

TEST_CASE("[golden] byte-level: ids are those of tokenizers and tiktoken") {
  if (!have_data("gpt2-tokenizer/tokenizer.json")) return;
  const Json expected = golden()["gpt2"];
  const Tokenizer tokenizer = gpt2();
  Json prefixed_file = Json::parse(read_file(data_dir() / "gpt2-tokenizer/tokenizer.json"));
  prefixed_file["pre_tokenizer"]["add_prefix_space"] = true;
  const Tokenizer prefixed = Tokenizer::from_tokenizer_json(prefixed_file.dump(), "prefixed").value();

  CHECK(tokenizer.encode("Hello world").value() == Ids{15496, 995});
  for (const auto& sample : expected["samples"]) {
    const std::string text = sample["text"];
    CHECK_MESSAGE(tokenizer.encode(text).value() == sample["ids"].get<Ids>(), text);
    CHECK_MESSAGE(prefixed.encode(text).value() == sample["prefixed"].get<Ids>(), text);
    CHECK_MESSAGE(tokenizer.encode(text, {SpecialTokens::literal}).value() == sample["literal"].get<Ids>(),
                  text);
  }
  for (const auto& [name, summary] : expected["files"].items()) {
    CAPTURE(name);
    check_summary(summary, tokenizer.encode(read_file(data_dir() / name)).value());
  }
  for (const auto& run : expected["generated"]) {
    const std::string text = generated_text(run["seed"], run["runs"]);
    const Ids ids = tokenizer.encode(text).value();
    check_summary(run, ids);
    CHECK(tokenizer.decode(ids).value() == text);
  }
}

TEST_CASE("[golden] byte-level: tinyshakespeare splits into 301966 and 36059") {
  if (!have_data("text/tinyshakespeare.txt")) return;
  const std::string text = read_file(data_dir() / "text/tinyshakespeare.txt");
  const std::size_t cut = text.size() * 9 / 10;  // ASCII: characters are bytes
  CHECK(gpt2().encode(text.substr(0, cut)).value().size() == 301966);
  CHECK(gpt2().encode(text.substr(cut)).value().size() == 36059);
}

TEST_CASE("[golden] byte-level: every file format loads the same tokenizer") {
  if (!have_data("gpt2-tokenizer/vocab.json")) return;
  const std::string text = generated_text(17, 5000);
  const Ids expected = gpt2().encode(text).value();
  for (const char* file : {"gpt2-tokenizer", "gpt2-tokenizer/vocab.json", "gpt2-tokenizer/merges.txt"}) {
    const Tokenizer tokenizer = gpt2(file);
    CHECK(tokenizer.encode(text).value() == expected);
    CHECK(tokenizer.vocab_size() == 50257);
    CHECK(tokenizer.eos_id() == 50256);
    CHECK(tokenizer.is_special(50256));
    CHECK(tokenizer.token_text(995) == "Ġworld");
    CHECK(tokenizer.token_bytes(995) == " world");
    CHECK(tokenizer.id_of("Ġworld") == 995);
    CHECK(!tokenizer.id_of("no such piece"));
    CHECK(tokenizer.description() == "byte-level BPE, 50257 tokens (1 added), 50000 merges");
  }
}

TEST_CASE("byte-level: decode of encode is the identity on random bytes") {
  const Tokenizer tokenizer = tiny();
  SplitMix64 random(3);
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = random_bytes(random, random.below(60));
    if (round % 2 == 0)
      bytes += generated_text(static_cast<std::uint64_t>(round), 4) + random_bytes(random, 3);
    for (const auto special : {SpecialTokens::parse, SpecialTokens::literal}) {
      const auto spans = tokenizer.encode_with_offsets(bytes, {special}).value();
      const auto ids = tokenizer.encode(bytes, {special}).value();
      REQUIRE(tokenizer.decode(ids).value() == bytes);
      REQUIRE(ids.size() == spans.size());
      std::size_t at = 0;
      for (std::size_t i = 0; i < ids.size(); ++i) {
        REQUIRE(spans[i].id == ids[i]);
        REQUIRE(spans[i].begin == at);
        REQUIRE(bytes.substr(at, spans[i].end - at) == tokenizer.token_bytes(ids[i]));
        at = spans[i].end;
      }
      REQUIRE(at == bytes.size());
    }
  }
}

TEST_CASE("byte-level: merges, special tokens and the prefix space") {
  const Tokenizer tokenizer = tiny();
  CHECK(tokenizer.encode("hello").value() == Ids{259});
  CHECK(tokenizer.encode("helo w").value() == Ids{256, 'l', 'o', 260});
  CHECK(tokenizer.encode("a<|endoftext|>b").value() == Ids{'a', 261, 'b'});
  CHECK(tokenizer.encode("<|endoftext|>", {SpecialTokens::literal}).value().size() == 13);
  Json json = tiny_tokenizer();
  json["pre_tokenizer"]["add_prefix_space"] = true;
  const Tokenizer prefixed = Tokenizer::from_tokenizer_json(json.dump(), "prefixed").value();
  CHECK(prefixed.encode("w").value() == Ids{260});
  CHECK(prefixed.encode(" w").value() == Ids{260});
  CHECK(prefixed.encode("").value().empty());
  CHECK(prefixed.encode_with_offsets("hw").value() ==
        std::vector<TokenSpan>{{' ', 0, 0}, {'h', 0, 1}, {'w', 1, 2}});
}

TEST_CASE("byte-level: merges may be strings or arrays, and added tokens may lie beyond the vocabulary") {
  Json json = tiny_tokenizer();
  json["model"]["merges"] = Json::array();
  for (const auto& [left, right] :
       {std::pair("h", "e"), {"l", "l"}, {"he", "ll"}, {"hell", "o"}, {"Ġ", "w"}}) {
    json["model"]["merges"].push_back({left, right});
  }
  json["added_tokens"].push_back({{"id", 262}, {"content", "<|end|>"}, {"special", false}});
  json["added_tokens"].push_back({{"id", 263}, {"content", "<|end|>!"}, {"special", false}});
  const Tokenizer tokenizer = Tokenizer::from_tokenizer_json(json.dump(), "arrays").value();
  CHECK(tokenizer.vocab_size() == 264);
  CHECK(tokenizer.encode("hello<|end|><|end|>!").value() == Ids{259, 262, 263});
  CHECK(tokenizer.encode("<|end|>", {SpecialTokens::literal}).value() ==
        Ids{262});  // not special: always parsed
  CHECK(!tokenizer.is_special(262));
}

TEST_CASE("byte-level: a token that its own bytes do not merge to is never a short cut") {
  Json json = tiny_tokenizer();
  json["model"]["vocab"]["he"] = 257, json["model"]["vocab"]["ll"] = 256;  // ids in another order than ranks
  json["model"]["merges"] = {"l l", "h e", "l o", "he ll", "hell o", "Ġ w"};
  json["model"]["vocab"]["lo"] = 262;
  json["model"]["merges"] = {"l o", "l l", "h e", "he ll", "hell o", "Ġ w"};
  const auto tokenizer = Tokenizer::from_tokenizer_json(json.dump(), "odd").value();
  CHECK(tokenizer.encode("hello").value() == Ids{257, 'l', 262});
  json["model"]["ignore_merges"] = true;
  CHECK(Tokenizer::from_tokenizer_json(json.dump(), "odd").value().encode("hello").value() == Ids{259});
}

TEST_CASE("pre-tokeniser: ASCII by hand splits as PCRE2 does") {
  const Pretokenizer pretokenizer;
  SplitMix64 random(21);
  constexpr std::string_view kAlphabet = "aZ09 '\t\n\r\x0b\x1c.strevmld  ";
  for (int round = 0; round < 20000; ++round) {
    std::string text(1 + random.below(12), ' ');
    for (char& c : text) c = kAlphabet[random.below(kAlphabet.size())];
    std::vector<std::string> fast, slow;
    Pretokenizer::Words words(pretokenizer, text);
    for (auto word = words.next(); !word.empty(); word = words.next()) fast.emplace_back(word);
    Pretokenizer::Words regex(pretokenizer, text, Pretokenizer::Path::regex_only);
    for (auto word = regex.next(); !word.empty(); word = regex.next()) slow.emplace_back(word);
    REQUIRE_MESSAGE(fast == slow, text);
  }
}
