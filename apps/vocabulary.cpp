#include "apps/vocabulary.h"

#include "weights/atomic_file.h"

namespace inkling::app {

Setter vocabulary_type(VocabularyType& target) {
  return choice<VocabularyType>(target, {{"bpe", VocabularyType::bpe},
                                         {"unigram", VocabularyType::unigram},
                                         {"sp-bpe", VocabularyType::sentencepiece_bpe},
                                         {"char", VocabularyType::characters}});
}

std::vector<VocabularyFile> train_vocabulary(std::span<const std::string_view> texts,
                                             const VocabularyOptions& options,
                                             const std::function<void(double)>& progress) {
  switch (options.type) {
    case VocabularyType::bpe:
      return train_byte_level_bpe(texts, {options.vocab_size, options.min_frequency, progress}).value();
    case VocabularyType::unigram:
      return train_sentencepiece(texts,
                                 {SentencePieceKind::unigram, options.vocab_size, options.character_coverage})
          .value();
    case VocabularyType::sentencepiece_bpe:
      return train_sentencepiece(texts,
                                 {SentencePieceKind::bpe, options.vocab_size, options.character_coverage})
          .value();
    case VocabularyType::characters:
      return train_characters(texts).value();
  }
  throw Error(Code::internal, "train_vocabulary: no such type");
}

void write_vocabulary(const std::filesystem::path& folder, std::span<const VocabularyFile> files) {
  make_folder(folder).value();
  for (const VocabularyFile& file : files) write_file(folder / file.name, file.content).value();
}

}  // namespace inkling::app
