// Byte-pair training (Sennrich, Haddow & Birch 2016, algorithm 1): words and how often each occurs → merges.
//
// Every distinct word is held once. A count and the words of each pair are kept up to date, so that a merge
// costs the words that it changes; a heap of counts gives the next one. A pair's occurrences all arise in the
// merge that makes the younger of its two tokens and only grow fewer afterwards, so that an entry of the heap
// is pushed once and, when it is found too high, put back lower.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace inkling {

/// One training. One thread at a time.
class BpeTrainer {
 public:
  /// Tokens 0 … alphabet.size()−1, which must hold every byte of the words, each one byte long. No token
  /// longer than `max_token_bytes` is made.
  BpeTrainer(const std::vector<std::string>& alphabet, std::size_t max_token_bytes);

  /// Adds a word that occurs `count` times. Each word once.
  void add(std::string_view word, std::int64_t count);

  struct Merge {
    std::int32_t left = 0, right = 0;
  };
  /// At most `most` merges of pairs that occur `min_frequency` times; the i-th makes token alphabet.size() +
  /// i.
  std::vector<Merge> train(std::int64_t most, std::int64_t min_frequency,
                           const std::function<void(double)>& progress);

  /// The bytes of every token, those of the merges included.
  const std::vector<std::string>& tokens() const noexcept { return tokens_; }

 private:
  struct Word {
    std::size_t begin;   // of its symbols in symbols_
    std::uint32_t size;  // symbols left
    std::int64_t count;
  };
  struct Pair {
    std::int64_t count = 0;
    std::vector<std::uint32_t> words;  // where it may occur; one may be named twice, or in vain
  };
  struct Candidate {
    std::int64_t count;
    std::uint64_t key;
    bool operator<(const Candidate& other) const noexcept {
      return count != other.count ? count < other.count : key > other.key;
    }
  };

  static std::uint64_t key(std::int32_t left, std::int32_t right) noexcept {
    return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
  }
  void change(std::int32_t left, std::int32_t right, std::uint32_t word, std::int64_t by);
  void join(std::uint64_t pair, std::int32_t merged);
  void join_in_word(std::uint32_t word, std::int32_t left, std::int32_t right, std::int32_t merged);
  void push_grown();

  std::size_t max_token_bytes_;
  std::vector<std::string> tokens_;
  std::vector<std::int32_t> ids_;  // of the 256 bytes
  std::vector<std::int32_t> symbols_;
  std::vector<Word> words_;
  std::unordered_map<std::uint64_t, Pair> pairs_;
  std::vector<std::uint64_t> grown_;  // pairs that have become more frequent since the last push
  std::priority_queue<Candidate> queue_;
};

}  // namespace inkling
