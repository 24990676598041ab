#include "tokenizer/bpe_merges.h"

#include <algorithm>
#include <array>
#include <bit>
#include <functional>

namespace inkling {

BpeMerges::BpeMerges(std::vector<MergeRule> rules)
    : rules_(std::move(rules)), slots_(std::bit_ceil(2 * rules_.size() + 2)) {
  shift_ = 64 - std::countr_zero(slots_.size());
  for (std::size_t i = 0; i < rules_.size(); ++i) {
    Slot& slot = slots_[position(rules_[i].left, rules_[i].right)];
    if (slot.rank != kNoRule) {
      if (!duplicate_) duplicate_ = i;
      continue;
    }
    slot = {rules_[i].left, rules_[i].right, static_cast<std::uint32_t>(i)};
  }
}

std::size_t BpeMerges::position(std::int32_t left, std::int32_t right) const noexcept {
  const std::uint64_t key =
      std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = static_cast<std::size_t>((key ^ key >> 29) * 0x9E3779B97F4A7C15U >> shift_);
  while (slots_[at].rank != kNoRule && (slots_[at].left != left || slots_[at].right != right))
    at = (at + 1) & mask;
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

std::size_t BpeMerges::apply_long(std::span<std::int32_t> word) const {
  const auto n = static_cast<std::uint32_t>(word.size());
  struct Link {
    std::uint32_t previous, next;  // n: none
    std::uint32_t rank;            // of the pair that begins here; kNoRule also when this symbol is gone
  };
  std::vector<Link> links(n);
  std::vector<std::uint64_t> heap;  // rank, then position: the smallest is what to join next
  const auto candidate = [](std::uint32_t rank, std::uint32_t at) { return std::uint64_t{rank} << 32 | at; };
  for (std::uint32_t i = 0; i < n; ++i) {
    links[i] = {i == 0 ? n : i - 1, i + 1, i + 1 < n ? rank(word[i], word[i + 1]) : kNoRule};
    if (links[i].rank != kNoRule) heap.push_back(candidate(links[i].rank, i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto renew = [&](std::uint32_t at) {
    links[at].rank = links[at].next < n ? rank(word[at], word[links[at].next]) : kNoRule;
    if (links[at].rank == kNoRule) return;
    heap.push_back(candidate(links[at].rank, at));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto best = static_cast<std::uint32_t>(heap.back() >> 32);
    const auto at = static_cast<std::uint32_t>(heap.back());
    heap.pop_back();
    if (links[at].rank != best) continue;  // a neighbour was joined since
    const std::uint32_t gone = links[at].next;
    word[at] = rules_[best].merged;
    links[gone].rank = kNoRule;
    links[at].next = links[gone].next;
    if (links[at].next < n) links[links[at].next].previous = at;
    renew(at);
    if (links[at].previous < n) renew(links[at].previous);
  }
  std::size_t length = 0;
  for (std::uint32_t i = 0; i < n; i = links[i].next) word[length++] = word[i];
  return length;
}

}  // namespace inkling
