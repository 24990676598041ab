#include <doctest/doctest.h>

#include <algorithm>
#include <string>

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

/// Rules over strings of the first `letters` letters, in random order; often several lead to one string.
std::vector<MergeRule> random_rules(SplitMix64& random, std::uint64_t letters) {
  std::vector<std::string> strings;
  for (std::uint64_t i = 0; i < letters; ++i) strings.emplace_back(1, static_cast<char>('a' + i));
  std::vector<MergeRule> rules;
  for (int attempt = 0; attempt < 16; ++attempt) {
    const std::uint64_t left = random.below(strings.size()), right = random.below(strings.size());
    const std::string merged = strings[left] + strings[right];
    const auto known = std::find(strings.begin(), strings.end(), merged);
    const MergeRule rule{static_cast<std::int32_t>(left), static_cast<std::int32_t>(right),
                         static_cast<std::int32_t>(known - strings.begin())};
    if (known == strings.end()) strings.push_back(merged);
    const bool twice = std::any_of(rules.begin(), rules.end(), [&](const MergeRule& other) {
      return other.left == rule.left && other.right == rule.right;
    });
    if (!twice)
      rules.insert(rules.begin() + static_cast<std::ptrdiff_t>(random.below(rules.size() + 1)), rule);
  }
  return rules;
}

}  // namespace

// Random rules, unlike trained ones, may rank a pair before the pair that makes its parts: the long-word
// agenda must then turn back to a rank that it had finished.
TEST_CASE("merges: short and long words follow the definition, whatever the order of the rules") {
  SplitMix64 random(9);
  for (int round = 0; round < 4000; ++round) {
    const std::uint64_t letters = 1 + random.below(3);
    const std::vector<MergeRule> rules = random_rules(random, letters);
    const BpeMerges merges(rules);
    REQUIRE(!merges.duplicate());
    const std::size_t size = round % 2 == 0 ? random.below(40) : BpeMerges::kShortWord + 1 + random.below(40);
    std::vector<std::int32_t> word(size);
    for (auto& symbol : word) symbol = static_cast<std::int32_t>(random.below(letters));
    const auto expected = by_definition(word, rules);
    word.resize(merges.apply(word));
    REQUIRE(word == expected);
  }
}

TEST_CASE("merges: a second rule for a pair is reported") {
  CHECK(BpeMerges({{1, 2, 3}, {2, 1, 4}, {1, 2, 5}}).duplicate() == 2);
  CHECK(!BpeMerges({}).duplicate());
}
