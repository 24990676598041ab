#include "tokenizer/token_model.h"

#include "engine/base/shown.h"
#include "tokenizer/utf8.h"

namespace inkling {

Vocabulary::Vocabulary(std::vector<Token> tokens, std::string_view file)
    : tokens_(std::move(tokens)), index_(tokens_.size()) {
  for (std::int32_t id = 0; id < size(); ++id) {
    if (!index_.insert((*this)[id].text, id)) {
      throw Error(Code::malformed, std::string(file) + ": vocabulary: expected each token once, got " +
                                       in_quotes((*this)[id].text) + " twice");
    }
  }
}

const Token& Vocabulary::at(std::int32_t id) const {
  if (!has(id)) throw out_of_range(id, "token");
  return (*this)[id];
}

std::optional<std::int32_t> Vocabulary::id_of(std::string_view text) const noexcept {
  const std::int32_t id = index_.find(text);
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
