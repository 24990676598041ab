// Strict JSON for files that strangers wrote. The grammar is nlohmann's; this adds what its DOM lets through:
// duplicate keys, integers that do not fit (its DOM reads −1 as 2⁶⁴−1 on demand), text after a nul byte,
// depth.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/base/result.h"

namespace inkling {

inline constexpr int kMaxJsonDepth = 32;

/// null, bool, an exact integer, any other number, a string.
using JsonScalar = std::variant<std::monostate, bool, std::int64_t, double, std::string>;

/// `scalar` for an error message: 768, "gpt2", null.
std::string describe(const JsonScalar& scalar);

/// Receives one document as events. Returning false stops the reading; fail() says why.
class JsonHandler {
 public:
  virtual ~JsonHandler() = default;
  virtual bool scalar(JsonScalar&& value) = 0;
  virtual bool key(std::string&& name) = 0;
  virtual bool begin_object() = 0;
  virtual bool end_object() = 0;
  virtual bool begin_array() = 0;
  virtual bool end_array() = 0;

  const std::string& failure() const noexcept { return failure_; }

 protected:
  /// Records "FIELD: expected …, got …" and returns false.
  bool fail(std::string_view field, std::string_view expected, std::string_view got);

 private:
  std::string failure_;
};

/// Feeds `text` to `handler`. Error{malformed} "NAME: …" for a syntax error or what the handler said.
Result<void> read_json(std::string_view text, std::string_view name, JsonHandler& handler);

struct JsonMember;

/// A parsed value.
struct JsonValue {
  using Array = std::vector<JsonValue>;
  using Object = std::vector<JsonMember>;  ///< in the order of the text, keys distinct
  std::variant<std::monostate, bool, std::int64_t, double, std::string, Array, Object> value;

  /// Null when this is no object or has no such key. Linear: for objects with a handful of known keys.
  const JsonValue* find(std::string_view key) const noexcept;
  /// Null when this holds no T (one of JsonScalar's types).
  template <class T>
  const T* scalar() const noexcept {
    return std::get_if<T>(&value);
  }
  bool is_null() const noexcept { return scalar<std::monostate>() != nullptr; }
  const Object* object() const noexcept { return std::get_if<Object>(&value); }
  const Array* array() const noexcept { return std::get_if<Array>(&value); }
  /// For an error message: as describe() of a scalar, "a list" or "an object".
  std::string describe() const;
};

struct JsonMember {
  std::string key;
  JsonValue value;
};

/// Parses a whole text of at most `max_bytes` whose top is an object. O(n log n) at worst, whatever the keys;
/// memory is at most some 60 bytes per byte.
Result<JsonValue> parse_json(std::string_view text, std::string_view name, std::size_t max_bytes);

}  // namespace inkling
