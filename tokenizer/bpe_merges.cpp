#include "tokenizer/bpe_merges.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <functional>
#include <queue>
#include <unordered_map>
#include <utility>

namespace inkling {

BpeMerges::BpeMerges(std::vector<MergeRule> rules)
    : rules_(std::move(rules)),
      slots_(std::vector<std::uint32_t>(std::bit_ceil(2 * rules_.size() + 2), kNoRule)),
      shift_(64 - std::countr_zero(slots_.size())) {
  for (std::size_t i = 0; i < rules_.size(); ++i) {
    std::uint32_t& rank = slots_.own()[position(rules_[i].left, rules_[i].right)];
    if (rank == kNoRule) {
      rank = static_cast<std::uint32_t>(i);
    } else if (!duplicate_) {
      duplicate_ = i;
    }
  }
}

BpeMerges::BpeMerges(ImageReader& image)
    : rules_(image.take<MergeRule>()),
      slots_(image.take<std::uint32_t>()),
      shift_(64 - std::countr_zero(slots_.size())) {
  ImageReader::check(rules_.size() <= kMaxRules && slots_.size() >= 2 && std::has_single_bit(slots_.size()),
                     "merges of another size");
  std::size_t used = 0;
  bool in_range = true;
  for (const std::uint32_t rank : slots_.elements()) {
    used += rank == kNoRule ? 0 : 1;
    in_range &= rank == kNoRule || rank < rules_.size();
  }
  ImageReader::check(in_range && 2 * used < slots_.size(), "an index of other merges");
}

void BpeMerges::write(ImageWriter& image) const {
  image.add(rules_.elements());
  image.add(slots_.elements());
}

std::size_t BpeMerges::position(std::int32_t left, std::int32_t right) const noexcept {
  const std::uint64_t key =
      std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = static_cast<std::size_t>((key ^ key >> 29) * 0x9E3779B97F4A7C15U >> shift_);
  const auto is_other = [&](std::uint32_t rank) {
    return rank != kNoRule && (rules_[rank].left != left || rules_[rank].right != right);
  };
  while (is_other(slots_[at])) at = (at + 1) & mask;
  return at;
}

std::size_t BpeMerges::apply(std::span<std::int32_t> word) const {
  if (word.size() < 2) return word.size();
  return word.size() <= kShortWord ? apply_short(word) : apply_long(word);
}

std::size_t BpeMerges::apply_short(std::span<std::int32_t> word) const {
  std::array<std::uint32_t, kShortWord> ranks;  // ranks[i]: of the pair (i, i+1)
  std::size_t pairs = word.size() - 1;
  for (std::size_t i = 0; i < pairs; ++i) ranks[i] = rank(word[i], word[i + 1]);
  while (pairs > 0) {
    const auto best = std::min_element(ranks.begin(), ranks.begin() + static_cast<std::ptrdiff_t>(pairs));
    if (*best == kNoRule) break;
    const auto i = static_cast<std::size_t>(best - ranks.begin());
    word[i] = rules_[*best].merged;
    std::copy(word.begin() + static_cast<std::ptrdiff_t>(i) + 2,
              word.begin() + static_cast<std::ptrdiff_t>(pairs) + 1,
              word.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    std::copy(best + 1, ranks.begin() + static_cast<std::ptrdiff_t>(pairs), best);
    --pairs;
    if (i > 0) ranks[i - 1] = rank(word[i - 1], word[i]);
    if (i < pairs) ranks[i] = rank(word[i], word[i + 1]);
  }
  return pairs + 1;
}

namespace {

/// Where pairs of one rank begin, smallest first. They come in that order: how the symbols of a string are
/// joined depends on nothing outside it, so all its occurrences are completed by one rank, from left to
/// right. And none comes once the first was taken: until the rank is used up, new pairs hold a symbol longer
/// than either half of its own.
class Positions {
 public:
  void push(std::uint32_t at) {
    assert(next_ == 0 && (known_.empty() || known_.back() < at));
    known_.push_back(at);
  }
  std::optional<std::uint32_t> pop() {
    if (next_ < known_.size()) return known_[next_++];
    *this = Positions();  // as new, and without the memory
    return std::nullopt;
  }

 private:
  std::vector<std::uint32_t> known_;
  std::size_t next_ = 0;
};

/// The pairs still to be joined: positions by rank, and the ranks that have any.
class Agenda {
 public:
  void push(std::uint32_t rank, std::uint32_t at) {
    Entry& entry = entries_[rank];
    if (!std::exchange(entry.queued, true)) ranks_.push(rank);
    entry.positions.push(at);
  }
  /// Calls join(rank, at) for the best pair again and again; join may push more.
  template <class Join>
  void drain(Join&& join) {
    while (!ranks_.empty()) {
      const std::uint32_t rank = ranks_.top();
      Entry& entry = entries_[rank];
      while (ranks_.top() == rank) {  // until a better rank turns up
        if (const auto at = entry.positions.pop()) {
          join(rank, *at);
        } else {
          entry.queued = false;
          ranks_.pop();
          break;
        }
      }
    }
  }

 private:
  struct Entry {
    Positions positions;
    bool queued = false;
  };
  std::unordered_map<std::uint32_t, Entry> entries_;
  std::priority_queue<std::uint32_t, std::vector<std::uint32_t>, std::greater<>> ranks_;
};

}  // namespace

std::size_t BpeMerges::apply_long(std::span<std::int32_t> word) const {
  const auto n = static_cast<std::uint32_t>(word.size());
  struct Link {
    std::uint32_t previous, next;  // n: none
    std::uint32_t rank;            // of the pair that begins here; kNoRule also when this symbol is gone
  };
  std::vector<Link> links(n);
  Agenda agenda;
  const auto renew = [&](std::uint32_t at) {
    Link& link = links[at];
    link.rank = link.next < n ? rank(word[at], word[link.next]) : kNoRule;
    if (link.rank != kNoRule) agenda.push(link.rank, at);
  };
  for (std::uint32_t i = 0; i < n; ++i) {
    links[i] = {i == 0 ? n : i - 1, i + 1, kNoRule};
    renew(i);
  }
  agenda.drain([&](std::uint32_t rule, std::uint32_t at) {
    Link& link = links[at];
    if (link.rank != rule) return;  // a neighbour was joined since
    word[at] = rules_[rule].merged;
    links[link.next].rank = kNoRule;
    link.next = links[link.next].next;
    if (link.next < n) links[link.next].previous = at;
    renew(at);
    if (link.previous < n) renew(link.previous);
  });
  std::size_t length = 0;
  for (std::uint32_t i = 0; i < n; i = links[i].next) word[length++] = word[i];
  return length;
}

}  // namespace inkling
