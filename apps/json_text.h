// JSON as text, for the fixed formats: keys in order, floats with nine significant digits.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace inkling::app {

/// A JSON string; bytes that are no UTF-8 (a path may have them) become U+FFFD.
std::string json_string(std::string_view text);

/// Nine significant digits, which is every bit of an f32; null for NaN and the infinities, which JSON has
/// not.
std::string json_number(double value);

/// [1,2,3]
std::string id_list(std::span<const std::int32_t> ids);

/// Objects as a JSON array, or one a line.
class JsonRows {
 public:
  enum class Shape : std::uint8_t { array, lines };
  explicit JsonRows(Shape shape) : shape_(shape) {}
  /// Writes one object to standard output.
  void write(std::string_view object);
  /// Ends the array. An unfinished array is the mark of a run that failed.
  void finish();

 private:
  Shape shape_;
  bool any_ = false;
};

}  // namespace inkling::app
