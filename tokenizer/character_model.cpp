// Character-level vocabularies: one id for each Unicode scalar seen in training (nanoGPT's shakespeare_char).
#include <array>
#include <charconv>
#include <cstdio>

#include "engine/base/shown.h"
#include "tokenizer/json_field.h"
#include "tokenizer/token_model.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary_files.h"

namespace inkling {
namespace {

constexpr std::size_t kMaxCharacters = 0x110000;

class CharacterModel final : public TokenModel {
 public:
  explicit CharacterModel(Vocabulary all) : TokenModel(std::move(all)) {
    for (std::int32_t id = 0; id < vocabulary().size(); ++id) {
      std::size_t at = 0;
      const char32_t scalar = next_scalar(vocabulary()[id].bytes, at);
      if (scalar >= ids_.size()) ids_.resize(scalar + 1, -1);
      ids_[scalar] = id;
    }
  }

  TokenizerKind kind() const noexcept override { return TokenizerKind::characters; }
  std::string description() const override {
    return "characters, " + std::to_string(vocabulary().size()) + " tokens";
  }
  std::size_t max_input_bytes() const noexcept override { return std::size_t{128} << 20; }

  std::vector<std::int32_t> encode(std::string_view text, EncodeOptions) const override {
    std::vector<std::int32_t> ids;
    ids.reserve(text.size());
    each(text, [&](const TokenSpan& token) { ids.push_back(token.id); });
    return ids;
  }

  std::vector<TokenSpan> encode_with_offsets(std::string_view text, EncodeOptions) const override {
    std::vector<TokenSpan> spans;
    each(text, [&](const TokenSpan& token) { spans.push_back(token); });
    return spans;
  }

 private:
  template <class Visit>
  void each(std::string_view text, Visit&& visit) const {
    require_valid_utf8(text);
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t begin = at;
      const char32_t scalar = next_scalar(text, at);
      const std::int32_t id = scalar < ids_.size() ? ids_[scalar] : -1;
      if (id < 0) {
        std::array<char, 16> name{};
        std::snprintf(name.data(), name.size(), "U+%04X", static_cast<unsigned>(scalar));
        throw Error(Code::input, "encode: text: byte " + std::to_string(begin) + ": the character " +
                                     name.data() + " is not in the vocabulary");
      }
      visit(TokenSpan{id, begin, at});
    }
  }

  std::vector<std::int32_t> ids_;  // by scalar; −1: not in the vocabulary
};

void check_inverse(const JsonField& itos, const std::vector<Token>& tokens) {
  if (itos.members().size() != tokens.size()) {
    itos.fail(std::to_string(tokens.size()) + " entries", std::to_string(itos.members().size()));
  }
  // As many distinct keys as tokens, each of them an id: so every id is there.
  for (const auto& [key, value] : itos.members()) {
    const JsonField field = itos.child(value, key);
    std::size_t id = tokens.size();
    std::from_chars(key.data(), key.data() + key.size(), id);
    if (id >= tokens.size() || std::to_string(id) != key)
      field.fail("the id of a character as the key", "another");
    if (field.string() != tokens[id].text) field.fail(in_quotes(tokens[id].text), in_quotes(field.string()));
  }
}

}  // namespace

std::shared_ptr<const TokenModel> read_characters(std::string_view text, std::string_view file) {
  const JsonValue tree = parse_json(text, file, kMaxVocabularyBytes).value();
  const JsonField root(tree, file);
  const JsonField stoi = root.member("stoi");
  const auto& members = stoi.members();
  if (members.empty() || members.size() > kMaxCharacters) {
    stoi.fail("1.." + std::to_string(kMaxCharacters) + " characters", std::to_string(members.size()));
  }
  std::vector<Token> tokens(members.size());
  for (const auto& [character, value] : members) {
    const JsonField field = stoi.child(value, character);
    std::size_t end = 0;
    if (!character.empty()) next_scalar(character, end);
    if (character.empty() || end != character.size())
      field.fail("one character as the key", character.empty() ? "none" : "several");
    Token& token =
        tokens[static_cast<std::size_t>(field.integer(0, static_cast<std::int64_t>(tokens.size()) - 1))];
    if (!token.text.empty()) field.fail("an id of its own", "that of " + in_quotes(token.text));
    token = {character, character, false};
  }
  if (const auto itos = root.maybe("itos")) check_inverse(*itos, tokens);
  return std::make_shared<CharacterModel>(Vocabulary(tokens, file));
}

}  // namespace inkling
