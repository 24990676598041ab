// Images: the same tokenizer as the files it was made of, and no harm from bytes that are none.
#include "tokenizer/image.h"

#include <algorithm>
#include <cstring>
#include <ctime>

#include "tests/tokenizer/fixtures.h"
#include "tests/tokenizer/generated_text.h"

using namespace inkling;
using namespace inkling::test;

namespace {

using Bytes = std::vector<std::byte>;
constexpr std::size_t kHeader = 16;

Result<Tokenizer> of(const Bytes& image) {
  return Tokenizer::from_image(image, nullptr);
}

/// The image that its arrays would have had, whatever they are now.
Bytes with_checksum(Bytes image) {
  const std::uint64_t sum = image_checksum(std::span(image).subspan(kHeader));
  std::memcpy(image.data() + 8, &sum, sizeof sum);
  return image;
}

std::string some_text(std::uint64_t seed) {
  SplitMix64 random(seed);
  return generated_text(seed, 20) + random_bytes(random, 20) + "hello hell <|endoftext|>" +
         std::string(200, 'l');
}

void check_same(const Tokenizer& a, const Tokenizer& b, const std::string& text) {
  for (const auto special : {SpecialTokens::parse, SpecialTokens::literal}) {
    const auto ids = a.encode(text, {special}).value();
    CHECK(b.encode(text, {special}).value() == ids);
    CHECK(b.encode_with_offsets(text, {special}).value() == a.encode_with_offsets(text, {special}).value());
    CHECK(b.decode(ids).value() == text);
  }
}

void check_same(const Tokenizer& a, const Tokenizer& b) {
  REQUIRE(a.vocab_size() == b.vocab_size());
  CHECK(a.description() == b.description());
  CHECK(a.eos_id() == b.eos_id());
  for (std::int32_t id = 0; id < a.vocab_size(); ++id) {
    REQUIRE(a.token_text(id) == b.token_text(id));
    REQUIRE(a.token_bytes(id) == b.token_bytes(id));
    REQUIRE(a.is_special(id) == b.is_special(id));
    REQUIRE(b.id_of(a.token_text(id)) == id);
  }
}

/// What loads must work: ids of the vocabulary, spans that cover the text, the text back.
bool loads_and_works(const Bytes& image, const std::string& text) {
  const auto tokenizer = of(image);
  if (!tokenizer) {
    CHECK(tokenizer.error().code() == Code::malformed);
    return false;
  }
  std::size_t at = 0;
  for (const TokenSpan& span : tokenizer->encode_with_offsets(text).value()) {
    REQUIRE(span.begin == at);
    REQUIRE(span.end <= text.size());
    at = span.end;
    REQUIRE(span.id < tokenizer->vocab_size());
  }
  CHECK(at == text.size());
  CHECK(tokenizer->decode(tokenizer->encode(text).value()).value().size() >= text.size());
  CHECK(tokenizer->description().size() > 10);
  tokenizer->id_of("hello");
  return true;
}

}  // namespace

TEST_CASE("image: the same tokenizer, with every setting") {
  for (const bool prefix : {false, true}) {
    for (const bool ignore : {false, true}) {
      Json json = tiny_tokenizer();
      json["pre_tokenizer"]["add_prefix_space"] = prefix;
      json["model"]["ignore_merges"] = ignore;
      json["added_tokens"].push_back({{"id", 262}, {"content", "<more>"}, {"special", false}});
      const Tokenizer files = Tokenizer::from_tokenizer_json(json.dump(), "tiny").value();
      const Bytes image = files.image();
      const Tokenizer mapped = of(image).value();
      check_same(files, mapped);
      CHECK(mapped.image() == image);
      const std::string text = "hello<more>hell hello  w<|endoftext|>";
      CHECK(mapped.encode(text).value() == files.encode(text).value());
      CHECK(mapped.encode_with_offsets(text).value() == files.encode_with_offsets(text).value());
      if (prefix) continue;
      for (std::uint64_t seed = 0; seed < 50; ++seed) check_same(files, mapped, some_text(seed));
    }
  }
}

