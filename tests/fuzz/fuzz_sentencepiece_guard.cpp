// libFuzzer: any bytes as a SentencePiece model; what passes the guard must load, encode and decode without
// harm.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = inkling::Tokenizer::from_sentencepiece(bytes, "fuzz");
  if (!tokenizer) return 0;
  const auto ids = tokenizer->encode(inkling::to_valid_utf8(bytes.substr(0, 4096)));
  if (ids && !tokenizer->decode(*ids)) std::abort();
  return 0;
}
