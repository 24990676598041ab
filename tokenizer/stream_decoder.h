// StreamDecoder: ids one at a time → text that may be printed now.
//
// A token may end inside a character, so the decoder holds back the bytes of an unfinished character until
// the rest arrives or can no longer arrive. What it returns is always valid UTF-8: ill-formed bytes become
// U+FFFD, one for each maximal subpart (utf8.h). The pieces together are to_valid_utf8(Tokenizer::decode(all
// ids)).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "engine/base/result.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace inkling {

/// One thread at a time. At most three bytes are ever held back.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}

  /// The text that `id` completes, possibly empty; valid until the next call. Code::input for an id out of
  /// range, which leaves the decoder as it was.
  Result<std::string_view> push(std::int32_t id);

  /// The end: U+FFFD if an unfinished character was held back, else nothing. The decoder is then as new.
  std::string_view finish();

 private:
  Tokenizer tokenizer_;
  Utf8Replacer replacer_;
  bool at_start_ = true;  // SentencePiece drops the space that it put before the first word
  std::string text_;
};

}  // namespace inkling
