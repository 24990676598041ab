#include "tokenizer/vocabulary_training.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "tokenizer/bpe_trainer.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/byte_level_bpe.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/to_result.h"
#include "tokenizer/training_texts.h"
#include "tokenizer/utf8.h"

namespace inkling {
namespace {

constexpr std::string_view kEndOfText = "<|endoftext|>";

// The 256 bytes in the order of the characters that stand for them: GPT-2's ids 0 … 255.
std::vector<std::string> byte_tokens() {
  std::vector<std::string> bytes;
  bytes.reserve(256);
  for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(1, static_cast<char>(byte));
  std::ranges::sort(bytes, {}, [](const std::string& byte) {
    return kByteAlphabet[static_cast<unsigned char>(byte.front())];
  });
  return bytes;
}

// In the order in which the words first occur, so that nothing depends on a hash.
void add_words(std::span<const std::string_view> texts, BpeTrainer& trainer) {
  const Pretokenizer pretokenizer;
  std::unordered_map<std::string_view, std::size_t> places;
  std::vector<std::pair<std::string_view, std::int64_t>> counts;
  for (const std::string_view text : texts) {
    Pretokenizer::Words words(pretokenizer, text);
    for (auto word = words.next(); !word.empty(); word = words.next()) {
      const auto [place, fresh] = places.try_emplace(word, counts.size());
      if (fresh) counts.emplace_back(word, 0);
      ++counts[place->second].second;
    }
  }
  for (const auto& [word, count] : counts) trainer.add(word, count);
}

std::string json_string(std::string_view text) {
  return nlohmann::json(text).dump();
}

std::vector<VocabularyFile> bpe_files(const std::vector<std::string>& tokens,
                                      const std::vector<BpeTrainer::Merge>& merges) {
  std::vector<std::string> pieces;
  pieces.reserve(tokens.size());
  for (const std::string& token : tokens) pieces.push_back(to_byte_alphabet(token));
  std::string vocab = "{", rules = "#version: 0.2\n";
  for (std::size_t id = 0; id < pieces.size(); ++id) {
    vocab += json_string(pieces[id]) + ": " + std::to_string(id) + ", ";
  }
  vocab += json_string(kEndOfText) + ": " + std::to_string(pieces.size()) + "}\n";
  for (const auto& [left, right] : merges) {
    rules += pieces[static_cast<std::size_t>(left)] + ' ' + pieces[static_cast<std::size_t>(right)] + '\n';
  }
  return {{"vocab.json", vocab}, {"merges.txt", rules}};
}

void require_in(std::string_view name, std::int64_t value, std::int64_t least, std::int64_t most) {
  require(value >= least && value <= most, Code::usage, [&] {
    return std::string(name) + ": expected " + std::to_string(least) + " to " + std::to_string(most) +
           ", got " + std::to_string(value);
  });
}

}  // namespace

Result<std::vector<VocabularyFile>> train_byte_level_bpe(std::span<const std::string_view> texts,
                                                         const BpeTrainingOptions& options) {
  return to_result([&] {
    constexpr std::int64_t kBytes = 256;
    require_in("vocab_size", options.vocab_size, kBytes + 1,
               static_cast<std::int64_t>(ByteLevelBpe::kMaxTokens));
    require_in("min_frequency", options.min_frequency, 1, INT64_MAX);
    require_trainable(texts);
    BpeTrainer trainer(byte_tokens(), ByteLevelBpe::kMaxTokenBytes);
    add_words(texts, trainer);
    const auto merges =
        trainer.train(options.vocab_size - kBytes - 1, options.min_frequency, options.progress);
    return bpe_files(trainer.tokens(), merges);
  });
}

Result<std::vector<VocabularyFile>> train_characters(std::span<const std::string_view> texts) {
  return to_result([&]() -> std::vector<VocabularyFile> {
    require_trainable(texts);
    std::vector<bool> seen(0x110000);
    for (const std::string_view text : texts) {
      for (std::size_t at = 0; at < text.size();) seen[next_scalar(text, at)] = true;
    }
    std::string stoi, itos;
    std::size_t count = 0;
    for (char32_t scalar = 0; scalar < seen.size(); ++scalar) {
      if (!seen[scalar]) continue;
      std::string character;
      append_utf8(scalar, character);
      const std::string comma = count == 0 ? "" : ", ", id = std::to_string(count++);
      stoi += comma + json_string(character) + ": " + id;
      itos += comma + '"' + id + "\": " + json_string(character);
    }
    return {{"meta.json", "{\"vocab_size\": " + std::to_string(count) + ", \"stoi\": {" + stoi +
                              "}, \"itos\": {" + itos + "}}\n"}};
  });
}

}  // namespace inkling
