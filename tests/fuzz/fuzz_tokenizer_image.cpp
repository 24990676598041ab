// libFuzzer: any words in the place of any others of a tokenizer's image; what loads must encode and decode.
// Input: six bytes for each change, of which two say where and four what.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/byte_alphabet.h"
#include "tokenizer/image.h"
#include "tokenizer/tokenizer.h"

namespace {

std::vector<std::byte> valid_image() {
  std::string vocab = "{";
  for (int byte = 0; byte < 256; ++byte) {
    const std::string piece = inkling::to_byte_alphabet(std::string(1, static_cast<char>(byte)));
    vocab += (piece == "\"" || piece == "\\" ? "\"\\" : "\"") + piece + "\":" + std::to_string(byte) + ',';
  }
  vocab += R"("he":256,"ll":257,"hell":258,"hello":259,"<|endoftext|>":260})";
  return inkling::Tokenizer::from_vocab_and_merges(vocab, "v", "h e\nl l\nhe ll\nhell o\n", "m")
      .value()
      .image();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::vector<std::byte> valid = valid_image();
  constexpr std::size_t kHeader = 16, kWord = 4;
  std::vector<std::byte> image = valid;
  for (; size >= 6; data += 6, size -= 6) {
    const std::size_t word =
        (std::size_t{data[0]} | std::size_t{data[1]} << 8) % ((image.size() - kHeader) / kWord);
    std::memcpy(image.data() + kHeader + word * kWord, data + 2, kWord);
  }
  const std::uint64_t sum = inkling::image_checksum(std::span(image).subspan(kHeader));
  std::memcpy(image.data() + 8, &sum, sizeof sum);
  const auto tokenizer = inkling::Tokenizer::from_image(image, nullptr);
  if (!tokenizer) return 0;
  const std::string text = "hello hell\xFF <|endoftext|> w\u00F6rld " + std::string(300, 'l');
  std::size_t at = 0;
  for (const inkling::TokenSpan& span : tokenizer->encode_with_offsets(text).value()) {
    if (span.begin != at || span.end < at) std::abort();
    at = span.end;
  }
  if (at != text.size() || tokenizer->decode(tokenizer->encode(text).value()).value().size() < at)
    std::abort();
  return 0;
}
