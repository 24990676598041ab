// A strict JSON document for files that we do not trust. The syntax is nlohmann's; on top, a key twice in one
// object is an error, integers keep their sign, depth is bounded, and every complaint names file and field.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/error.h"

namespace inkling {

struct JsonValue {
  enum class Type : std::uint8_t { null, boolean, integer, real, string, array, object };
  Type type = Type::null;
  bool boolean = false;
  std::int64_t integer = 0;
  std::string string{};
  std::vector<JsonValue> items{};                            // of an array
  std::vector<std::pair<std::string, JsonValue>> members{};  // of an object, in file order
};

/// Throws Code::malformed, naming the file, the byte and the reason.
JsonValue parse_json(std::string_view text, std::string_view file);

/// A value and the path that led to it ("model.vocab"). The accessors throw Code::malformed when the value is
/// not what was asked for. Cheap to pass; the tree must outlive it.
class JsonField {
 public:
  JsonField(const JsonValue& value, std::string_view file) : value_(&value), file_(file) {}

  bool is_null() const noexcept { return value_->type == JsonValue::Type::null; }
  const JsonValue& value() const noexcept { return *value_; }
  const std::vector<JsonValue>& items() const { return want(JsonValue::Type::array).items; }
  const std::vector<std::pair<std::string, JsonValue>>& members() const {
    return want(JsonValue::Type::object).members;
  }
  const std::string& string() const { return want(JsonValue::Type::string).string; }
  bool boolean() const { return want(JsonValue::Type::boolean).boolean; }
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
  const JsonValue& want(JsonValue::Type type) const;

  const JsonValue* value_;
  std::string file_;
  std::string path_;
};

}  // namespace inkling
