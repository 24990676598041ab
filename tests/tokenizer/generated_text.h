// Multilingual text from a seed, character for character the text of tests/golden/make_tokenizer_golden.py.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "tokenizer/utf8.h"

namespace inkling::test {

/// Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t seed) : state_(seed) {}
  std::uint64_t below(std::uint64_t n) {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15U;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return (z ^ (z >> 31)) % n;
  }

 private:
  std::uint64_t state_;
};

inline std::string generated_text(std::uint64_t seed, int runs) {
  constexpr std::pair<char32_t, char32_t> kBlocks[] = {
      {0x61, 0x7A},       {0x61, 0x7A},       {0x61, 0x7A},       {0x41, 0x5A},       {0x30, 0x39},
      {0x20, 0x2F},       {0x3A, 0x40},       {0x5B, 0x60},       {0x7B, 0x7E},       {0x20, 0x20},
      {0x20, 0x20},       {0x09, 0x0D},       {0x1C, 0x1F},       {0x85, 0x85},       {0xA0, 0xFF},
      {0x100, 0x17F},     {0x300, 0x30A},     {0x391, 0x3A1},     {0x410, 0x44F},     {0x5D0, 0x5EA},
      {0x621, 0x63A},     {0x660, 0x669},     {0x905, 0x939},     {0xE01, 0xE30},     {0x1680, 0x1680},
      {0x180E, 0x180E},   {0x2000, 0x200A},   {0x200B, 0x2027},   {0x2028, 0x202F},   {0x205F, 0x205F},
      {0x2150, 0x2189},   {0x2200, 0x22FF},   {0x3000, 0x3003},   {0x3041, 0x3096},   {0x30A1, 0x30FA},
      {0x4E00, 0x9FA5},   {0xAC00, 0xD7A3},   {0xE000, 0xE010},   {0xFF21, 0xFF3A},   {0xFEFF, 0xFEFF},
      {0x10400, 0x1044F}, {0x1D400, 0x1D454}, {0x1F600, 0x1F64F}, {0x20000, 0x20100}, {0xF0000, 0xF0010}};
  constexpr std::string_view kStrings[] = {"'s",   "'re",     "'ll",           "'d",   "'ve",
                                           "'T",   " '",      "<|endoftext|>", " the", "  ",
                                           "\n\n", "e\u0301", "\u2581"};
  SplitMix64 random(seed);
  std::string text;
  for (int run = 0; run < runs; ++run) {
    const std::uint64_t which = random.below(std::size(kBlocks) + std::size(kStrings));
    if (which >= std::size(kBlocks)) {
      text += kStrings[which - std::size(kBlocks)];
      continue;
    }
    const auto [first, last] = kBlocks[which];
    const std::uint64_t count = 1 + random.below(6);
    for (std::uint64_t i = 0; i < count; ++i) {
      append_utf8(first + static_cast<char32_t>(random.below(last - first + 1)), text);
    }
  }
  return text;
}

inline std::string random_bytes(SplitMix64& random, std::size_t size) {
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(random.below(256));
  return bytes;
}

/// FNV-1a over the ids as little-endian 32-bit words, in hexadecimal.
inline std::string fnv1a(std::span<const std::int32_t> ids) {
  std::uint64_t value = 0xCBF29CE484222325U;
  for (const std::int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      value = (value ^ (static_cast<std::uint32_t>(id) >> shift & 0xFFU)) * 0x100000001B3U;
    }
  }
  std::string hex;
  for (int shift = 60; shift >= 0; shift -= 4) hex += "0123456789abcdef"[value >> shift & 15U];
  return hex;
}

}  // namespace inkling::test
