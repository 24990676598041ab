// Thousands of broken files: each gives Code::malformed with the file's name, none crashes or hangs.
#include <functional>

#include "tests/tokenizer/fixtures.h"
#include "tests/tokenizer/generated_text.h"
#include "tests/weights/allocation_meter.h"

using namespace inkling;
using namespace inkling::test;

namespace {

using Loader = std::function<Result<Tokenizer>(const std::string&)>;

/// 1 when refused properly, `field` named, in bounded memory; with `may_load`, also when it loads and works.
int refused(const Loader& load, const std::string& content, bool may_load = false,
            std::string_view field = "") {
  const auto [tokenizer, peak] = [&] {
    const AllocationMeter meter;
    auto loaded = load(content);
    return std::pair(std::move(loaded), meter.peak_bytes());
  }();
  CHECK(peak < (std::size_t{1} << 20) + 100 * content.size());
  if (tokenizer) {
    const auto ids = tokenizer->encode("ab hello <|endoftext|>");
    if (ids) (void)tokenizer->decode(*ids).value();
    CHECK_MESSAGE(may_load, content.substr(0, 200));
    return may_load ? 1 : 0;
  }
  const std::string message = tokenizer.error().message();
  const bool named = tokenizer.error().code() == Code::malformed &&
                     message.find("bad-file: " + std::string(field)) != std::string::npos;
  CHECK_MESSAGE(named, message);
  CHECK(message.size() < 400);
  CHECK(std::ranges::none_of(message,
                             [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; }));
  return named ? 1 : 0;
}

const Loader kTokenizerJson = [](const std::string& s) {
  return Tokenizer::from_tokenizer_json(s, "bad-file");
};
const Loader kVocab = [](const std::string& s) {
  return Tokenizer::from_vocab_and_merges(s, "bad-file", kTinyMerges, "m");
};
const Loader kMerges = [](const std::string& s) {
  return Tokenizer::from_vocab_and_merges(tiny_vocab().dump(), "v", s, "bad-file");
};
const Loader kCharacters = [](const std::string& s) { return Tokenizer::from_characters(s, "bad-file"); };
const Loader kModel = [](const std::string& s) { return Tokenizer::from_sentencepiece(s, "bad-file"); };

const Json kMeta =
    Json::parse(R"({"stoi": {"a": 0, "b": 1, "é": 2}, "itos": {"0": "a", "1": "b", "2": "é"}})");

int every_truncation(const Loader& load, const std::string& good, bool may_load) {
  int count = 0;
  for (std::size_t size = 0; size < good.size(); ++size)
    count += refused(load, good.substr(0, size), may_load);
  return count;
}

/// "/model/vocab/he" → "model.vocab": what an error about it names at least; a field of the top, itself.
std::string dotted_parent(std::string path) {
  std::replace(path.begin(), path.end(), '/', '.');
  return path.substr(1, path.rfind('.') == 0 ? path.npos : path.rfind('.') - 1);
}

int flips(const Loader& load, const std::string& good, int rounds) {
  SplitMix64 random(123);
  int count = 0;
  for (int round = 0; round < rounds; ++round) {
    std::string bad = good;
    bad[random.below(bad.size())] = static_cast<char>(random.below(256));
    count += refused(load, bad, true);
  }
  return count;
}

}  // namespace

TEST_CASE("bad files: every truncation") {
  const std::string json = tiny_tokenizer().dump(1);
  CHECK(every_truncation(kTokenizerJson, json, false) == static_cast<int>(json.size()));
  const std::string vocab = tiny_vocab().dump();
  CHECK(every_truncation(kVocab, vocab, false) == static_cast<int>(vocab.size()));
  const std::string meta = kMeta.dump();
  CHECK(every_truncation(kCharacters, meta, false) == static_cast<int>(meta.size()));
  every_truncation(kMerges, std::string(kTinyMerges), true);  // whole lines may be missing
  every_truncation(kModel, TinyModel().str(), true);          // so may the last fields
}

TEST_CASE("bad files: flipped bytes") {
  flips(kTokenizerJson, tiny_tokenizer().dump(), 1500);
  flips(kVocab, tiny_vocab().dump(), 500);
  flips(kMerges, std::string(kTinyMerges), 500);
  flips(kCharacters, kMeta.dump(), 500);
  flips(kModel, TinyModel().str(), 3000);
}

