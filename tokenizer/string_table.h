// StringTable: strings by number, back to back in one pool.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/error.h"
#include "tokenizer/flat_array.h"
#include "tokenizer/image.h"

namespace inkling {

/// Immutable; any thread.
class StringTable {
 public:
  /// string_of(0) … string_of(count − 1). Throws Code::malformed beyond 4 GiB.
  template <class StringOf>
  StringTable(std::size_t count, StringOf&& string_of) {
    std::vector<std::uint32_t> begins(count + 1);
    std::vector<char> pool;
    for (std::size_t i = 0; i < count; ++i) {
      const std::string_view string = string_of(i);
      pool.insert(pool.end(), string.begin(), string.end());
      require(pool.size() <= std::numeric_limits<std::uint32_t>::max(), Code::malformed,
              [] { return std::string("tokenizer: expected at most 4 GiB of tokens, got more"); });
      begins[i + 1] = static_cast<std::uint32_t>(pool.size());
    }
    begins_ = FlatArray(std::move(begins));
    pool_ = FlatArray(std::move(pool));
  }

  explicit StringTable(ImageReader& image) : begins_(image.take<std::uint32_t>()), pool_(image.take<char>()) {
    ImageReader::check(begins_.size() >= 1 && begins_[0] == 0, "strings without a beginning");
    bool rising = true;
    for (std::size_t i = 1; i < begins_.size(); ++i) rising &= begins_[i - 1] <= begins_[i];
    ImageReader::check(rising && begins_[begins_.size() - 1] == pool_.size(), "strings outside their pool");
  }
  void write(ImageWriter& image) const {
    image.add(begins_.elements());
    image.add(pool_.elements());
  }

  std::size_t size() const noexcept { return begins_.size() - 1; }
  std::string_view operator[](std::size_t i) const noexcept {
    return {pool_.elements().data() + begins_[i], begins_[i + 1] - begins_[i]};
  }
  /// As StringIndex asks.
  std::string_view operator()(std::int32_t number) const noexcept {
    return (*this)[static_cast<std::size_t>(number)];
  }

 private:
  FlatArray<std::uint32_t> begins_;  // and, last, where the pool ends
  FlatArray<char> pool_;
};

}  // namespace inkling
