// A strict JSON document for files that we do not trust. The syntax is nlohmann's; on top, a key twice in one
// object is an error, so is a NUL, integers keep their sign, depth is bounded, and every complaint names file
// and field.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/base/error.h"

namespace inkling {

struct JsonMember;

struct JsonValue {
  enum class Type : std::uint8_t { null, boolean, integer, real, string, array, object };
  struct Real {};  // a number that is no 64-bit integer: nothing here wants its value
  using Items = std::vector<JsonValue>;
  using Members = std::vector<JsonMember>;  // in file order
  // In the order of Type.
  std::variant<std::monostate, bool, std::int64_t, Real, std::string, Items, Members> content;

  Type type() const noexcept { return static_cast<Type>(content.index()); }
  /// Whether it is an integer in [low, high], which is written to `value`.
  bool is_integer(std::int64_t low, std::int64_t high, std::int64_t& value) const noexcept {
    const auto* held = std::get_if<std::int64_t>(&content);
    return held != nullptr && *held >= low && *held <= high && (value = *held, true);
  }
};

struct JsonMember {
  std::string key;
  JsonValue value;
};

/// Throws Code::malformed, naming the file, the byte and the reason.
JsonValue parse_json(std::string_view text, std::string_view file);

/// A value and the path that led to it ("model.vocab"). The accessors throw Code::malformed when the value is
/// not what was asked for. Cheap to pass; the tree must outlive it.
class JsonField {
 public:
  JsonField(const JsonValue& value, std::string_view file) : value_(&value), file_(file) {}

  bool is_null() const noexcept { return value_->type() == JsonValue::Type::null; }
  const JsonValue& value() const noexcept { return *value_; }
  const JsonValue::Items& items() const { return want<JsonValue::Items>(JsonValue::Type::array); }
  const JsonValue::Members& members() const { return want<JsonValue::Members>(JsonValue::Type::object); }
  const std::string& string() const { return want<std::string>(JsonValue::Type::string); }
  bool boolean() const { return want<bool>(JsonValue::Type::boolean); }
  /// An integer in [low, high].
  std::int64_t integer(std::int64_t low, std::int64_t high) const;

  /// The member of an object, which must be there.
  JsonField member(std::string_view key) const;
  /// The member of an object; nothing when it is absent or null.
  std::optional<JsonField> maybe(std::string_view key) const;
  /// A child for messages: array items and values of long objects.
  JsonField child(const JsonValue& value, std::string_view name) const;

  /// "file: path: expected …, got …".
  [[noreturn]] void fail(std::string_view expected, std::string_view got) const;

 private:
  template <class T>
  const T& want(JsonValue::Type type) const {
    const T* held = std::get_if<T>(&value_->content);
    if (held == nullptr) fail_type(type);
    return *held;
  }
  [[noreturn]] void fail_type(JsonValue::Type expected) const;

  const JsonValue* value_;
  std::string file_;
  std::string path_;
};

}  // namespace inkling
