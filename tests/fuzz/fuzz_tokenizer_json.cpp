// libFuzzer: any bytes as tokenizer.json, vocab.json, merges or meta.json; what loads must encode and decode.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "tokenizer/tokenizer.h"

namespace {

void use(const inkling::Result<inkling::Tokenizer>& tokenizer, std::string_view text) {
  if (!tokenizer) return;
  const auto ids = tokenizer->encode(text);
  if (!ids) return;  // characters: not all text is in the vocabulary
  const auto back = tokenizer->decode(*ids);
  const bool lossless = tokenizer->kind() != inkling::TokenizerKind::byte_level_bpe ||
                        tokenizer->description().find("prefix space") != std::string::npos ||
                        (back && *back == text);
  if (!back || !lossless) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  use(inkling::Tokenizer::from_tokenizer_json(bytes, "fuzz"), bytes);
  use(inkling::Tokenizer::from_characters(bytes, "fuzz"), bytes);
  const std::size_t cut = bytes.find('\0');  // vocabulary, NUL, merges
  if (cut != std::string_view::npos) {
    use(inkling::Tokenizer::from_vocab_and_merges(bytes.substr(0, cut), "fuzz", bytes.substr(cut + 1),
                                                  "fuzz"),
        bytes);
  }
  return 0;
}
