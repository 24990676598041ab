// A value of a JSON document and the path that led to it, so that every complaint names file and field.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "engine/base/json.h"

namespace inkling {

/// A value and its path ("model.vocab"). The accessors throw Code::malformed when the value is not what was
/// asked for. Cheap to pass; the tree must outlive it.
class JsonField {
 public:
  JsonField(const JsonValue& value, std::string_view file) : value_(&value), file_(file) {}

  const JsonValue& value() const noexcept { return *value_; }
  const JsonValue::Array& items() const { return want(value_->array(), "a list"); }
  const JsonValue::Object& members() const { return want(value_->object(), "an object"); }
  const std::string& string() const { return want(value_->scalar<std::string>(), "a string"); }
  bool boolean() const { return want(value_->scalar<bool>(), "true or false"); }
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
  const T& want(const T* held, std::string_view expected) const {
    if (held == nullptr) fail(expected, value_->describe());
    return *held;
  }

  const JsonValue* value_;
  std::string file_;
  std::string path_;
};

}  // namespace inkling
