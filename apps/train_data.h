// Text to the ids that training reads, once: vocabulary, split and ids stay in the out folder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "apps/console.h"
#include "model/train/batches.h"
#include "model/train/token_data.h"
#include "tokenizer/tokenizer.h"

namespace inkling::app {

/// How a run comes to its data.
enum class Begin : std::uint8_t {
  fresh,     ///< makes vocabulary and ids
  resumed,   ///< has its vocabulary; the data must be what it began with
  follower,  ///< one of several processes, of which the first has made both and looked at them
};

constexpr std::int64_t kNanoGptVocab = 50304;  ///< GPT-2's 50257, padded

struct TrainSource {
  std::filesystem::path data;  ///< a text, JSON lines, a folder of them; or a folder with nanoGPT's train.bin
                               ///< and val.bin, and its meta.json if it has one
  std::string tokenizer;       ///< of a fresh run: "char", "bpe:N", "unigram:N", "sp-bpe:N", or a folder or
                               ///< file to take. Empty: char, or what lies beside nanoGPT's ids
  std::filesystem::path out;   ///< a folder that exists
  Begin begin = Begin::fresh;
  Packing packing = Packing::blocks;
  std::int64_t vocab_size = kNanoGptVocab;  ///< of ids that come without a tokenizer
  std::string began_with;                   ///< of a resumed run: its TrainData::source
};

struct TrainData {
  TokenData train, validation;
  std::optional<Tokenizer> tokenizer;  ///< none: ids alone
  std::int64_t vocab_size = 0;         ///< the tokenizer's, or the source's
  std::string source;  ///< "text" or "nanogpt" and a SHA-256 of data and vocabulary; a follower's is empty
};

/// Whether a path is a folder of nanoGPT's ids, not of texts.
bool has_nano_gpt_ids(const std::filesystem::path& data);

/// Splits as nanoGPT does: the first nine tenths of one text's characters, or of many documents' bytes, are
/// for training. Each of many documents ends with the end token if there is one; nanoGPT's ids, if documents
/// are packed, are split after each. What the out folder holds of the same text and vocabulary is taken as it
/// is. Every id is in the vocabulary. Throws Error{input} for text without tokens enough and for other data
/// than a resumed run began with, Error{malformed} "FILE: id PLACE: expected …, got …", Error{usage} for what
/// --tokenizer, --packed-documents and --out-dir ask in vain, and what reading, tokenising and writing throw.
TrainData prepare_data(const TrainSource& source, const Console& console);

}  // namespace inkling::app
