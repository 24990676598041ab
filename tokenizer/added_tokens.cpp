#include "tokenizer/added_tokens.h"

#include <algorithm>

namespace inkling {

AddedTokens::AddedTokens(std::vector<Entry> entries) : entries_(std::move(entries)) {
  const auto first = [](const Entry& entry) { return static_cast<unsigned char>(entry.text[0]); };
  std::sort(entries_.begin(), entries_.end(), [&](const Entry& a, const Entry& b) {
    return first(a) != first(b) ? first(a) < first(b) : a.text.size() > b.text.size();
  });
  for (const Entry& entry : entries_) {
    ++begin_[first(entry) + std::size_t{1}];
    if (first_bytes_.find(entry.text[0]) == std::string::npos) first_bytes_ += entry.text[0];
  }
  for (std::size_t b = 0; b < 256; ++b) begin_[b + 1] += begin_[b];
}

TokenSpan AddedTokens::find(std::string_view text, std::size_t from, SpecialTokens special) const noexcept {
  for (std::size_t at = from; at < text.size(); ++at) {
    at = first_bytes_.size() == 1 ? text.find(first_bytes_[0], at) : text.find_first_of(first_bytes_, at);
    if (at == std::string_view::npos) break;
    const auto byte = static_cast<unsigned char>(text[at]);
    for (std::uint32_t i = begin_[byte]; i < begin_[byte + std::size_t{1}]; ++i) {
      const Entry& entry = entries_[i];
      if (entry.special && special == SpecialTokens::literal) continue;
      if (text.substr(at).starts_with(entry.text)) return {entry.id, at, at + entry.text.size()};
    }
  }
  return {-1, text.size(), text.size()};
}

}  // namespace inkling
