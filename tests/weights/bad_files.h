// Files that break one rule each, made from a good one. Every one must be refused with its field named.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace inkling::test {

struct BadFile {
  std::string what;     ///< for the test's output
  std::string content;  ///< of the file
  std::string field;    ///< the error must name it; empty where only the file can be blamed
};
using BadFiles = std::vector<BadFile>;

/// JSON values that are no non-negative integer below 2^63.
inline const std::vector<std::string> kNoIntegers = {
    "-1",
    "-0",
    "0.5",
    "1e2",
    "2.0",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "null",
    "true",
    "\"1\"",
    "\"\"",
    "[]",
    "[1]",
    "{}",
};

/// Almost numbers, but no JSON.
inline const std::vector<std::string> kNoJson = {
    "NaN", "Infinity", "-Infinity", "1e400", "0x10", "01", "+1", "1_000", ".5", "1.", "-", "",
};

/// JSON values that are no string.
inline const std::vector<std::string> kNoStrings = {"0",  "-1",        "1.5", "null",  "true", "[]",
                                                    "{}", "[\"F32\"]", "",    "'F32'", "\"F32"};

/// Byte sequences that are not UTF-8: stray and missing continuations, overlong forms, surrogates, past
/// U+10FFFF.
inline const std::vector<std::string> kNoUtf8 = {
    "\x80",
    "\xbf",
    "\xc0\x80",
    "\xc1\xbf",
    "\xc3",
    "\xc3(",
    "\xe0\x80\x80",
    "\xe2\x82",
    "\xed\xa0\x80",
    "\xed\xbf\xbf",
    "\xf0\x80\x80\x80",
    "\xf0\x9f\x92",
    "\xf4\x90\x80\x80",
    "\xf5\x80\x80\x80",
    "\xfe",
    "\xff",
};

/// `text` with the one occurrence of `from` replaced.
inline std::string with(std::string text, std::string_view from, std::string_view to) {
  return text.replace(text.find(from), from.size(), to);
}

inline std::string repeated(std::string_view piece, std::size_t times) {
  std::string text;
  for (std::size_t i = 0; i < times; ++i) text += piece;
  return text;
}

/// `depth` lists or objects within each other, whole and well-formed.
inline std::string nested_lists(std::size_t depth) {
  return repeated("[", depth) + repeated("]", depth);
}
inline std::string nested_objects(std::size_t depth) {
  return repeated("{\"x\":", depth) + "1" + repeated("}", depth);
}

}  // namespace inkling::test
