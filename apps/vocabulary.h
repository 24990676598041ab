// Vocabularies by their type's name, for `tokenizer train` and `train --tokenizer bpe:4096`.
#pragma once

#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "apps/options.h"
#include "tokenizer/vocabulary_training.h"

namespace inkling::app {

enum class VocabularyType : std::uint8_t { bpe, unigram, sentencepiece_bpe, characters };

struct VocabularyOptions {
  VocabularyType type = VocabularyType::bpe;
  std::int64_t vocab_size = 4096;
  std::int64_t min_frequency = 2;   ///< bpe alone
  double character_coverage = 1.0;  ///< SentencePiece alone
};

/// "bpe", "unigram", "sp-bpe" or "char".
Setter vocabulary_type(VocabularyType& target);

/// The files of the vocabulary. Throws Error as vocabulary_training.h says.
std::vector<VocabularyFile> train_vocabulary(std::span<const std::string_view> texts,
                                             const VocabularyOptions& options,
                                             const std::function<void(double)>& progress);

/// Writes them under `folder`, each atomically, and makes the folder if need be. Throws Error{output}.
void write_vocabulary(const std::filesystem::path& folder, std::span<const VocabularyFile> files);

}  // namespace inkling::app
