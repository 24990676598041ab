// SentencePiece (Kudo & Richardson 2018) behind TokenModel. This file alone knows libsentencepiece; it
// encodes, after the guard. Decoding is ours, by the library's rules, so that a stream and a whole text
// cannot differ.
#include <sentencepiece_processor.h>

#include <array>

#include "tokenizer/sentencepiece_cutter.h"
#include "tokenizer/sentencepiece_guard.h"
#include "tokenizer/token_model.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary_files.h"

namespace inkling {
namespace {

using Facts = SentencePieceFacts;
constexpr std::string_view kSpace = "\xE2\x96\x81";             // ▁
constexpr std::string_view kUnknownSurface = " \xE2\x81\x87 ";  // ⁇

std::string surface_of(const Facts::Piece& piece, const Facts& facts) {
  switch (piece.type) {
    case Facts::Type::control:
      return {};
    case Facts::Type::unknown:
      return std::string(facts.unknown_surface.value_or(kUnknownSurface));
    case Facts::Type::byte:
      return std::string(1, static_cast<char>(byte_of_piece(piece.text).value()));
    default:
      break;
  }
  std::string surface(piece.text);
  for (std::size_t at = surface.find(kSpace); at != std::string::npos; at = surface.find(kSpace, at + 1)) {
    surface.replace(at, kSpace.size(), " ");
  }
  return surface;
}

std::vector<Token> tokens_of(const Facts& facts) {
  std::vector<Token> tokens;
  tokens.reserve(facts.pieces.size());
  for (const Facts::Piece& piece : facts.pieces) {
    const bool special = piece.type == Facts::Type::control || piece.type == Facts::Type::unknown;
    tokens.push_back({std::string(piece.text), surface_of(piece, facts), special});
  }
  return tokens;
}

class SentencePieceModel final : public TokenModel {
 public:
  SentencePieceModel(const Facts& facts, std::string_view bytes, std::string_view file)
      : TokenModel(Vocabulary(tokens_of(facts), file)),
        cutter_(facts),
        algorithm_(facts.algorithm),
        has_prefix_(facts.add_dummy_prefix),
        strips_space_(facts.add_dummy_prefix || facts.remove_extra_whitespaces),
        strips_all_(facts.remove_extra_whitespaces) {
    const auto status = processor_.LoadFromSerializedProto(bytes);
    if (!status.ok()) throw Error(Code::malformed, std::string(file) + ": " + status.ToString());
  }

  TokenizerKind kind() const noexcept override { return TokenizerKind::sentencepiece; }
  std::string description() const override {
    constexpr std::array<std::string_view, 5> kNames{"", "unigram", "BPE", "word", "character"};
    return "SentencePiece " + std::string(kNames[static_cast<std::size_t>(algorithm_)]) + ", " +
           std::to_string(vocabulary().size()) + " tokens";
  }
  std::size_t max_input_bytes() const noexcept override { return cutter_.max_text_bytes(); }
  std::optional<std::int32_t> eos_id() const noexcept override { return known(processor_.eos_id()); }
  std::optional<std::int32_t> bos_id() const noexcept override { return known(processor_.bos_id()); }

  std::vector<std::int32_t> encode(std::string_view text, EncodeOptions options) const override {
    std::vector<std::int32_t> ids;
    for (const TokenSpan& token : encode_with_offsets(text, options)) ids.push_back(token.id);
    return ids;
  }

  std::vector<TokenSpan> encode_with_offsets(std::string_view text, EncodeOptions) const override {
    require_valid_utf8(text);
    std::vector<TokenSpan> spans;
    std::size_t begin = 0;
    for (const std::size_t end : cutter_.cuts(text)) {
      encode_part(text.substr(begin, end - begin), begin, spans);
      begin = end;
    }
    return spans;
  }

  // SentencePieceProcessor::Decode: the space that the normaliser put before the first word goes away again;
  // when it removes extra white space, all spaces before the first visible character do.
  std::string_view surface(std::int32_t id, bool& at_start) const override {
    const TokenView token = vocabulary()[id];
    std::string_view text = token.bytes;
    if (at_start && strips_space_ && !token.special && token.text.starts_with(kSpace)) {
      text.remove_prefix(1);
      at_start = strips_all_ && text.empty();
    } else if (!text.empty()) {
      at_start = false;
    }
    return text;
  }

 private:
  std::optional<std::int32_t> known(int id) const noexcept {
    return vocabulary().has(id) ? std::optional<std::int32_t>(id) : std::nullopt;
  }

  // Word models of the library (0.1.97) take the word <0x41> for the byte, which would decode to another
  // text. Of words that name control tokens it says itself that it cannot encode them.
  void refuse_named_byte(std::int32_t id, std::string_view word) const {
    require(
        algorithm_ != Facts::Algorithm::word || word != vocabulary()[id].text || !byte_of_piece(word),
        Code::input, [&] {
          return "encode: text: expected no word that is the name of a byte token (word models cannot tell "
                 "the two apart), got \"" +
                 std::string(word) + '"';
        });
  }

  // Parts after the first begin with a space of the library's making, and their first unknown characters
  // belong to an unknown token that ended the part before.
  void encode_part(std::string_view part, std::size_t begin, std::vector<TokenSpan>& spans) const {
    sentencepiece::ImmutableSentencePieceText result;
    const auto status = processor_.Encode(part, result.mutable_proto());
    if (!status.ok()) throw Error(Code::input, "encode: text: " + status.ToString());
    const auto unknown = processor_.unk_id();
    std::size_t first = begin > 0 && has_prefix_ ? 1 : 0;
    for (std::size_t i = first; i < result.pieces_size(); ++i) {
      const auto piece = result.pieces(static_cast<int>(i));
      const TokenSpan span{static_cast<std::int32_t>(piece.id()), begin + piece.begin(), begin + piece.end()};
      refuse_named_byte(span.id, part.substr(piece.begin(), piece.end() - piece.begin()));
      if (begin > 0 && i == first && span.id == unknown && spans.back().id == unknown) {
        spans.back().end = span.end;
      } else {
        spans.push_back(span);
      }
    }
  }

  sentencepiece::SentencePieceProcessor processor_;
  SentencePieceCutter cutter_;
  Facts::Algorithm algorithm_;
  bool has_prefix_, strips_space_, strips_all_;
};

}  // namespace

std::shared_ptr<const TokenModel> read_sentencepiece(std::string_view bytes, std::string_view file) {
  return std::make_shared<SentencePieceModel>(check_sentencepiece(bytes, file), bytes, file);
}

}  // namespace inkling
