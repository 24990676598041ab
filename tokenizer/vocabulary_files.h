// Readers: the files of each vocabulary format → a model. Texts are not kept. Throw Code::malformed, and so
// for a JSON text beyond kMaxVocabularyBytes.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string_view>

#include "tokenizer/token_model.h"

namespace inkling {

inline constexpr std::size_t kMaxVocabularyBytes = std::size_t{64} << 20;

/// Hugging Face's tokenizer.json: a BPE model with ByteLevel pre-tokeniser (GPT-2's). `truncation`, `padding`
/// and `version` are ignored: this library does neither. Any other normaliser, pre-tokeniser, post-processor,
/// decoder or model setting is refused by name, since ids would silently differ.
std::shared_ptr<const TokenModel> read_tokenizer_json(std::string_view text, std::string_view file);

/// OpenAI's encoder.json + vocab.bpe, or vocab.json + merges.txt: <|endoftext|>, when there, is special.
std::shared_ptr<const TokenModel> read_vocab_and_merges(std::string_view vocab, std::string_view vocab_file,
                                                        std::string_view merges,
                                                        std::string_view merges_file);

/// nanoGPT's meta.pkl as JSON: {"stoi": {"a": 0, …}, "itos": {"0": "a", …}}; itos may be left out.
std::shared_ptr<const TokenModel> read_characters(std::string_view text, std::string_view file);

/// An image that a model's image() gave (image.h), used where it is; `owner` keeps it there.
std::shared_ptr<const TokenModel> read_image(std::span<const std::byte> image,
                                             std::shared_ptr<const void> owner);

/// sentencepiece_model.cpp.
std::shared_ptr<const TokenModel> read_sentencepiece(std::string_view bytes, std::string_view file);

}  // namespace inkling
