// TokenModel: what each kind of tokenizer implements behind Tokenizer. Internal to this folder.
//
// Inside the folder a failure is a thrown Error; tokenizer.cpp turns it into a Result once, at the border.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/error.h"
#include "tokenizer/string_index.h"
#include "tokenizer/tokenizer.h"

namespace inkling {

/// One entry of a vocabulary; its id is its place.
struct Token {
  std::string text;   ///< printable piece
  std::string bytes;  ///< what it adds to a text
  bool special = false;
};

/// The table of tokens and the way back from a printable piece. Immutable; neither copied nor moved, since
/// the index points into the tokens.
class Vocabulary {
 public:
  /// Throws Code::malformed when two tokens have one text.
  Vocabulary(std::vector<Token> tokens, std::string_view file);
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  std::int32_t size() const noexcept { return static_cast<std::int32_t>(tokens_.size()); }
  bool has(std::int32_t id) const noexcept { return id >= 0 && id < size(); }
  const Token& operator[](std::int32_t id) const noexcept { return tokens_[static_cast<std::size_t>(id)]; }
  /// The token, or a thrown Code::input.
  const Token& at(std::int32_t id) const;
  std::optional<std::int32_t> id_of(std::string_view text) const noexcept;
  Error out_of_range(std::int32_t id, std::string_view op) const;

 private:
  std::vector<Token> tokens_;
  StringIndex index_;
};

/// Throws Code::input with the offset of the first byte that is not UTF-8.
void require_valid_utf8(std::string_view text);

/// Immutable after construction: every method may run on any thread.
class TokenModel {
 public:
  TokenModel(std::vector<Token> tokens, std::string_view file) : vocabulary_(std::move(tokens), file) {}
  virtual ~TokenModel() = default;

  const Vocabulary& vocabulary() const noexcept { return vocabulary_; }

  virtual TokenizerKind kind() const noexcept = 0;
  virtual std::string description() const = 0;
  virtual std::size_t max_input_bytes() const noexcept = 0;
  virtual std::optional<std::int32_t> eos_id() const noexcept { return std::nullopt; }
  virtual std::optional<std::int32_t> bos_id() const noexcept { return std::nullopt; }

  /// Texts of at most max_input_bytes(). Throws Code::input.
  virtual std::vector<std::int32_t> encode(std::string_view text, EncodeOptions options) const = 0;
  virtual std::vector<TokenSpan> encode_with_offsets(std::string_view text, EncodeOptions options) const = 0;

  /// The bytes of the token as the next one of a text. `at_start` is true before the first token of the text
  /// and belongs to the model from then on.
  virtual std::string_view surface(std::int32_t id, bool& at_start) const {
    at_start = false;
    return vocabulary_[id].bytes;
  }

 private:
  Vocabulary vocabulary_;
};

}  // namespace inkling
