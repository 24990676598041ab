// StringIndex: byte strings → numbers, for vocabularies. Open addressing, at most half full, no allocation
// per key.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace inkling {

/// Keys are views: the strings must outlive the index and stay where they are. Reading is thread-safe.
class StringIndex {
 public:
  StringIndex() : StringIndex(0) {}
  explicit StringIndex(std::size_t expected) : slots_(std::bit_ceil(2 * expected + 2)) {}

  /// False, and nothing is changed, when the key is there already. At most `expected` keys; value ≥ 0.
  bool insert(std::string_view key, std::int32_t value) {
    Slot& slot = slots_[position(key)];
    if (slot.value >= 0) return false;
    slot = {key.data(), static_cast<std::uint32_t>(key.size()), value};
    return true;
  }

  /// The value of `key`, or −1.
  std::int32_t find(std::string_view key) const noexcept { return slots_[position(key)].value; }

 private:
  struct Slot {
    const char* data = nullptr;
    std::uint32_t size = 0;
    std::int32_t value = -1;
  };

  std::size_t position(std::string_view key) const noexcept {
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = static_cast<std::size_t>(hash(key)) & mask;
    while (slots_[at].value >= 0 && std::string_view(slots_[at].data, slots_[at].size) != key) {
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

  std::vector<Slot> slots_;
};

}  // namespace inkling
