// Vocabularies made from text: a byte-level BPE, a SentencePiece model, a list of characters. Each comes as
// the files that Tokenizer::load() reads. The same texts and options give the same bytes.
//
//   auto files = inkling::train_byte_level_bpe(texts, {.vocab_size = 4096});   // vocab.json, merges.txt
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"

namespace inkling {

struct VocabularyFile {
  std::string name;  ///< "vocab.json"
  std::string content;
};

struct BpeTrainingOptions {
  std::int64_t vocab_size = 4096;        ///< 257 … 2²²: 256 bytes, merges, <|endoftext|>
  std::int64_t min_frequency = 2;        ///< a pair that occurs more rarely is not joined; at least 1
  std::function<void(double)> progress;  ///< called with the share done; what it throws ends the training
};

/// vocab.json and merges.txt of a GPT-2 tokenizer. Each text is split into words (pretokenizer.h), words into
/// bytes; then the pair of neighbours that occurs most often becomes a token, again and again, until the
/// vocabulary is full or no pair occurs min_frequency times. Occurrences in overlapping runs all count ("aaa"
/// has two "aa"); of pairs as frequent, the one whose left token, then whose right token, has the lower id is
/// first. Bytes have the ids of GPT-2's alphabet in the order of its characters, tokens follow as they are
/// made,
/// <|endoftext|> is last. Pairs beyond 4096 bytes are left apart (no file may hold them). These are the
/// merges of Hugging Face's BpeTrainer over its ByteLevel pre-tokeniser (Sennrich, Haddow & Birch 2016,
/// algorithm 1). Error{input} for texts without a word or that are no UTF-8; Error{usage} for options out of
/// range. O(n log n) in the text's distinct words.
Result<std::vector<VocabularyFile>> train_byte_level_bpe(std::span<const std::string_view> texts,
                                                         const BpeTrainingOptions& options);

enum class SentencePieceKind : std::uint8_t { unigram, bpe };

struct SentencePieceTrainingOptions {
  SentencePieceKind kind = SentencePieceKind::unigram;
  std::int64_t vocab_size = 4096;   ///< up to 2²⁰; unigram may end with fewer
  double character_coverage = 1.0;  ///< 0.98 … 1; characters beyond it become bytes
};

/// tokenizer.model by SentencePiece's own trainer (Kudo & Richardson 2018), lossless: byte fallback, no
/// normalisation, no added space, line ends a piece of their own, so that decode(encode(text)) == text (but
/// for U+2581, the library's mark of a space). <unk> is 0, </s> is 1. Lines beyond 4096 bytes are cut for the
/// trainer, after a space if there is one. Error{input} for texts that are no UTF-8 or leave it fewer than
/// two different characters to learn (tabs, "<unk>", "</s>" and "<0x0A>" are pieces already), Error{usage}
/// for options out of range, a size too small for the characters of the text among them.
Result<std::vector<VocabularyFile>> train_sentencepiece(std::span<const std::string_view> texts,
                                                        const SentencePieceTrainingOptions& options);

/// meta.json of every character of the texts, in the order of their code points, as nanoGPT's
/// shakespeare_char makes it. Error{input} for empty texts or such as are no UTF-8.
Result<std::vector<VocabularyFile>> train_characters(std::span<const std::string_view> texts);

}  // namespace inkling
