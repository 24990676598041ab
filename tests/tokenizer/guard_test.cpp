// Crafted SentencePiece models: each is refused by name before the library sees it.
#include "tests/tokenizer/fixtures.h"
#include "tests/tokenizer/generated_text.h"
#include "tokenizer/sentencepiece_guard.h"

using namespace inkling;
using namespace inkling::test;

namespace {

void check_refused(const std::string& model, std::string_view field) {
  const auto tokenizer = Tokenizer::from_sentencepiece(model, "bad.model");
  REQUIRE_MESSAGE(!tokenizer, field);
  CHECK(tokenizer.error().code() == Code::malformed);
  CHECK_MESSAGE(tokenizer.error().message().starts_with("bad.model: " + std::string(field)),
                tokenizer.error().message());
}

std::string with_charsmap(const TinyCharsmap& charsmap) {
  TinyModel model;
  model.normalizer = Wire().bytes(2, charsmap.str());
  return model.str();
}

/// A trie that matches "c", "cc", … up to `depth`, each with a value if `values`.
TinyCharsmap nested(std::uint32_t depth, bool values) {
  TinyCharsmap map;
  map.units.assign(std::size_t{256} * (depth + 2), 0x80000000U);
  const auto base = [](std::uint32_t matched) { return (matched + 1) * 256 ^ (matched == 0 ? 0U : 1U); };
  map.units[0] = 256U << 10;
  for (std::uint32_t matched = 0; matched < depth; ++matched) {
    const std::uint32_t child = base(matched) ^ 'c';
    map.units[child] = 'c' | (values ? 0x100U : 0U) | (child ^ base(matched + 1)) << 10;
  }
  return map;
}

}  // namespace

TEST_CASE("guard: refuses every crafted model by field") {
  REQUIRE(Tokenizer::from_sentencepiece(TinyModel().str(), "good.model").has_value());
  const auto pieces = [](auto&& change) {
    TinyModel model;
    change(model.pieces);
    return model.str();
  };
  check_refused("", "pieces: expected one unknown");
  check_refused(pieces([](auto& p) { p[0].type = 1; }), "pieces: expected one unknown");
  check_refused(pieces([](auto& p) { p[1].type = 2; }), "pieces: expected one unknown");
  check_refused(pieces([](auto& p) { p[4].text = ""; }), "pieces.4.piece");
  check_refused(pieces([](auto& p) { p[4].text = std::string("a\0b", 3); }), "pieces.4.piece");
  check_refused(pieces([](auto& p) { p[4].text = "\xED\xA0\x80"; }), "pieces.4.piece");
  check_refused(pieces([](auto& p) { p[4].text = std::string(513, 'x'); }), "pieces.4.piece");
  check_refused(pieces([](auto& p) { p[4].text = "b"; }), "pieces: \"b\": expected the piece once");
  check_refused(pieces([](auto& p) { p[1].text = "b"; }), "pieces: \"b\": expected the piece once");
  check_refused(pieces([](auto& p) { p[4].score = std::numeric_limits<float>::quiet_NaN(); }),
                "pieces.4.score");
  check_refused(pieces([](auto& p) { p[4].score = -std::numeric_limits<float>::infinity(); }),
                "pieces.4.score");
  check_refused(pieces([](auto& p) { p[4].score = 1e30F; }), "pieces.4.score");
  for (const std::uint64_t type : {std::uint64_t{0}, std::uint64_t{7}, ~std::uint64_t{0}}) {
    check_refused(pieces([&](auto& p) { p[4].type = type; }), "pieces.4.type");
  }
  check_refused(pieces([](auto& p) { p[4].type = 6; }), "pieces: expected bytes");
  check_refused(pieces([](auto& p) { p[4] = {"<0x0A>", 0, 6}; }), "pieces: expected 0 byte pieces");
  check_refused(pieces([](auto& p) {
                  for (std::size_t n = 1; n <= 33; ++n) p.push_back({std::string(n, 'q'), 0, 4});
                }),
                "pieces: more than 32 user-defined");
  check_refused(pieces([](auto& p) { p.resize(3); }), "pieces: expected a piece that text can become");
  const auto trainer = [](Wire wire) {
    TinyModel model;
    model.trainer = std::move(wire);
    return model.str();
  };
  check_refused(trainer(Wire().varint(3, 0)), "trainer_spec.model_type");
  check_refused(trainer(Wire().varint(3, 5)), "trainer_spec.model_type");
  check_refused(trainer(Wire().bytes(3, "x")), "trainer_spec.model_type");
  check_refused(trainer(Wire().varint(35, 1)), "pieces: expected 256 byte pieces");
  check_refused(trainer(Wire().varint(35, 2)), "trainer_spec.byte_fallback");
  check_refused(trainer(Wire().bytes(44, std::string(65, 'x'))), "trainer_spec.unk_surface");
  check_refused(trainer(Wire().bytes(44, std::string("\0", 1))), "trainer_spec.unk_surface");
  check_refused(trainer(Wire().bytes(2, std::string((1 << 20) + 1, 'x'))), "trainer_spec.field 2");
  check_refused(TinyModel().str() + Wire().bytes(2, "").str(), "ModelProto: field 2 is there twice");
  check_refused(TinyModel().str() + Wire().varint(1, 1).str(), "ModelProto: expected wire type 2");
  check_refused(TinyModel().str() + Wire().bytes(4, std::string(70000, ' ')).str(), "self_test_data");
  check_refused(TinyModel().str() + Wire().bytes(5, Wire().bytes(2, TinyCharsmap().str()).str()).str(),
                "denormalizer");
  check_refused(TinyModel().str() + '\x0B', "ModelProto: expected wire type");
  check_refused(TinyModel().str() + std::string(10, '\xFF'), "ModelProto: expected a number");
  check_refused(std::string(SentencePieceLimits::kFileBytes + 1, '\0'), "size");
}

