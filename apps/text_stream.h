// TextStream: tokens of one continuation → text that may be shown now.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tokenizer/stop_matcher.h"
#include "tokenizer/stream_decoder.h"

namespace inkling::app {

enum class TextForm : std::uint8_t {
  utf8,  ///< always valid: split characters are held back, ill-formed bytes become U+FFFD
  raw,   ///< the tokens' bytes as they are
};

class TextStream {
 public:
  /// `prompt` is decoded first and not shown, so that what follows continues it (SentencePiece drops the
  /// space before the first word of a text only). Throws Error{usage} for bad stop strings. A null tokenizer
  /// shows nothing.
  TextStream(const Tokenizer* tokenizer, std::span<const std::int32_t> prompt,
             std::span<const std::string> stop, TextForm form);

  /// Good until the next call.
  std::string_view push(std::int32_t id);
  std::string finish();
  bool stopped() const noexcept { return matcher_.matched().has_value(); }

 private:
  const Tokenizer* tokenizer_;
  std::optional<StreamDecoder> decoder_;  // absent in raw form
  StopMatcher matcher_;
};

}  // namespace inkling::app
