// Tokenizer: text ↔ ids. Four kinds of file, one interface; model code sees only the ids.
//
//   auto tokenizer = inkling::Tokenizer::load("models/gpt2");       // Result<Tokenizer>
//   auto ids = tokenizer->encode("Hello world");                    // Result<vector>: 15496 995
//   auto text = tokenizer->decode(*ids);                            // Result<string>
//
// To print ids as they are generated use StreamDecoder (stream_decoder.h): one token may hold half a
// character.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"

namespace inkling {

class TokenModel;  // token_model.h: what each kind implements

enum class TokenizerKind : std::uint8_t {
  byte_level_bpe,  ///< GPT-2: tokenizer.json, vocab.json + merges.txt, encoder.json + vocab.bpe
  sentencepiece,   ///< *.model: unigram, BPE, word, char
  characters,      ///< nanoGPT's character-level meta.json
};

/// What the text of a special token (<|endoftext|>) means inside a prompt. Use `literal` for text from
/// strangers.
enum class SpecialTokens : std::uint8_t {
  parse,    ///< it becomes the special id, as in Hugging Face's tokenizers
  literal,  ///< it is text like any other
};

struct EncodeOptions {
  SpecialTokens special = SpecialTokens::parse;
};

/// A token and the bytes [begin, end) of the text that it stands for.
struct TokenSpan {
  std::int32_t id = 0;
  std::size_t begin = 0;
  std::size_t end = 0;
  friend bool operator==(const TokenSpan&, const TokenSpan&) = default;
};

/// A handle on an immutable vocabulary. Copies are cheap and share it; every method may run on any thread.
/// A moved-from Tokenizer may only be assigned to or destroyed.
class Tokenizer {
 public:
  /// Loads a folder or a file. In a folder the first of these that is there is taken:
  /// tokenizer.json · vocab.json + merges.txt · encoder.json + vocab.bpe · tokenizer.model · the only *.model
  /// · meta.json. Errors: Code::file when something is missing or unreadable; Code::malformed with file and
  /// field named when the content is wrong or asks for a setting that is not supported.
  static Result<Tokenizer> load(const std::filesystem::path& folder_or_file);

  /// The files that load() would read of it. Errors as there.
  static Result<std::vector<std::filesystem::path>> files(const std::filesystem::path& folder_or_file);

  /// The same from memory; `name` stands for the file in messages. The texts are not kept.
  static Result<Tokenizer> from_tokenizer_json(std::string_view text, std::string_view name);
  static Result<Tokenizer> from_vocab_and_merges(std::string_view vocab, std::string_view vocab_name,
                                                 std::string_view merges, std::string_view merges_name);
  static Result<Tokenizer> from_sentencepiece(std::string_view bytes, std::string_view name);
  static Result<Tokenizer> from_characters(std::string_view text, std::string_view name);

  /// Byte-level BPE as one block of bytes, from which from_image() makes the same tokenizer with no copy
  /// and no parsing: for files that are mapped. Empty for the other kinds. Another version of this library,
  /// or a machine of another byte order, refuses it.
  std::vector<std::byte> image() const;
  /// `owner` keeps `image` in its place, unchanged, for as long as any copy of the Tokenizer lives. It begins
  /// at a multiple of 8 bytes. Code::malformed for what no image() gave, however it came about: neither
  /// accident nor malice leads to reading outside it.
  static Result<Tokenizer> from_image(std::span<const std::byte> image, std::shared_ptr<const void> owner);

  /// Text to ids; O(n log n) in the worst case. Nothing is added to the text's own tokens (no bos, no eos).
  /// Byte-level BPE takes any bytes: a run of invalid UTF-8 is a word of its own, and text on either side is
  /// split as if it began or ended there. The other kinds need valid UTF-8, and characters in the vocabulary
  /// unless it has an unknown token: else Code::input, with the byte offset. Texts beyond max_input_bytes()
  /// are Code::input.
  Result<std::vector<std::int32_t>> encode(std::string_view utf8, EncodeOptions options = {}) const;

  /// The same with the bytes of `utf8` that each token covers, in rising order. SentencePiece's spans are
  /// those of its normaliser; a token that stands for nothing in the text (an added space) has an empty span.
  Result<std::vector<TokenSpan>> encode_with_offsets(std::string_view utf8, EncodeOptions options = {}) const;

  /// Ids to bytes, which are valid UTF-8 only if the ids came from valid UTF-8. Code::input for an id outside
  /// 0..vocab_size()−1, naming both. decode(encode(text)) == text for byte-level BPE and characters, whatever
  /// the bytes; SentencePiece gives back its normalised text.
  Result<std::string> decode(std::span<const std::int32_t> ids) const;

  /// The bytes that a token adds to a text, and its printable piece ("Ġthe", "▁the", "<0x0A>"). Views live as
  /// long as any copy of this Tokenizer. Throws Error{Code::input} for an id out of range.
  std::string_view token_bytes(std::int32_t id) const;
  std::string_view token_text(std::int32_t id) const;

  /// The id of a printable piece, if it is in the vocabulary.
  std::optional<std::int32_t> id_of(std::string_view piece) const;

  /// True for ids that are no text: <|endoftext|>, <s>, …, and SentencePiece's unknown token. Throws for an
  /// id out of range.
  bool is_special(std::int32_t id) const;

  std::int32_t vocab_size() const noexcept;
  std::optional<std::int32_t> eos_id() const noexcept;
  std::optional<std::int32_t> bos_id() const noexcept;
  std::size_t max_input_bytes() const noexcept;

  TokenizerKind kind() const noexcept;
  /// One line for people: "byte-level BPE, 50257 tokens, 50000 merges".
  std::string description() const;

 private:
  friend class StreamDecoder;
  explicit Tokenizer(std::shared_ptr<const TokenModel> model);
  std::shared_ptr<const TokenModel> model_;
};

}  // namespace inkling
