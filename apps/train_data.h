// Text to the ids that training reads, once: vocabulary, split and ids stay in the out folder.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "apps/console.h"
#include "model/train/token_data.h"
#include "tokenizer/tokenizer.h"

namespace inkling::app {

struct TrainSource {
  std::filesystem::path data;  ///< a text, JSON lines, a folder of them; or a folder with nanoGPT's train.bin
                               ///< and val.bin, and its meta.json if it has one
  std::string tokenizer;       ///< "char", "bpe:N", "unigram:N", "sp-bpe:N", or a folder or file to take.
                               ///< Empty: char, or what lies beside nanoGPT's ids
  std::filesystem::path out;   ///< a folder that exists
  bool has_vocabulary = false;  ///< the out folder has the vocabulary already, whatever `tokenizer` says, and
                                ///< the data must be what its ids were made from
};

struct TrainData {
  TokenData train, validation;
  std::optional<Tokenizer> tokenizer;  ///< none: ids alone
  std::int64_t vocab_size = 0;         ///< the tokenizer's, or nanoGPT's 50304
};

/// Splits as nanoGPT does: the first nine tenths of one text's characters, or of many documents' bytes, are
/// for training. Each of many documents ends with the end token if there is one. What the out folder holds of
/// the same text and vocabulary is taken as it is. Throws Error{input} for text without tokens enough, and
/// what reading, tokenising and writing throw.
TrainData prepare_data(const TrainSource& source, const Console& console);

}  // namespace inkling::app