TEST_CASE("guard: refuses every crafted character map") {
  const std::string kField = "normalizer_spec.precompiled_charsmap: ";
  const auto crafted = [](auto&& change) {
    TinyCharsmap map;
    change(map);
    return with_charsmap(map);
  };
  CHECK(Tokenizer::from_sentencepiece(crafted([](auto&) {}), "good.model").has_value());
  check_refused(crafted([](auto& m) { m.units[0] = 0x1FFFFFU << 10; }),
                kField + "the trie leads out");  // out of the trie
  check_refused(crafted([](auto& m) { m.units[256 ^ 'A'] = 'A' | 4096U << 10; }),
                kField + "the trie leads out");
  check_refused(crafted([](auto& m) { m.units[256 ^ 'A'] = 'A' | 'A' << 10; }),
                kField);                                                      // back to base 256: a cycle
  check_refused(crafted([](auto& m) { m.units[1] = 0x80000005U; }), kField);  // replacement outside
  check_refused(crafted([](auto& m) { m.replacements = "a"; }), kField);      // without its NUL
  check_refused(crafted([](auto& m) { m.replacements = ""; }), kField);
  check_refused(crafted([](auto& m) { m.replacements = std::string("\xFF\0", 2); }), kField);
  check_refused(crafted([](auto& m) { m.replacements = std::string(65, 'x') + '\0'; }), kField);
  check_refused(crafted([](auto& m) { m.units.clear(); }), kField);
  check_refused(crafted([](auto& m) { m.units.resize(300); }), kField + "the trie leads out");
  for (const char* blob : {"x", "abc", "\x04\x01\x01\x01", "\xFF\xFF\xFF\xFFxxxx", "\x03\x01\x01\x01zzzzz"}) {
    TinyModel model;
    model.normalizer = Wire().bytes(2, blob);
    check_refused(model.str(), kField);
  }
  CHECK(Tokenizer::from_sentencepiece(with_charsmap(nested(20, true)), "nested.model").has_value());
  check_refused(with_charsmap(nested(33, true)),
                kField + "too many nested");  // more matches than the library's array
  check_refused(with_charsmap(nested(300, false)), kField + "a rule is too long");
}

TEST_CASE("[golden] guard: damaged copies of real models load or are refused, and then work") {
  if (!have_data("sentencepiece/test_unigram.model")) return;
  SplitMix64 random(77);
  for (const char* name : {"test_unigram.model", "wagahaiwa_nekodearu_2000_bpe_byte.model"}) {
    const std::string good = read_file(data_dir() / "sentencepiece" / name);
    int loaded = 0;
    for (int round = 0; round < 150; ++round) {
      std::string bad = good;
      for (std::uint64_t i = 0, n = 1 + random.below(4); i < n; ++i) {
        bad[random.below(bad.size())] ^= static_cast<char>(1 << random.below(8));
      }
      const auto tokenizer = Tokenizer::from_sentencepiece(bad, "bad.model");
      if (!tokenizer) {
        CHECK(tokenizer.error().code() == Code::malformed);
        continue;
      }
      ++loaded;
      const auto ids = tokenizer->encode(generated_text(static_cast<std::uint64_t>(round), 200)).value();
      CHECK(tokenizer->decode(ids).has_value());
    }
    MESSAGE(std::string(name) << ": " << loaded << " of 150 damaged copies were sound");
  }
}