TEST_CASE("bad files: each field of tokenizer.json with each wrong value") {
  const Json good = tiny_tokenizer();
  const std::vector<Json> wrong = {Json(true), Json(7),       Json(-1),      Json(1.5),
                                   Json("x"),  Json::array(), Json::object()};
  const std::vector<const char*> fields = {"/added_tokens",
                                           "/added_tokens/0",
                                           "/added_tokens/0/id",
                                           "/added_tokens/0/content",
                                           "/added_tokens/0/special",
                                           "/added_tokens/0/lstrip",
                                           "/added_tokens/0/rstrip",
                                           "/added_tokens/0/single_word",
                                           "/normalizer",
                                           "/pre_tokenizer",
                                           "/pre_tokenizer/type",
                                           "/pre_tokenizer/add_prefix_space",
                                           "/pre_tokenizer/use_regex",
                                           "/post_processor",
                                           "/post_processor/type",
                                           "/decoder",
                                           "/decoder/type",
                                           "/model",
                                           "/model/type",
                                           "/model/dropout",
                                           "/model/unk_token",
                                           "/model/continuing_subword_prefix",
                                           "/model/end_of_word_suffix",
                                           "/model/byte_fallback",
                                           "/model/ignore_merges",
                                           "/model/vocab",
                                           "/model/vocab/he",
                                           "/model/merges",
                                           "/model/merges/0"};
  int count = 0;
  for (const char* field : fields) {
    for (const Json& value : wrong) {
      Json bad = good;
      bad[Json::json_pointer(field)] = value;
      const std::string path(field);
      const bool legal =
          (value.is_boolean() && (path.ends_with("special") || path.ends_with("use_regex") ||
                                  path.ends_with("add_prefix_space") || path.ends_with("ignore_merges"))) ||
          (value == Json::array() && (path == "/added_tokens" || path == "/model/merges")) ||
          (value == Json("x") && path == "/added_tokens/0/content");
      // Of an empty vocabulary, the added token's id is what cannot be.
      const bool empty = value == Json::object() && path == "/model/vocab";
      if (!legal)
        count +=
            refused(kTokenizerJson, bad.dump(), false, empty ? "added_tokens.0.id" : dotted_parent(path));
    }
  }
  for (const char* field :
       {"/pre_tokenizer", "/pre_tokenizer/type", "/model", "/model/vocab", "/model/merges",
        "/added_tokens/0/id", "/added_tokens/0/content", "/post_processor/type", "/decoder/type"}) {
    Json bad = good;
    const Json::json_pointer pointer(field);
    bad[pointer.parent_pointer()].erase(pointer.back());
    count += refused(kTokenizerJson, bad.dump(), false, dotted_parent(field));
  }
  CHECK(count > 190);
}

TEST_CASE("bad files: whatever follows a NUL is not passed over") {
  const std::string nul(1, '\0');
  for (const std::string& tail : {nul, nul + "{}", nul + "rubbish"}) {
    refused(kTokenizerJson, tiny_tokenizer().dump() + tail);
    refused(kVocab, tiny_vocab().dump() + tail);
    refused(kCharacters, kMeta.dump() + tail);
  }
}

