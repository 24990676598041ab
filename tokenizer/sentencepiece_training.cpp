// SentencePiece's own trainer. This file and sentencepiece_model.cpp alone know the library.
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <unordered_map>

#include "tokenizer/sentencepiece_guard.h"
#include "tokenizer/to_result.h"
#include "tokenizer/training_texts.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary_training.h"

namespace inkling {
namespace {

constexpr std::size_t kMaxLine = 4096;  // bytes; the trainer skips longer sentences in silence

// Gives the trainer the texts line by line, without the line ends: those are a piece already.
class Lines final : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(std::span<const std::string_view> texts) : texts_(texts) { Next(); }

  bool done() const override { return done_; }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }

  void Next() override {
    while (text_ < texts_.size()) {
      if (at_ == texts_[text_].size()) {
        ++text_;
        at_ = 0;
        continue;
      }
      line_ = take();
      if (!line_.empty()) return;
    }
    done_ = true;
  }

 private:
  std::string take() {
    const std::string_view rest = texts_[text_].substr(at_);
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    if (end <= kMaxLine) {
      at_ += std::min(end + 1, rest.size());
      return std::string(rest.substr(0, end));
    }
    std::size_t cut = rest.rfind(' ', kMaxLine - 1) + 1;  // 0 when there is none
    if (cut == 0) cut = valid_utf8_prefix(rest.substr(0, kMaxLine));
    at_ += cut;
    return std::string(rest.substr(0, cut));
  }

  std::span<const std::string_view> texts_;
  std::size_t text_ = 0, at_ = 0;
  std::string line_;
  bool done_ = false;
};

// Calls `visit` with every character of a line as the trainer counts them: names of pieces that it has
// already count as tabs, NULs and lines with its own mark U+2585 not at all.
template <class Visit>
void each_character(std::string_view line, Visit&& visit) {
  if (line.find("\xE2\x96\x85") != std::string_view::npos) return;
  for (std::size_t at = 0; at < line.size();) {
    const std::string_view rest = line.substr(at);
    if (rest.starts_with("<unk>") || rest.starts_with("</s>")) {
      at += rest.find('>') + 1;
      visit(U'\t');
    } else if (byte_of_piece(rest.substr(0, 6))) {
      at += 6;
      visit(U'\t');
    } else if (const char32_t character = next_scalar(line, at); character != 0) {
      visit(character);
    }
  }
}

// The trainer's unigram kind ends the process (0.1.97, unigram_model_trainer.cc lines 77 and 109) when the
// most frequent characters that make up `coverage` of the text, tabs apart, are not two at least.
void require_characters(std::span<const std::string_view> texts, double coverage) {
  Lines lines(texts);
  require(!lines.done(), Code::input,
          [] { return "training a vocabulary: expected text, got line ends alone"; });
  std::unordered_map<char32_t, std::int64_t> counts;
  std::int64_t all = 0;
  for (; !lines.done(); lines.Next()) {
    each_character(lines.value(), [&](char32_t character) { ++counts[character], ++all; });
  }
  std::vector<std::pair<std::int64_t, bool>> order;  // how often, whether it can be learnt
  order.reserve(counts.size());
  for (const auto& [character, count] : counts) order.emplace_back(count, character != U'\t');
  std::ranges::sort(order, [](const auto& a, const auto& b) { return a.first > b.first; });
  std::int64_t learnt = 0, seen = 0;
  for (std::size_t i = 0; i < order.size() && static_cast<double>(seen) < coverage * static_cast<double>(all);
       ++i) {
    seen += order[i].first;
    learnt += order[i].second ? 1 : 0;
  }
  require(learnt >= 2, Code::input, [&] {
    return "training a vocabulary: expected two different characters to learn, got " + std::to_string(learnt);
  });
}

// The one refusal that a good text can meet, "… smaller than required_chars. 30 vs 296. …" (0.1.97,
// trainer_interface.cc line 580), in our words: the library's name a line of its source and a flag of its
// own.
std::string refusal(const std::string& theirs, std::int64_t vocab_size) {
  constexpr std::string_view kMark = "required_chars. ", kBetween = " vs ";
  const std::size_t mark = theirs.find(kMark), at = theirs.find(kBetween, mark);
  const std::size_t begin = at + kBetween.size(), end = theirs.find('.', begin);
  if (mark == std::string::npos || at == std::string::npos || end == std::string::npos) {
    return "SentencePiece: " + theirs;
  }
  return "vocab_size: expected at least " + theirs.substr(begin, end - begin) +
         ", for bytes, marks and the characters of the text, got " + std::to_string(vocab_size);
}

}  // namespace

Result<std::vector<VocabularyFile>> train_sentencepiece(std::span<const std::string_view> texts,
                                                        const SentencePieceTrainingOptions& options) {
  return to_result([&]() -> std::vector<VocabularyFile> {
    require(options.vocab_size >= 1 && options.vocab_size <= std::int64_t{SentencePieceLimits::kPieces},
            Code::usage, [&] {
              return "vocab_size: expected 1 to " + std::to_string(SentencePieceLimits::kPieces) + ", got " +
                     std::to_string(options.vocab_size);
            });
    require(options.character_coverage >= 0.98 && options.character_coverage <= 1, Code::usage, [&] {
      return "character_coverage: expected 0.98 to 1, got " + std::to_string(options.character_coverage);
    });
    require_trainable(texts);
    require_characters(texts, options.character_coverage);
    Lines lines(texts);
    std::string model;
    // One thread: sums over threads would depend on their number. No self-test samples, no log.
    const auto status = sentencepiece::SentencePieceTrainer::Train(
        {{"model_type", options.kind == SentencePieceKind::unigram ? "unigram" : "bpe"},
         {"vocab_size", std::to_string(options.vocab_size)},
         {"hard_vocab_limit", "false"},
         {"character_coverage", std::to_string(options.character_coverage)},
         {"byte_fallback", "true"},
         {"normalization_rule_name", "identity"},
         {"remove_extra_whitespaces", "false"},
         {"add_dummy_prefix", "false"},
         {"user_defined_symbols", "\n"},
         {"unk_id", "0"},
         {"eos_id", "1"},
         {"bos_id", "-1"},
         {"pad_id", "-1"},
         {"max_sentence_length", std::to_string(kMaxLine)},
         {"num_threads", "1"},
         {"minloglevel", "3"}},
        &lines, &model);
    require(status.ok(), Code::usage, [&] { return refusal(status.ToString(), options.vocab_size); });
    return {{"tokenizer.model", model}};
  });
}

}  // namespace inkling
