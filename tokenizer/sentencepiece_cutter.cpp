#include "tokenizer/sentencepiece_cutter.h"

#include <algorithm>

#include "tokenizer/utf8.h"

namespace inkling {
namespace {

constexpr char32_t kSpaceSymbol = 0x2581;
constexpr std::size_t kPart = 8192;
// After this many bytes that no rule touches, a rule or symbol that began before cannot reach the cut.
constexpr std::size_t kCalm = std::max(kMaxCharsmapDepth, SentencePieceLimits::kPieceBytes);

std::uint64_t pair(char32_t left, char32_t right) {
  return std::uint64_t{left} << 32 | right;
}

}  // namespace

SentencePieceCutter::SentencePieceCutter(const SentencePieceFacts& facts) : charsmap_(facts.charsmap) {
  using Type = SentencePieceFacts::Type;
  bool lone_space = false;
  for (const auto& piece : facts.pieces) {
    if (piece.type != Type::normal && piece.type != Type::user_defined && piece.type != Type::unused)
      continue;
    std::size_t at = 0;
    char32_t left = next_scalar(piece.text, at);
    if (left == kSpaceSymbol && at == piece.text.size() && piece.type == Type::normal) lone_space = true;
    while (at < piece.text.size()) {
      const char32_t right = next_scalar(piece.text, at);
      pairs_.push_back(pair(left, right));
      left = right;
    }
  }
  std::sort(pairs_.begin(), pairs_.end());
  pairs_.erase(std::unique(pairs_.begin(), pairs_.end()), pairs_.end());
  pairs_.shrink_to_fit();
  cuttable_ = facts.escape_whitespaces && !facts.space_as_suffix && lone_space &&
              facts.algorithm != SentencePieceFacts::Algorithm::word;
}

bool SentencePieceCutter::joined(char32_t left, char32_t right) const noexcept {
  return std::binary_search(pairs_.begin(), pairs_.end(), pair(left, right));
}

std::vector<std::size_t> SentencePieceCutter::cuts(std::string_view text) const {
  std::vector<std::size_t> ends;
  if (cuttable_ && text.size() > kPart) {
    std::size_t part = 0, calm = 0;  // where this part begins, where the calm stretch began
    char32_t left = 0;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t begin = at;
      if (const std::size_t rule = charsmap_.match(text.substr(at)); rule > 0) {
        calm = at += rule;
        while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80) calm = ++at;
        continue;
      }
      const char32_t right = next_scalar(text, at);
      if (right == ' ' || right == kSpaceSymbol) {
        calm = at;
      } else if (begin - part >= kPart && begin - calm >= kCalm && !joined(left, right) &&
                 !joined(kSpaceSymbol, right)) {
        ends.push_back(part = begin);
      }
      left = right;
    }
  }
  ends.push_back(text.size());
  return ends;
}

}  // namespace inkling