TEST_CASE("bad files: their words neither drive a terminal nor fill a log") {
  for (const std::string& word : {std::string("\x1b[2J\x7f\n"), std::string("\u009b2J"),
                                  std::string(100'000, 'x'), std::string(79, 'x') + "字"}) {
    CAPTURE(word.substr(0, 100));
    for (const char* field : {"/pre_tokenizer/type", "/model/type", "/model/vocab/he", "/normalizer"}) {
      Json bad = tiny_tokenizer();
      bad[Json::json_pointer(field)] = word;
      refused(kTokenizerJson, bad.dump());
    }
    Json bad = tiny_tokenizer();
    bad["model"]["merges"][0] = word + " e";
    refused(kTokenizerJson, bad.dump());
    bad = tiny_tokenizer();
    bad["model"]["vocab"][word] = -1;
    refused(kTokenizerJson, bad.dump());
    bad["model"]["vocab"][word] = 7;
    refused(kTokenizerJson, bad.dump());
    bad["model"]["vocab"][word] =
        262;  // a space, a control character or too long: none is of the byte alphabet
    refused(kTokenizerJson, bad.dump());
    refused(kCharacters, Json{{"stoi", {{word, 0}}}}.dump());
    refused(kCharacters, Json{{"stoi", {{"a", 0}}}, {"itos", {{"0", word}}}}.dump());
    const std::string key = Json(word).dump();
    refused(kVocab, '{' + key + ": 0, " + key + ": 1}");
    TinyModel twice;
    twice.pieces.push_back({word.substr(0, 300), 0, 1});
    twice.pieces.push_back(twice.pieces.back());
    refused(kModel, twice.str());
  }
}

TEST_CASE("bad files: ids that are huge, negative, twice, with holes, and unusable tokens and merges") {
  for (const char* id : {"262", "-1", "2147483648", "4294967296", "9223372036854775807",
                         "18446744073709551615", "99999999999999999999999", "1e2", "256.0", "null", "257"}) {
    std::string bad = tiny_vocab().dump();
    bad.replace(bad.find("\"he\":256"), 8, std::string("\"he\":") + id);
    refused(kVocab, bad);
  }
  for (int byte = 0; byte < 256; ++byte) {  // without the token of one byte
    Json bad = tiny_vocab();
    bad.erase(to_byte_alphabet(std::string(1, static_cast<char>(byte))));
    refused(kVocab, bad.dump());
    int id = 0;
    for (auto& entry : bad) entry = id++;
    refused([&](const std::string& s) { return Tokenizer::from_vocab_and_merges(s, "bad-file", "", "m"); },
            bad.dump());
  }
  std::string twice = tiny_vocab().dump();
  refused(kVocab, twice.replace(twice.find("\"ll\""), 4, "\"he\""));
  Json space = tiny_vocab();
  space["a b"] = 262;  // a space is Ġ in this alphabet
  refused(kVocab, space.dump());
  for (const char* line : {"h", "h e l", " he", "he ", "h  e", "q z", "x he", "h e\nh e", "h \xFF"}) {
    refused(kMerges, std::string("#version: 0.2\n") + line + "\n");
  }
  for (const char* text :
       {"", "[]", "{}", "null", "{\"stoi\": {}}", "{\"stoi\": {\"ab\": 0}}", "{\"stoi\": {\"\": 0}}",
        "{\"stoi\": {\"a\": 1}}", "{\"stoi\": {\"a\": 0, \"b\": 0}}", "{\"stoi\": {\"a\": 0, \"a\": 0}}",
        "{\"stoi\": {\"a\": 0}, \"itos\": {}}", "{\"stoi\": {\"a\": 0}, \"itos\": {\"0\": \"b\"}}"}) {
    refused(kCharacters, text);
  }
  for (const char* most :
       {"[],", "0,", "\"\",", "{},", "[[[[[[]]]]]],"}) {  // as much tree as a byte can ask for
    std::string items;
    while (items.size() < 300'000) items += most;
    refused(kTokenizerJson, "{\"model\": [" + items + "0]}", false, "pre_tokenizer");
  }
  refused(kTokenizerJson, std::string(100000, '['));
  refused(kTokenizerJson, std::string(100000, '{'));
  Json again = tiny_tokenizer();
  again["added_tokens"].push_back(again["added_tokens"][0]);
  refused(kTokenizerJson, again.dump());
  again["added_tokens"][1]["id"] = 262;
  refused(kTokenizerJson, again.dump());
  again["added_tokens"][0]["content"] = again["added_tokens"][1]["content"] = "<|new|>";
  again["added_tokens"][0]["id"] = 262;
  refused(kTokenizerJson, again.dump());  // the text twice would leave 263 without a token
  again["added_tokens"][0]["id"] = 263;
  refused(kTokenizerJson, again.dump());
}

TEST_CASE("bad files: missing and unreadable ones are Code::file, named") {
  const auto folder = std::filesystem::temp_directory_path() / "inkling-test-tokenizer";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const auto code_of = [&](const std::filesystem::path& path) {
    const auto tokenizer = Tokenizer::load(path);
    REQUIRE(!tokenizer);
    CHECK_MESSAGE(tokenizer.error().message().find(folder.string()) != std::string::npos,
                  tokenizer.error().message());
    return tokenizer.error().code();
  };
  CHECK(code_of(folder) == Code::file);
  CHECK(code_of(folder / "absent") == Code::file);
  CHECK(code_of(folder / "tokenizer.json") == Code::file);
  std::ofstream(folder / "notes.txt") << "x";
  CHECK(code_of(folder / "notes.txt") == Code::malformed);  // no format has that name
  std::ofstream(folder / "vocab.json") << "{}";
  CHECK(code_of(folder) == Code::file);  // merges.txt is missing
  std::ofstream(folder / "merges.txt") << "";
  CHECK(code_of(folder) == Code::malformed);
  std::filesystem::create_directories(folder / "tokenizer.json");
  CHECK(code_of(folder) == Code::file);
  std::filesystem::remove_all(folder);
}