TEST_CASE("[golden] image: of GPT-2's tokenizer, over the torture strings, books and generated text") {
  if (!have_data("gpt2-tokenizer/tokenizer.json")) return;
  const Tokenizer files = Tokenizer::load(data_dir() / "gpt2-tokenizer").value();
  const Bytes image = files.image();
  const Tokenizer mapped = of(image).value();
  check_same(files, mapped);
  for (std::uint64_t seed = 0; seed < 30; ++seed) check_same(files, mapped, generated_text(seed, 3000));
  for (const char* name : {"gpt2-tokenizer/torture.inp", "text/tinyshakespeare.txt"}) {
    const std::string text = read_file(data_dir() / name);
    CHECK(!text.empty());
    check_same(files, mapped, text);
  }
}

TEST_CASE("[golden] speed: GPT-2's tokenizer from its image (the figure is for people, not a check)") {
  if (!have_data("gpt2-tokenizer/tokenizer.json")) return;
  const Bytes image = Tokenizer::load(data_dir() / "gpt2-tokenizer").value().image();
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const std::clock_t begin = std::clock();
    CHECK(of(image).value().vocab_size() == 50257);
    best = std::min(best, static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
  }
  MESSAGE(image.size() << " bytes: " << best * 1e3 << " ms");
}

TEST_CASE("image: its memory is kept by the owner that was given, as long as a copy of the tokenizer lives") {
  auto bytes = std::make_shared<Bytes>(tiny().image());
  const std::weak_ptr<Bytes> watched = bytes;
  auto tokenizer = std::make_unique<Tokenizer>(Tokenizer::from_image(*bytes, bytes).value());
  const Tokenizer copy = *tokenizer;
  bytes.reset();
  tokenizer.reset();
  CHECK(!watched.expired());
  CHECK(copy.encode("hello").value() == std::vector<std::int32_t>{259});
}

TEST_CASE("image: other kinds have none") {
  CHECK(Tokenizer::from_characters(R"({"stoi": {"a": 0}})", "m").value().image().empty());
  CHECK(Tokenizer::from_sentencepiece(TinyModel().str(), "m").value().image().empty());
}

TEST_CASE("image: cut anywhere it is refused, with the right checksum as well") {
  const Bytes image = tiny().image();
  for (std::size_t size = 0; size < image.size(); ++size) {
    const Bytes cut(image.begin(), image.begin() + static_cast<std::ptrdiff_t>(size));
    REQUIRE(!of(cut));
    if (size >= kHeader && size % 8 == 0) REQUIRE(!of(with_checksum(cut)));
  }
  Bytes longer = image;
  longer.resize(image.size() + 8);
  CHECK(!of(with_checksum(longer)));
  Bytes shifted(image.size() + 8);
  std::ranges::copy(image, shifted.begin() + 1);
  const auto aside = Tokenizer::from_image(std::span(shifted).subspan(1, image.size()), nullptr);
  REQUIRE(!aside);
  CHECK(std::string(aside.error().what()).find("multiple of 8") != std::string::npos);
}

TEST_CASE("image: any byte that has changed is seen, and made to look right, it is refused or does no harm") {
  const Bytes image = tiny().image();
  const std::string text = some_text(1);
  SplitMix64 random(7);
  for (std::size_t at = 0; at < image.size(); ++at) {
    Bytes damaged = image;
    damaged[at] ^= static_cast<std::byte>(1 + random.below(255));
    REQUIRE(!of(damaged));
  }
  int loaded = 0;
  for (int round = 0; round < 4000; ++round) {
    Bytes hostile = image;
    for (std::uint64_t changes = 1 + random.below(3); changes > 0; --changes) {
      constexpr std::uint32_t kWords[] = {0,   1,          2,          255,        262,
                                          263, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF};
      const std::size_t at = kHeader + random.below(hostile.size() - kHeader - 4);
      std::uint32_t word = 0;
      std::memcpy(&word, hostile.data() + at / 4 * 4, 4);
      word = random.below(2) == 0 ? kWords[random.below(std::size(kWords))]
                                  : word ^ 1U << static_cast<unsigned>(random.below(32));
      std::memcpy(hostile.data() + at / 4 * 4, &word, 4);
    }
    loaded += loads_and_works(with_checksum(hostile), text) ? 1 : 0;
  }
  CHECK(loaded > 100);  // of indexes and texts that say something else
  CHECK(loaded < 3900);
}
