// The image of a tokenizer: its tables back to back, as they lie in memory, so that a file of them is mapped
// and used where it is.
//
// "INKLTOK1" · checksum of all that follows · arrays: a count, the elements, zeros up to a multiple of 8
// bytes. Numbers are the machine's; on one of the other byte order the first word is another. The checksum is
// against accidents. What must hold even for an image that was made to harm is checked by those who take the
// arrays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "engine/base/error.h"

namespace inkling {

/// Of what follows it in an image. A change of one word never goes unseen.
std::uint64_t image_checksum(std::span<const std::byte> arrays);

/// Collects arrays.
class ImageWriter {
 public:
  template <class T>
  void add(std::span<const T> elements) {
    static_assert(std::has_unique_object_representations_v<T>, "no padding, whose bytes are anybody's");
    add_bytes(std::as_bytes(elements), elements.size());
  }
  /// The image so far.
  std::vector<std::byte> finish() const;

 private:
  void add_bytes(std::span<const std::byte> bytes, std::size_t count);
  std::vector<std::byte> arrays_;
};

/// Gives them back in order, as views into the image. Throws Code::malformed.
class ImageReader {
 public:
  /// `image` begins at a multiple of 8 bytes.
  explicit ImageReader(std::span<const std::byte> image);

  template <class T>
  std::span<const T> take() {
    static_assert(alignof(T) <= 8 && std::has_unique_object_representations_v<T>);
    const std::size_t count = take_count(sizeof(T));
    return {reinterpret_cast<const T*>(take_bytes(count * sizeof(T))), count};
  }
  template <class T>
  std::span<const T> take(std::size_t count) {
    const std::span<const T> elements = take<T>();
    check(elements.size() == count, "an array of another length");
    return elements;
  }
  void check_end() const { check(rest_.empty(), "more than its arrays"); }

  /// Throws unless `holds`: "tokenizer image: FAULT".
  static void check(bool holds, std::string_view fault);

 private:
  std::size_t take_count(std::size_t element_size);
  const std::byte* take_bytes(std::size_t size);
  std::span<const std::byte> rest_;
};

}  // namespace inkling
