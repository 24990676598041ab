#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer/pretokenizer.h"

#include <pcre2.h>

#include <array>
#include <cstdint>
#include <new>

#include "engine/base/error.h"

namespace inkling {
namespace {

// White_Space of Unicode, spelled out: PCRE2's own \s also has U+180E, which lost the property in
// Unicode 6.3.
#define INKLING_SPACE \
  "\\x09-\\x0D\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
// Possessive where the next character could not follow anyway: nothing to remember, so nothing to give back.
constexpr const char* kPattern =
    "'s|'t|'re|'ve|'m|'ll|'d"
    "| ?\\p{L}++| ?\\p{N}++| ?[^" INKLING_SPACE
    "\\p{L}\\p{N}]++"
    "|[" INKLING_SPACE "]+(?![^" INKLING_SPACE "])|[" INKLING_SPACE "]++";
#undef INKLING_SPACE

enum Class : std::uint8_t { kOther, kLetter, kDigit, kSpace, kBeyondAscii };

constexpr std::array<std::uint8_t, 256> kClasses = [] {
  std::array<std::uint8_t, 256> classes{};
  for (std::size_t c = 0; c < 256; ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool digit = c >= '0' && c <= '9';
    const bool space = c == ' ' || (c >= 0x09 && c <= 0x0D);
    classes[c] = c >= 0x80 ? kBeyondAscii : letter ? kLetter : digit ? kDigit : space ? kSpace : kOther;
  }
  return classes;
}();

const pcre2_code* code_of(const std::shared_ptr<const void>& code) {
  return static_cast<const pcre2_code*>(code.get());
}

}  // namespace

Pretokenizer::Pretokenizer() {
  int error = 0;
  PCRE2_SIZE where = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(kPattern), PCRE2_ZERO_TERMINATED,
                                   PCRE2_UTF | PCRE2_NO_UTF_CHECK | PCRE2_ANCHORED, &error, &where, nullptr);
  if (code == nullptr) throw Error(Code::internal, "pretokenizer: PCRE2 error " + std::to_string(error));
  code_ = std::shared_ptr<const void>(code, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
  // Without JIT (a PCRE2 built so, or no executable memory) the interpreter gives the same words, slower.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
}

Pretokenizer::Words::Words(const Pretokenizer& pretokenizer, std::string_view text, Path path)
    : pretokenizer_(pretokenizer),
      text_(text),
      path_(path),
      scratch_(nullptr, [](void* p) { pcre2_match_data_free(static_cast<pcre2_match_data*>(p)); }) {}

std::string_view Pretokenizer::Words::next() {
  if (at_ == text_.size()) return {};
  const std::size_t begin = at_;
  std::size_t length = path_ == Path::ascii_by_hand ? ascii_word(text_, begin) : 0;
  if (length == 0) length = match(begin);
  at_ += length;
  return text_.substr(begin, length);
}

std::size_t Pretokenizer::ascii_word(std::string_view text, std::size_t at) noexcept {
  const auto class_at = [&](std::size_t i) { return kClasses[static_cast<unsigned char>(text[i])]; };
  const std::size_t size = text.size();
  const auto run = [&](std::size_t from, std::uint8_t what) {
    while (from < size && class_at(from) == what) ++from;
    return from;
  };
  if (text[at] == '\'' && at + 1 < size) {
    const char next = text[at + 1];
    if (next == 's' || next == 't' || next == 'm' || next == 'd') return 2;
    const std::string_view two = text.substr(at + 1, 2);
    if (two == "re" || two == "ve" || two == "ll") return 3;
  }
  const std::size_t first = text[at] == ' ' && at + 1 < size && class_at(at + 1) != kSpace ? at + 1 : at;
  const std::uint8_t what = class_at(first);
  const std::size_t end = run(first, what);
  if (end < size && class_at(end) == kBeyondAscii) return 0;  // it may go on, or be white space
  if (what == kBeyondAscii) return 0;
  // White space before a word leaves its last character to the word, unless it has only that one.
  if (what == kSpace && end < size && end - at > 1) return end - at - 1;
  return end - at;
}

std::size_t Pretokenizer::Words::match(std::size_t at) {
  const pcre2_code* code = code_of(pretokenizer_.code_);
  if (!scratch_) {
    pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
    if (data == nullptr) throw std::bad_alloc();
    scratch_.reset(data);
  }
  auto* data = static_cast<pcre2_match_data*>(scratch_.get());
  const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), at,
                                PCRE2_NO_UTF_CHECK, data, nullptr);
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data);
  if (found < 0 || bounds[1] <= at) {
    throw Error(Code::internal, "pretokenizer: PCRE2 match error " + std::to_string(found));
  }
  return bounds[1] - at;
}

}  // namespace inkling
