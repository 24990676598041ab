#include "tokenizer/image.h"

#include <algorithm>
#include <array>
#include <string>

namespace inkling {
namespace {

// To be raised, in the last digit, whenever the arrays, their order, the hash of string_index.h or what is
// made of the same vocabulary files changes.
constexpr std::uint64_t kMagic = 0x314B'4F54'4C4B'4E49;  // "INKLTOK1" in little-endian order
constexpr std::size_t kWord = sizeof(std::uint64_t);
constexpr std::size_t kHeader = 2 * kWord;  // kMagic, checksum

std::uint64_t word_at(std::span<const std::byte> bytes, std::size_t at) {
  std::uint64_t word = 0;
  std::memcpy(&word, bytes.data() + at, kWord);
  return word;
}

std::size_t padded(std::size_t size) {
  return (size + kWord - 1) / kWord * kWord;
}

// Each step is a bijection of the state and of the word, so that no change of one word goes unseen; four
// states in turn, since one would wait for its own multiplication.
std::uint64_t mix(std::uint64_t state, std::uint64_t word) {
  const std::uint64_t product = (state ^ word) * 0x9E3779B97F4A7C15U;  // as in string_index.h
  return product ^ (product >> 32);
}

}  // namespace

std::uint64_t image_checksum(std::span<const std::byte> bytes) {
  std::array<std::uint64_t, 4> states{1, 2, 3, 4};
  const std::size_t words = bytes.size() / kWord, whole = words / 4 * 4;
  for (std::size_t i = 0; i < whole; i += 4) {
    for (std::size_t s = 0; s < 4; ++s) states[s] = mix(states[s], word_at(bytes, (i + s) * kWord));
  }
  for (std::size_t i = whole; i < words; ++i) states[0] = mix(states[0], word_at(bytes, i * kWord));
  std::uint64_t sum = bytes.size();
  for (const std::uint64_t state : states) sum = mix(sum, state);
  return sum;
}

void ImageWriter::add_bytes(std::span<const std::byte> bytes, std::size_t count) {
  const std::uint64_t number = count;
  const auto begin = std::as_bytes(std::span(&number, 1));
  arrays_.insert(arrays_.end(), begin.begin(), begin.end());
  arrays_.insert(arrays_.end(), bytes.begin(), bytes.end());
  arrays_.resize(padded(arrays_.size()));
}

std::vector<std::byte> ImageWriter::finish() const {
  const std::array<std::uint64_t, 2> header{kMagic, image_checksum(arrays_)};
  const auto begin = std::as_bytes(std::span(header));
  std::vector<std::byte> image(kHeader + arrays_.size());
  std::ranges::copy(begin, image.begin());
  std::ranges::copy(arrays_, image.begin() + kHeader);
  return image;
}

ImageReader::ImageReader(std::span<const std::byte> image) {
  check(reinterpret_cast<std::uintptr_t>(image.data()) % kWord == 0, "not at a multiple of 8 bytes");
  check(image.size() >= kHeader && image.size() % kWord == 0, "cut short");
  check(word_at(image, 0) == kMagic, "of another kind or machine");
  rest_ = image.subspan(kHeader);
  check(word_at(image, kWord) == image_checksum(rest_), "damaged");
}

std::size_t ImageReader::take_count(std::size_t element_size) {
  check(rest_.size() >= kWord, "an array is missing");
  const std::uint64_t count = word_at(rest_, 0);
  rest_ = rest_.subspan(kWord);
  check(count <= rest_.size() / element_size, "an array that is longer than the image");
  return static_cast<std::size_t>(count);
}

// Sizes are of whole words, so what is padded is there if what it pads is.
const std::byte* ImageReader::take_bytes(std::size_t size) {
  const std::byte* const begin = rest_.data();
  rest_ = rest_.subspan(padded(size));
  return begin;
}

void ImageReader::check(bool holds, std::string_view fault) {
  require(holds, Code::malformed, [&] { return "tokenizer image: " + std::string(fault); });
}

}  // namespace inkling
