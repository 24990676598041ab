#include "tokenizer/sentencepiece_guard.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "engine/base/error.h"
#include "engine/base/shown.h"
#include "tokenizer/charsmap.h"
#include "tokenizer/utf8.h"

namespace inkling {
namespace {

using Limits = SentencePieceLimits;
using Type = SentencePieceFacts::Type;

/// Where we are, for messages.
struct Place {
  std::string_view file;
  std::string path;
  [[noreturn]] void fail(std::string_view what) const {
    throw Error(Code::malformed, std::string(file) + ": " + path + ": " + std::string(what));
  }
  Place in(std::string_view field) const {
    return {file, path.empty() ? std::string(field) : path + '.' + std::string(field)};
  }
};

/// One field of a protocol-buffer message (protobuf.dev/programming-guides/encoding).
struct WireField {
  enum class Kind : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };
  std::uint32_t number = 0;
  Kind kind = Kind::varint;
  std::uint64_t varint = 0;
  std::string_view bytes;  // also the raw bytes of the fixed kinds
};

class WireReader {
 public:
  WireReader(std::string_view message, const Place& place) : rest_(message), place_(place) {}

  /// False at the end of the message.
  bool next(WireField& field) {
    if (rest_.empty()) return false;
    const std::uint64_t tag = varint();
    if (tag >> 3 == 0 || tag >> 3 > 0x1FFFFFFF) place_.fail("expected a field number in 1..2^29-1");
    field.number = static_cast<std::uint32_t>(tag >> 3);
    field.kind = static_cast<WireField::Kind>(tag & 7);
    switch (field.kind) {
      case WireField::Kind::varint:
        field.varint = varint();
        return true;
      case WireField::Kind::fixed64:
        field.bytes = take(8);
        return true;
      case WireField::Kind::bytes:
        field.bytes = take(varint());
        return true;
      case WireField::Kind::fixed32:
        field.bytes = take(4);
        return true;
    }
    place_.fail("expected wire type 0, 1, 2 or 5, got " + std::to_string(tag & 7));
  }

 private:
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      if (shift == 63 && byte > 1) break;
      value |= std::uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return value;
    }
    place_.fail("expected a number of at most 64 bits");
  }
  std::string_view take(std::uint64_t size) {
    if (size > rest_.size())
      place_.fail("expected " + std::to_string(size) + " more bytes, got " + std::to_string(rest_.size()));
    const auto taken = rest_.substr(0, static_cast<std::size_t>(size));
    rest_.remove_prefix(taken.size());
    return taken;
  }

  std::string_view rest_;
  const Place& place_;
};

void expect(const WireField& field, WireField::Kind kind, const Place& place) {
  if (field.kind != kind)
    place.fail("expected wire type " + std::to_string(static_cast<int>(kind)) + ", got " +
               std::to_string(static_cast<int>(field.kind)));
}

std::string_view text_of(const WireField& field, std::size_t limit, const Place& place) {
  expect(field, WireField::Kind::bytes, place);
  if (field.bytes.size() > limit)
    place.fail("expected at most " + std::to_string(limit) + " bytes, got " +
               std::to_string(field.bytes.size()));
  if (!is_valid_utf8(field.bytes)) place.fail("expected UTF-8");
  // The library hands texts on as C strings, where a NUL would make two of them one.
  if (field.bytes.find('\0') != std::string_view::npos) place.fail("expected no NUL");
  return field.bytes;
}

std::uint64_t number_of(const WireField& field, std::uint64_t low, std::uint64_t high, const Place& place) {
  expect(field, WireField::Kind::varint, place);
  if (field.varint < low || field.varint > high)
    place.fail("expected " + std::to_string(low) + ".." + std::to_string(high) + ", got " +
               std::to_string(field.varint));
  return field.varint;
}

SentencePieceFacts::Piece read_piece(std::string_view message, const Place& place) {
  SentencePieceFacts::Piece piece;
  WireReader reader(message, place);
  for (WireField field; reader.next(field);) {
    if (field.number == 1) {
      piece.text = text_of(field, Limits::kPieceBytes, place.in("piece"));
    } else if (field.number == 2) {
      expect(field, WireField::Kind::fixed32, place.in("score"));
      std::uint32_t bits = 0;
      for (std::size_t i = 0; i < 4; ++i)
        bits |= std::uint32_t{static_cast<unsigned char>(field.bytes[i])} << (8 * i);
      piece.score = std::bit_cast<float>(bits);
      if (!(std::fabs(piece.score) <= Limits::kScore))
        place.in("score").fail("expected a finite score of at most 1e9");
    } else if (field.number == 3) {
      piece.type = static_cast<Type>(number_of(field, 1, 6, place.in("type")));
    }
  }
  if (piece.text.empty()) place.in("piece").fail("expected a text, got none");
  return piece;
}

void read_trainer(std::string_view message, const Place& place, SentencePieceFacts& facts) {
  WireReader reader(message, place);
  for (WireField field; reader.next(field);) {
    if (field.kind == WireField::Kind::bytes && field.bytes.size() > Limits::kTextBytes) {
      place.in("field " + std::to_string(field.number)).fail("expected at most 1 MiB");
    }
    switch (field.number) {
      case 3:
        facts.algorithm =
            static_cast<SentencePieceFacts::Algorithm>(number_of(field, 1, 4, place.in("model_type")));
        break;
      case 24:
        facts.space_as_suffix = number_of(field, 0, 1, place.in("treat_whitespace_as_suffix")) != 0;
        break;
      case 35:
        facts.byte_fallback = number_of(field, 0, 1, place.in("byte_fallback")) != 0;
        break;
      case 44:
        facts.unknown_surface = text_of(field, Limits::kSurfaceBytes, place.in("unk_surface"));
        break;
      case 45:
      case 46:
      case 47:
      case 48:
        text_of(field, Limits::kPieceBytes, place.in("field " + std::to_string(field.number)));
        break;
      default:
        break;
    }
  }
}

