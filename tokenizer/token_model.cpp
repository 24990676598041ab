#include "tokenizer/token_model.h"

#include <limits>

#include "engine/base/shown.h"
#include "tokenizer/utf8.h"

namespace inkling {

namespace {

std::vector<std::uint8_t> special_of(const std::vector<Token>& tokens) {
  std::vector<std::uint8_t> special;
  special.reserve(tokens.size());
  for (const Token& token : tokens) special.push_back(token.special ? 1 : 0);
  return special;
}

}  // namespace

Vocabulary::Vocabulary(const std::vector<Token>& tokens, std::string_view file)
    : texts_(tokens.size(), [&](std::size_t i) -> std::string_view { return tokens[i].text; }),
      bytes_(tokens.size(), [&](std::size_t i) -> std::string_view { return tokens[i].bytes; }),
      special_(special_of(tokens)),
      index_(tokens.size()) {
  for (std::int32_t id = 0; id < size(); ++id) {
    if (!index_.insert(id, texts_)) {
      throw Error(Code::malformed, std::string(file) + ": vocabulary: expected each token once, got " +
                                       in_quotes((*this)[id].text) + " twice");
    }
  }
}

Vocabulary::Vocabulary(ImageReader& image)
    : texts_(image),
      bytes_(image),
      special_(image.take<std::uint8_t>(bytes_.size())),
      index_(image, bytes_.size()) {
  ImageReader::check(
      texts_.size() == bytes_.size() && bytes_.size() <= std::numeric_limits<std::int32_t>::max(),
      "tokens without a text each");
}

void Vocabulary::write(ImageWriter& image) const {
  texts_.write(image);
  bytes_.write(image);
  image.add(special_.elements());
  index_.write(image);
}

TokenView Vocabulary::at(std::int32_t id) const {
  if (!has(id)) throw out_of_range(id, "token");
  return (*this)[id];
}

std::optional<std::int32_t> Vocabulary::id_of(std::string_view text) const noexcept {
  const std::int32_t id = index_.find(text, texts_);
  return id < 0 ? std::nullopt : std::optional(id);
}

Error Vocabulary::out_of_range(std::int32_t id, std::string_view op) const {
  return Error(Code::input, std::string(op) + ": id: expected 0.." + std::to_string(size() - 1) +
                                " (a vocabulary of " + std::to_string(size()) + "), got " +
                                std::to_string(id));
}

void require_valid_utf8(std::string_view text) {
  const std::size_t good = valid_utf8_prefix(text);
  require(good == text.size(), Code::input, [&] {
    return "encode: text: expected UTF-8, got an ill-formed byte at offset " + std::to_string(good);
  });
}

}  // namespace inkling
