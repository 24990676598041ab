#include "tokenizer/utf8.h"

#include <cstring>

namespace inkling {

Utf8Automaton::Step Utf8Automaton::step(unsigned char byte) noexcept {
  if (missing_ > 0) {
    if (byte < low_ || byte > high_) {
      reset();
      return Step::reject;
    }
    low_ = 0x80;
    high_ = 0xBF;
    if (--missing_ > 0) {
      ++pending_;
      return Step::more;
    }
    pending_ = 0;
    return Step::complete;
  }
  if (byte < 0x80) return Step::complete;
  if (byte < 0xC2 || byte > 0xF4) return Step::reject;  // continuation, overlong C0 C1, beyond U+10FFFF
  pending_ = 1;
  missing_ = byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
  // Table 3-7: the second byte rules out overlong forms, surrogates and values beyond U+10FFFF.
  low_ = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
  high_ = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
  return Step::more;
}

std::size_t valid_utf8_prefix(std::string_view text) noexcept {
  Utf8Automaton automaton;
  std::size_t at = 0;
  std::size_t good = 0;
  while (at < text.size()) {
    if (good == at) {  // between characters: skip ASCII eight bytes at a time
      std::uint64_t word = 0;
      while (text.size() - at >= sizeof word) {
        std::memcpy(&word, text.data() + at, sizeof word);
        if ((word & 0x8080808080808080U) != 0) break;
        at += sizeof word;
      }
      good = at;
      if (at == text.size()) break;
    }
    const auto step = automaton.step(static_cast<unsigned char>(text[at]));
    if (step == Utf8Automaton::Step::reject) return good;
    ++at;
    if (step == Utf8Automaton::Step::complete) good = at;
  }
  return good;
}

std::string to_valid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  Utf8Replacer replacer;
  replacer.push(bytes, out);
  replacer.finish(out);
  return out;
}

void append_utf8(char32_t scalar, std::string& out) {
  const auto tail = [&](unsigned shift) { out += static_cast<char>(0x80 | ((scalar >> shift) & 0x3F)); };
  if (scalar < 0x80) {
    out += static_cast<char>(scalar);
  } else if (scalar < 0x800) {
    out += static_cast<char>(0xC0 | (scalar >> 6));
    tail(0);
  } else if (scalar < 0x10000) {
    out += static_cast<char>(0xE0 | (scalar >> 12));
    tail(6), tail(0);
  } else {
    out += static_cast<char>(0xF0 | (scalar >> 18));
    tail(12), tail(6), tail(0);
  }
}

char32_t next_scalar(std::string_view valid, std::size_t& at) noexcept {
  const auto lead = static_cast<unsigned char>(valid[at++]);
  if (lead < 0x80) return lead;
  const int more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
  char32_t scalar = lead & (0x3FU >> more);
  for (int i = 0; i < more; ++i) scalar = scalar << 6 | (static_cast<unsigned char>(valid[at++]) & 0x3FU);
  return scalar;
}

void Utf8Replacer::push(std::string_view bytes, std::string& out) {
  for (std::size_t at = 0; at < bytes.size();) {
    if (automaton_.pending() == 0) {
      const std::size_t good = valid_utf8_prefix(bytes.substr(at));
      out.append(bytes, at, good);
      at += good;
      if (at == bytes.size()) return;
    }
    const std::size_t held = automaton_.pending();
    switch (automaton_.step(static_cast<unsigned char>(bytes[at]))) {
      case Utf8Automaton::Step::more:
        held_[held] = bytes[at++];
        break;
      case Utf8Automaton::Step::complete:
        out.append(held_.data(), held);
        out += bytes[at++];
        break;
      case Utf8Automaton::Step::reject:
        out += kReplacementCharacter;
        if (held == 0) ++at;  // ill-formed by itself; otherwise it may begin the next character
        break;
    }
  }
}

void Utf8Replacer::finish(std::string& out) {
  if (automaton_.pending() > 0) out += kReplacementCharacter;
  automaton_.reset();
}

}  // namespace inkling
