// StringIndex: byte strings → their numbers, for vocabularies. Open addressing, at most half full, no
// allocation per key.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "tokenizer/flat_array.h"
#include "tokenizer/image.h"

namespace inkling {

/// Holds no strings: `string_of(number)` is the string of a number, and always the same one. Reading is
/// thread-safe.
class StringIndex {
 public:
  StringIndex() : StringIndex(0) {}
  explicit StringIndex(std::size_t expected) : slots_(std::vector<Slot>(std::bit_ceil(2 * expected + 2))) {}

  /// Of numbers below `count`.
  StringIndex(ImageReader& image, std::size_t count) : slots_(image.take<Slot>()) {
    std::size_t used = 0;
    bool in_range = true;
    for (const Slot& slot : slots_.elements()) {
      used += slot.number >= 0 ? 1 : 0;
      in_range &= slot.number < static_cast<std::int64_t>(count);
    }
    ImageReader::check(in_range && std::has_single_bit(slots_.size()) && 2 * used < slots_.size(),
                       "an index of other strings");
  }
  void write(ImageWriter& image) const { image.add(slots_.elements()); }

  /// False, and nothing is changed, when its string is there already. At most `expected` numbers, none below
  /// 0.
  template <class StringOf>
  bool insert(std::int32_t number, const StringOf& string_of) {
    const std::string_view key = string_of(number);
    const std::uint64_t h = hash(key);
    Slot& slot = slots_.own()[position(key, h, string_of)];
    if (slot.number >= 0) return false;
    slot = {tag(h), number};
    return true;
  }

  /// The number of `key`, or −1.
  template <class StringOf>
  std::int32_t find(std::string_view key, const StringOf& string_of) const noexcept {
    return slots_[position(key, hash(key), string_of)].number;
  }

 private:
  struct Slot {
    std::uint32_t tag = 0;  // of its string's hash, so that few strings are compared in vain
    std::int32_t number = -1;
  };

  static std::uint32_t tag(std::uint64_t hash) noexcept { return static_cast<std::uint32_t>(hash >> 32); }

  template <class StringOf>
  std::size_t position(std::string_view key, std::uint64_t hash, const StringOf& string_of) const noexcept {
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = static_cast<std::size_t>(hash) & mask;
    while (slots_[at].number >= 0 && (slots_[at].tag != tag(hash) || string_of(slots_[at].number) != key)) {
      at = (at + 1) & mask;
    }
    return at;
  }

  static std::uint64_t mix(std::uint64_t a, std::uint64_t b) noexcept {
    const std::uint64_t product = (a ^ b) * 0x9E3779B97F4A7C15U;  // 2⁶⁴/φ (Knuth, TAOCP 3, §6.4)
    return product ^ (product >> 32);
  }

  // Eight bytes a step; the last, partial step reads overlapping words instead of a byte loop.
  static std::uint64_t hash(std::string_view key) noexcept {
    const char* data = key.data();
    std::size_t left = key.size();
    std::uint64_t h = left;
    for (; left > 8; left -= 8, data += 8) h = mix(h, load<std::uint64_t>(data));
    std::uint64_t last = 0;
    if (left >= 4) {
      last = std::uint64_t{load<std::uint32_t>(data)} << 32 | load<std::uint32_t>(data + left - 4);
    } else if (left > 0) {
      last = std::uint64_t{load<std::uint8_t>(data)} << 16 |
             std::uint64_t{load<std::uint8_t>(data + left / 2)} << 8 | load<std::uint8_t>(data + left - 1);
    }
    return mix(h, last);
  }

  template <class T>
  static T load(const char* from) noexcept {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }

  FlatArray<Slot> slots_;
};

}  // namespace inkling
