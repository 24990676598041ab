#include <doctest/doctest.h>

#include "tests/tokenizer/generated_text.h"
#include "tokenizer/bpe_merges.h"

using namespace inkling;
using inkling::test::SplitMix64;

namespace {

/// The definition, written down: join the leftmost pair of the best rank until there is none.
std::vector<std::int32_t> by_definition(std::vector<std::int32_t> word, const std::vector<MergeRule>& rules) {
  for (;;) {
    std::size_t best = rules.size(), where = 0;
    for (std::size_t i = 0; i + 1 < word.size(); ++i) {
      for (std::size_t rank = 0; rank < best; ++rank) {
        if (rules[rank].left == word[i] && rules[rank].right == word[i + 1]) best = rank, where = i;
      }
    }
    if (best == rules.size()) return word;
    word[where] = rules[best].merged;
    word.erase(word.begin() + static_cast<std::ptrdiff_t>(where) + 1);
  }
}

}  // namespace

// Random rules, unlike trained ones, rank a pair before the pair that makes its parts: the long-word agenda
// must turn back for it.
TEST_CASE("merges: short and long words follow the definition, whatever the order of the rules") {
  SplitMix64 random(9);
  for (int round = 0; round < 3000; ++round) {
    const std::uint64_t symbols = 2 + random.below(3);
    std::vector<MergeRule> rules;
    for (std::int32_t next = static_cast<std::int32_t>(symbols); rules.size() < 12; ++next) {
      const MergeRule rule{static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(next))),
                           static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(next))), next};
      bool known = false;
      for (const auto& other : rules) known |= other.left == rule.left && other.right == rule.right;
      if (!known)
        rules.insert(rules.begin() + static_cast<std::ptrdiff_t>(random.below(rules.size() + 1)), rule);
    }
    const BpeMerges merges(rules);
    REQUIRE(!merges.duplicate());
    const std::size_t size = round % 2 == 0 ? random.below(40) : BpeMerges::kShortWord + 1 + random.below(40);
    std::vector<std::int32_t> word(size);
    for (auto& symbol : word) symbol = static_cast<std::int32_t>(random.below(symbols));
    const auto expected = by_definition(word, rules);
    word.resize(merges.apply(word));
    REQUIRE(word == expected);
  }
}

TEST_CASE("merges: a second rule for a pair is reported") {
  CHECK(BpeMerges({{1, 2, 3}, {2, 1, 4}, {1, 2, 5}}).duplicate() == 2);
  CHECK(!BpeMerges({}).duplicate());
}
