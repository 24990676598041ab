#include "tokenizer/stream_decoder.h"

#include "tokenizer/token_model.h"

namespace inkling {

Result<std::string_view> StreamDecoder::push(std::int32_t id) {
  const TokenModel& model = *tokenizer_.model_;
  if (!model.vocabulary().has(id)) return model.vocabulary().out_of_range(id, "decode");
  text_.clear();
  replacer_.push(model.surface(id, at_start_), text_);
  return std::string_view(text_);
}

std::string_view StreamDecoder::finish() {
  text_.clear();
  replacer_.finish(text_);
  at_start_ = true;
  return text_;
}

}  // namespace inkling
