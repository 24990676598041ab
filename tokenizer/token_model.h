// TokenModel: what each kind of tokenizer implements behind Tokenizer. Internal to this folder.
//
// Inside the folder a failure is a thrown Error; tokenizer.cpp turns it into a Result once, at the border.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/error.h"
#include "tokenizer/flat_array.h"
#include "tokenizer/image.h"
#include "tokenizer/string_index.h"
#include "tokenizer/string_table.h"
#include "tokenizer/tokenizer.h"

namespace inkling {

/// One entry of a vocabulary, as readers of files collect it; its id is its place.
struct Token {
  std::string text;   ///< printable piece
  std::string bytes;  ///< what it adds to a text
  bool special = false;
};

/// The same, of the table.
struct TokenView {
  std::string_view text, bytes;
  bool special = false;
};

/// The table of tokens and the way back from a printable piece. Immutable.
class Vocabulary {
 public:
  /// Throws Code::malformed when two tokens have one text.
  Vocabulary(const std::vector<Token>& tokens, std::string_view file);
  /// Of an image, used where it is. Throws Code::malformed.
  explicit Vocabulary(ImageReader& image);
  void write(ImageWriter& image) const;

  std::int32_t size() const noexcept { return static_cast<std::int32_t>(bytes_.size()); }
  bool has(std::int32_t id) const noexcept { return id >= 0 && id < size(); }
  TokenView operator[](std::int32_t id) const noexcept {
    const auto i = static_cast<std::size_t>(id);
    return {texts_[i], bytes_[i], special_[i] != 0};
  }
  /// The token, or a thrown Code::input.
  TokenView at(std::int32_t id) const;
  std::optional<std::int32_t> id_of(std::string_view text) const noexcept;
  const StringTable& bytes() const noexcept { return bytes_; }
  Error out_of_range(std::int32_t id, std::string_view op) const;

 private:
  StringTable texts_, bytes_;
  FlatArray<std::uint8_t> special_;
  StringIndex index_;  // of texts_
};

/// Throws Code::input with the offset of the first byte that is not UTF-8.
void require_valid_utf8(std::string_view text);

/// Immutable after construction: every method may run on any thread.
class TokenModel {
 public:
  explicit TokenModel(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}
  virtual ~TokenModel() = default;

  const Vocabulary& vocabulary() const noexcept { return vocabulary_; }

  virtual TokenizerKind kind() const noexcept = 0;
  virtual std::string description() const = 0;
  virtual std::size_t max_input_bytes() const noexcept = 0;
  virtual std::optional<std::int32_t> eos_id() const noexcept { return std::nullopt; }
  virtual std::optional<std::int32_t> bos_id() const noexcept { return std::nullopt; }
  /// See image.h; empty for a kind that has none.
  virtual std::vector<std::byte> image() const { return {}; }

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
