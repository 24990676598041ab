#include "apps/text_stream.h"

namespace inkling::app {

TextStream::TextStream(const Tokenizer* tokenizer, std::span<const std::int32_t> prompt,
                       std::span<const std::string> stop, TextForm form)
    : tokenizer_(tokenizer), matcher_(StopMatcher::create(stop).value()) {
  if (tokenizer_ == nullptr || form == TextForm::raw) return;
  decoder_.emplace(*tokenizer_);
  for (const std::int32_t id : prompt) {
    if (id < tokenizer_->vocab_size()) decoder_->push(id).value();
  }
}

std::string_view TextStream::push(std::int32_t id) {
  if (tokenizer_ == nullptr) return {};
  // A model may have more ids than its tokenizer (padding rows that its config counts): they mean no text.
  if (id >= tokenizer_->vocab_size()) return matcher_.push(kReplacementCharacter);
  return matcher_.push(decoder_ ? decoder_->push(id).value() : tokenizer_->token_bytes(id));
}

std::string TextStream::finish() {
  std::string rest(decoder_ ? matcher_.push(decoder_->finish()) : std::string_view());
  rest += matcher_.finish();
  return rest;
}

}  // namespace inkling::app
