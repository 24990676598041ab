#include "tokenizer/bpe_trainer.h"

#include <algorithm>
#include <utility>

namespace inkling {

BpeTrainer::BpeTrainer(const std::vector<std::string>& alphabet, std::size_t max_token_bytes)
    : max_token_bytes_(max_token_bytes), tokens_(alphabet), ids_(256, -1) {
  for (std::size_t id = 0; id < alphabet.size(); ++id) {
    ids_[static_cast<unsigned char>(alphabet[id].front())] = static_cast<std::int32_t>(id);
  }
}

void BpeTrainer::add(std::string_view word, std::int64_t count) {
  const auto index = static_cast<std::uint32_t>(words_.size());
  words_.push_back({symbols_.size(), static_cast<std::uint32_t>(word.size()), count});
  for (const char c : word) symbols_.push_back(ids_[static_cast<unsigned char>(c)]);
  const std::int32_t* symbols = symbols_.data() + words_.back().begin;
  for (std::size_t i = 0; i + 1 < word.size(); ++i) change(symbols[i], symbols[i + 1], index, count);
}

std::vector<BpeTrainer::Merge> BpeTrainer::train(std::int64_t most, std::int64_t min_frequency,
                                                 const std::function<void(double)>& progress) {
  std::vector<Merge> merges;
  push_grown();
  while (static_cast<std::int64_t>(merges.size()) < most && !queue_.empty()) {
    Candidate best = queue_.top();
    queue_.pop();
    const std::int64_t count = pairs_[best.key].count;
    if (count < min_frequency) continue;
    if (count < best.count) {
      best.count = count;
      queue_.push(best);
      continue;
    }
    const Merge merge{static_cast<std::int32_t>(best.key >> 32),
                      static_cast<std::int32_t>(best.key & 0xffffffffU)};
    const auto& [left, right] = merge;
    merges.push_back(merge);
    tokens_.push_back(tokens_[static_cast<std::size_t>(left)] + tokens_[static_cast<std::size_t>(right)]);
    join(best.key, static_cast<std::int32_t>(tokens_.size()) - 1);
    push_grown();
    if (progress) progress(static_cast<double>(merges.size()) / static_cast<double>(most));
  }
  return merges;
}

void BpeTrainer::change(std::int32_t left, std::int32_t right, std::uint32_t word, std::int64_t by) {
  const auto length = [&](std::int32_t id) { return tokens_[static_cast<std::size_t>(id)].size(); };
  if (length(left) + length(right) > max_token_bytes_) return;
  const std::uint64_t which = key(left, right);
  Pair& pair = pairs_[which];
  pair.count += by;
  if (by < 0) return;
  if (pair.words.empty()) grown_.push_back(which);
  if (pair.words.empty() || pair.words.back() != word) pair.words.push_back(word);
}

void BpeTrainer::join(std::uint64_t pair, std::int32_t merged) {
  const std::vector<std::uint32_t> words = std::move(pairs_[pair].words);
  const auto left = static_cast<std::int32_t>(pair >> 32),
             right = static_cast<std::int32_t>(pair & 0xffffffffU);
  for (const std::uint32_t word : words) join_in_word(word, left, right, merged);
  pairs_.erase(pair);
}

// From left to right, closing the gaps as it goes.
void BpeTrainer::join_in_word(std::uint32_t index, std::int32_t left, std::int32_t right,
                              std::int32_t merged) {
  Word& word = words_[index];
  std::int32_t* symbols = symbols_.data() + word.begin;
  std::uint32_t kept = 0;
  for (std::uint32_t at = 0; at < word.size; ++kept) {
    if (at + 1 >= word.size || symbols[at] != left || symbols[at + 1] != right) {
      symbols[kept] = symbols[at++];
      continue;
    }
    at += 2;
    if (kept > 0) {
      change(symbols[kept - 1], left, index, -word.count);
      change(symbols[kept - 1], merged, index, word.count);
    }
    if (at < word.size) {
      change(right, symbols[at], index, -word.count);
      change(merged, symbols[at], index, word.count);
    }
    symbols[kept] = merged;
  }
  word.size = kept;
}

void BpeTrainer::push_grown() {
  for (const std::uint64_t which : grown_) {
    const auto found = pairs_.find(which);
    if (found != pairs_.end() && found->second.count > 0) queue_.push({found->second.count, which});
  }
  grown_.clear();
}

}  // namespace inkling
