#include "tokenizer/charsmap.h"

#include <algorithm>
#include <cstring>

#include "tokenizer/utf8.h"

namespace inkling {
namespace {

// A unit of darts-clone: bits 0–7 label, 8 "a value follows", 9 offset is ×256, 10–30 offset; bit 31 set: a
// value.
bool leads_to(std::uint32_t unit, std::uint32_t byte) noexcept {
  return (unit & 0x800000FFU) == byte;
}
bool has_value(std::uint32_t unit) noexcept {
  return (unit & 0x100U) != 0;
}
std::uint32_t offset(std::uint32_t unit) noexcept {
  return (unit >> 10) << ((unit & 0x200U) >> 6);
}
std::uint32_t value(std::uint32_t unit) noexcept {
  return unit & 0x7FFFFFFFU;
}

struct Parts {
  std::vector<std::uint32_t> units;
  std::string_view replacements;
};

/// False when the sizes do not fit.
bool split(std::string_view charsmap, Parts& parts) {
  std::uint32_t bytes = 0;
  if (charsmap.size() < sizeof bytes) return false;
  for (std::size_t i = 0; i < sizeof bytes; ++i) {
    bytes |= std::uint32_t{static_cast<unsigned char>(charsmap[i])} << (8 * i);
  }
  charsmap.remove_prefix(sizeof bytes);
  if (bytes == 0 || bytes % sizeof(std::uint32_t) != 0 || bytes >= charsmap.size()) return false;
  parts.units.resize(bytes / sizeof(std::uint32_t));
  std::memcpy(parts.units.data(), charsmap.data(), bytes);  // little-endian, as the machines we run on
  parts.replacements = charsmap.substr(bytes);
  return true;
}

/// Walks every state that some text can reach, each once.
class TrieWalk {
 public:
  explicit TrieWalk(const Parts& parts) : parts_(parts), seen_(parts.units.size()) {}

  const char* flaw() {
    const Below all = visit(0, 0);
    if (flaw_ == nullptr && all.depth > kMaxCharsmapDepth) flaw_ = "a rule is too long";
    if (flaw_ == nullptr && all.matches > kMaxCharsmapMatches) flaw_ = "too many nested rules";
    return flaw_;
  }

 private:
  struct Below {  // of a state: the most values on one path, the longest path
    std::uint32_t matches = 0, depth = 0;
    enum : std::uint8_t { unseen, open, done } state = unseen;
  };

  // `from` is the unit that was just read; its children are at base ^ byte. Recursion is at most
  // kMaxCharsmapDepth.
  Below visit(std::uint32_t from, std::uint32_t depth) {
    const std::uint32_t base = from ^ offset(parts_.units[from]);
    if ((base | 0xFFU) >= parts_.units.size()) return fail("the trie leads out of itself");
    if (depth > kMaxCharsmapDepth) return fail("a rule is too long");
    if (seen_[base].state == Below::open) return fail("the trie has a cycle");
    if (seen_[base].state == Below::done) return seen_[base];
    seen_[base].state = Below::open;
    Below below;
    for (std::uint32_t byte = 0; byte < 256 && flaw_ == nullptr; ++byte) {
      const std::uint32_t child = base ^ byte;
      const std::uint32_t unit = parts_.units[child];
      if (!leads_to(unit, byte)) continue;
      Below next = visit(child, depth + 1);
      if (flaw_ == nullptr && has_value(unit)) {
        check_replacement(value(parts_.units[child ^ offset(unit)]));
        ++next.matches;
      }
      below.matches = std::max(below.matches, next.matches);
      below.depth = std::max(below.depth, next.depth + 1);
    }
    below.state = Below::done;
    return seen_[base] = below;
  }

  void check_replacement(std::uint32_t at) {
    if (at >= parts_.replacements.size()) return void(fail("a replacement lies outside the map"));
    const auto text = parts_.replacements.substr(at, kMaxReplacementBytes + 1);
    const std::size_t end = text.find('\0');
    if (end == std::string_view::npos) return void(fail("a replacement is too long or has no end"));
    if (!is_valid_utf8(text.substr(0, end))) fail("a replacement is not UTF-8");
  }

  Below fail(const char* why) {
    if (flaw_ == nullptr) flaw_ = why;
    return {};
  }

  const Parts& parts_;
  std::vector<Below> seen_;  // by base
  const char* flaw_ = nullptr;
};

}  // namespace

const char* charsmap_flaw(std::string_view charsmap) {
  if (charsmap.empty()) return nullptr;
  if (charsmap.size() > kMaxCharsmapBytes) return "the map is too large";
  Parts parts;
  if (!split(charsmap, parts)) return "the trie's size does not fit the map";
  return TrieWalk(parts).flaw();
}

Charsmap::Charsmap(std::string_view sound) {
  Parts parts;
  if (!sound.empty() && split(sound, parts)) units_ = std::move(parts.units);
}

std::size_t Charsmap::match(std::string_view text) const noexcept {
  if (units_.empty()) return 0;
  std::size_t longest = 0;
  std::uint32_t at = offset(units_[0]);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    at ^= byte;
    const std::uint32_t unit = units_[at];
    if (!leads_to(unit, byte)) break;
    at ^= offset(unit);
    if (has_value(unit)) longest = i + 1;
  }
  return longest;
}

}  // namespace inkling
