// Tiny tokenizer files built in memory, and small readers.
#pragma once

#include <doctest/doctest.h>

#include <bit>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "tests/data.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/tokenizer.h"

namespace inkling::test {

using Json = nlohmann::ordered_json;

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE_MESSAGE(file.good(), path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

inline Json golden() {
  return Json::parse(read_file(source_dir() / "tests/golden/tokenizer_golden.json"));
}

/// Ids 0–255 are the bytes themselves, 256 … the merges' tokens, the last one <|endoftext|>.
inline Json tiny_vocab() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte)
    vocab[to_byte_alphabet(std::string(1, static_cast<char>(byte)))] = byte;
  int id = 256;
  for (const char* piece : {"he", "ll", "hell", "hello", "Ġw", "<|endoftext|>"}) vocab[piece] = id++;
  return vocab;
}

inline Json tiny_tokenizer() {
  Json json;
  json["version"] = "1.0";
  json["added_tokens"] = {{{"id", 261},
                           {"content", "<|endoftext|>"},
                           {"single_word", false},
                           {"lstrip", false},
                           {"rstrip", false},
                           {"normalized", false},
                           {"special", true}}};
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  json["post_processor"] = {{"type", "ByteLevel"}};
  json["decoder"] = {{"type", "ByteLevel"}};
  json["model"] = {{"type", "BPE"}, {"unk_token", nullptr}, {"vocab", tiny_vocab()}};
  json["model"]["merges"] = {"h e", "l l", "he ll", "hell o", "Ġ w"};
  return json;
}

inline constexpr std::string_view kTinyMerges = "#version: 0.2\nh e\nl l\nhe ll\nhell o\nĠ w\n";

inline Tokenizer tiny() {
  return Tokenizer::from_tokenizer_json(tiny_tokenizer().dump(), "tiny").value();
}

/// A writer of protocol-buffer messages.
class Wire {
 public:
  Wire& varint(std::uint32_t number, std::uint64_t value) { return key(number, 0).raw(value); }
  Wire& bytes(std::uint32_t number, std::string_view value) {
    key(number, 2).raw(value.size());
    out_ += value;
    return *this;
  }
  Wire& number(std::uint32_t number, float value) {
    key(number, 5);
    for (int i = 0; i < 4; ++i) out_ += static_cast<char>(std::bit_cast<std::uint32_t>(value) >> (8 * i));
    return *this;
  }
  const std::string& str() const { return out_; }

 private:
  Wire& key(std::uint32_t number, std::uint32_t type) { return raw(std::uint64_t{number} << 3 | type); }
  Wire& raw(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) out_ += static_cast<char>(value | 0x80);
    out_ += static_cast<char>(value);
    return *this;
  }
  std::string out_;
};

struct TinyPiece {
  std::string text;
  float score = 0;
  std::uint64_t type = 1;
};

/// A trie of 512 units in the layout of darts-clone whose only rule is "A"; unused units can match nothing.
struct TinyCharsmap {
  std::vector<std::uint32_t> units = std::vector<std::uint32_t>(512, 0x80000000U);
  std::string replacements = std::string("a\0", 2);

  TinyCharsmap() {
    units[0] = 256U << 10;                                        // the root's children are at 256 ^ byte
    units[256 ^ 'A'] = 'A' | 0x100U | ((256U ^ 'A') ^ 1U) << 10;  // its value is at 1
    units[1] = 0x80000000U;                                       // replacement 0
  }
  std::string str() const {
    std::string out;
    const auto word = [&](std::uint32_t value) {
      for (int i = 0; i < 4; ++i) out += static_cast<char>(value >> (8 * i));
    };
    word(static_cast<std::uint32_t>(4 * units.size()));
    for (const std::uint32_t unit : units) word(unit);
    return out + replacements;
  }
};

struct TinyModel {
  std::vector<TinyPiece> pieces = {{"<unk>", 0, 2}, {"<s>", 0, 3}, {"</s>", 0, 3}, {"\u2581", -2},
                                   {"a", -3},       {"b", -3},     {"ab", -1},     {"\u2581ab", -0.5F}};
  Wire trainer = Wire().varint(3, 1);
  Wire normalizer = Wire().bytes(2, TinyCharsmap().str());
  std::string extra;

  std::string str() const {
    Wire model;
    for (const TinyPiece& piece : pieces) {
      model.bytes(1, Wire().bytes(1, piece.text).number(2, piece.score).varint(3, piece.type).str());
    }
    return model.bytes(2, trainer.str()).bytes(3, normalizer.str()).str() + extra;
  }
};

}  // namespace inkling::test
