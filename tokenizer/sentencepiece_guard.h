// A guard before libsentencepiece. The library (0.1.97 of Debian 12 among others) trusts its model file: a
// crafted character map walks out of its trie, 65 nested user-defined symbols overrun an array on the stack,
// a NUL inside a piece aborts. So the file is first walked here, field by field, and only a file with nothing
// of that kind in it reaches the library (sentencepiece_model.cpp). The facts read on the way are what
// decoding needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace inkling {

/// Limits that real models are far from: the largest published ones have 256,000 pieces of at most 48 bytes.
struct SentencePieceLimits {
  static constexpr std::size_t kFileBytes = std::size_t{64} << 20;
  static constexpr std::size_t kPieces = std::size_t{1} << 20;
  static constexpr std::size_t kPieceBytes = 512;
  static constexpr std::size_t kNestedSymbols = 32;       ///< user-defined symbols that begin one another
  static constexpr std::size_t kSurfaceBytes = 64;        ///< of the unknown token
  static constexpr std::size_t kTextBytes = 1 << 20;      ///< any other text of the file
  static constexpr std::size_t kSelfTestBytes = 1 << 16;  ///< encoded at each load, so kept small
  static constexpr float kScore = 1e9F;                   ///< largest magnitude
};

struct SentencePieceFacts {
  enum class Type : std::uint8_t { normal = 1, unknown, control, user_defined, unused, byte };
  enum class Algorithm : std::uint8_t { unigram = 1, bpe, word, character };
  struct Piece {
    std::string_view text;  ///< into the file
    float score = 0;
    Type type = Type::normal;
  };
  std::vector<Piece> pieces;
  Algorithm algorithm = Algorithm::unigram;
  bool byte_fallback = false;
  bool space_as_suffix = false;
  std::optional<std::string_view> unknown_surface;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  std::string_view charsmap;
};

/// Throws Code::malformed naming file and field. Time is linear in the file's size (n log n for duplicates).
/// A denormaliser is refused too: with one, text could not be decoded as it streams.
SentencePieceFacts check_sentencepiece(std::string_view file_bytes, std::string_view file);

/// The byte of a piece "<0x0A>"; nothing for other pieces.
std::optional<unsigned char> byte_of_piece(std::string_view piece) noexcept;

}  // namespace inkling