void read_normalizer(std::string_view message, const Place& place, SentencePieceFacts& facts) {
  WireReader reader(message, place);
  for (WireField field; reader.next(field);) {
    switch (field.number) {
      case 2:
        expect(field, WireField::Kind::bytes, place.in("precompiled_charsmap"));
        facts.charsmap = field.bytes;
        break;
      case 3:
        facts.add_dummy_prefix = number_of(field, 0, 1, place.in("add_dummy_prefix")) != 0;
        break;
      case 4:
        facts.remove_extra_whitespaces = number_of(field, 0, 1, place.in("remove_extra_whitespaces")) != 0;
        break;
      case 5:
        facts.escape_whitespaces = number_of(field, 0, 1, place.in("escape_whitespaces")) != 0;
        break;
      default:
        break;
    }
  }
  if (const char* flaw = charsmap_flaw(facts.charsmap)) place.in("precompiled_charsmap").fail(flaw);
}

void read_denormalizer(std::string_view message, const Place& place) {
  SentencePieceFacts facts;
  read_normalizer(message, place, facts);
  if (!facts.charsmap.empty()) place.fail("expected none (a denormalizer is not supported)");
}

void read_self_test(std::string_view message, const Place& place) {
  if (message.size() > Limits::kSelfTestBytes) place.fail("expected at most 65536 bytes");
  WireReader reader(message, place);
  for (WireField sample; reader.next(sample);) {
    if (sample.number != 1) continue;
    expect(sample, WireField::Kind::bytes, place);
    WireReader texts(sample.bytes, place);
    for (WireField text; texts.next(text);) {
      if (text.number == 1 || text.number == 2) text_of(text, Limits::kSelfTestBytes, place);
    }
  }
}

void check_unique(const SentencePieceFacts& facts, const Place& place) {
  std::vector<std::string_view> texts, symbols;
  for (const auto& piece : facts.pieces) {
    texts.push_back(piece.text);
    if (piece.type == Type::user_defined) symbols.push_back(piece.text);
  }
  std::sort(texts.begin(), texts.end());
  const auto twice = std::adjacent_find(texts.begin(), texts.end());
  if (twice != texts.end()) place.fail(in_quotes(*twice) + ": expected the piece once, got it twice");
  // Sorted, the symbols that begin another one stand before it: a stack of them is the nesting.
  std::sort(symbols.begin(), symbols.end());
  std::vector<std::string_view> nested;
  for (const auto symbol : symbols) {
    while (!nested.empty() && !symbol.starts_with(nested.back())) nested.pop_back();
    nested.push_back(symbol);
    if (nested.size() > Limits::kNestedSymbols)
      place.fail("more than 32 user-defined symbols begin one another");
  }
}

void check_types(const SentencePieceFacts& facts, const Place& place) {
  std::size_t unknown = 0, bytes = 0, usable = 0;
  for (const auto& piece : facts.pieces) {
    unknown += piece.type == Type::unknown ? 1 : 0;
    usable +=
        piece.type == Type::normal || piece.type == Type::user_defined || piece.type == Type::unused ? 1 : 0;
    if (piece.type != Type::byte) continue;
    ++bytes;
    if (!byte_of_piece(piece.text))
      place.fail("expected bytes as <0x00>..<0xFF>, got " + in_quotes(piece.text));
  }
  if (unknown != 1) place.fail("expected one unknown token, got " + std::to_string(unknown));
  if (usable == 0) place.fail("expected a piece that text can become, got none");
  const std::size_t expected = facts.byte_fallback ? 256 : 0;
  if (bytes != expected)
    place.fail("expected " + std::to_string(expected) + " byte pieces, got " + std::to_string(bytes));
}

}  // namespace

std::optional<unsigned char> byte_of_piece(std::string_view piece) noexcept {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return std::nullopt;
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  const std::size_t high = kDigits.find(piece[3]), low = kDigits.find(piece[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) return std::nullopt;
  return static_cast<unsigned char>(high * 16 + low);
}

SentencePieceFacts check_sentencepiece(std::string_view file_bytes, std::string_view file) {
  const Place root{file, {}};
  SentencePieceFacts facts;
  if (file_bytes.size() > Limits::kFileBytes) root.in("size").fail("expected at most 64 MiB");
  const Place model = root.in("ModelProto");
  WireReader reader(file_bytes, model);
  bool seen[6] = {};
  for (WireField field; reader.next(field);) {
    if (field.number > 5) continue;
    expect(field, WireField::Kind::bytes, model);
    // Protocol buffers merge a message that is there twice; no writer makes such a file.
    if (field.number > 1 && std::exchange(seen[field.number], true))
      model.fail("field " + std::to_string(field.number) + " is there twice");
    switch (field.number) {
      case 1:
        if (facts.pieces.size() == Limits::kPieces) root.in("pieces").fail("expected at most 2^20 of them");
        facts.pieces.push_back(
            read_piece(field.bytes, root.in("pieces." + std::to_string(facts.pieces.size()))));
        break;
      case 2:
        read_trainer(field.bytes, root.in("trainer_spec"), facts);
        break;
      case 3:
        read_normalizer(field.bytes, root.in("normalizer_spec"), facts);
        break;
      case 4:
        read_self_test(field.bytes, root.in("self_test_data"));
        break;
      case 5:
        read_denormalizer(field.bytes, root.in("denormalizer_spec"));
        break;
      default:
        break;
    }
  }
  check_types(facts, root.in("pieces"));
  check_unique(facts, root.in("pieces"));
  return facts;
}

}  // namespace inkling
