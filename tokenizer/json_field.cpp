#include "tokenizer/json_field.h"

#include "engine/base/shown.h"

namespace inkling {

void JsonField::fail(std::string_view expected, std::string_view got) const {
  std::string message = file_ + ": ";
  if (!path_.empty()) message += path_ + ": ";
  throw Error(Code::malformed, message + "expected " + std::string(expected) + ", got " + std::string(got));
}

std::int64_t JsonField::integer(std::int64_t low, std::int64_t high) const {
  const auto got = want(value_->scalar<std::int64_t>(), "an integer");
  if (got < low || got > high) {
    fail("an integer in " + std::to_string(low) + ".." + std::to_string(high), std::to_string(got));
  }
  return got;
}

JsonField JsonField::child(const JsonValue& value, std::string_view name) const {
  JsonField field(value, file_);
  field.path_ = path_.empty() ? shown(name) : path_ + '.' + shown(name);
  return field;
}

std::optional<JsonField> JsonField::maybe(std::string_view key) const {
  for (const auto& [name, value] : members()) {
    if (name == key && !value.is_null()) return child(value, key);
  }
  return std::nullopt;
}

JsonField JsonField::member(std::string_view key) const {
  auto found = maybe(key);
  if (!found) child({}, key).fail("a value", "nothing");
  return *std::move(found);
}

}  // namespace inkling
