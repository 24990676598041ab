#include "engine/base/decimal.h"

#include <array>
#include <charconv>
#include <limits>

namespace inkling {
namespace {

std::string print(double value, std::chars_format format, int precision) {
  // A sign, the digits of the largest number, a point and 17 more.
  std::array<char, std::numeric_limits<double>::max_exponent10 + 24> text;
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value, format, precision);
  return {text.data(), end};
}

}  // namespace

std::string significant(double value, int digits) {
  return print(value, std::chars_format::general, digits);
}

std::string fixed(double value, int decimals) {
  return print(value, std::chars_format::fixed, decimals);
}

}  // namespace inkling
