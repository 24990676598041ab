#include "tokenizer/json_tree.h"

#include <array>
#include <limits>
#include <nlohmann/json.hpp>

#include "engine/base/shown.h"
#include "tokenizer/string_index.h"

namespace inkling {
namespace {

constexpr std::size_t kMaxDepth = 64;
constexpr std::array<std::string_view, 7> kTypeNames{"null",     "a boolean", "an integer", "a number",
                                                     "a string", "an array",  "an object"};

std::string_view name_of(JsonValue::Type type) {
  return kTypeNames[static_cast<std::size_t>(type)];
}

/// nlohmann's events → JsonValue. Returning false ends the parse.
class TreeBuilder {
 public:
  using Json = nlohmann::json;

  bool null() { return add({}); }
  bool boolean(bool value) { return add({value}); }
  bool number_integer(std::int64_t value) { return add({value}); }
  bool number_unsigned(std::uint64_t value) {
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
      return number_float(0, {});
    return number_integer(static_cast<std::int64_t>(value));
  }
  bool number_float(double, const std::string&) { return add({JsonValue::Real{}}); }
  bool string(std::string& value) { return add({std::move(value)}); }
  bool binary(Json::binary_t&) { return false; }  // not in text
  bool start_object(std::size_t) { return open({JsonValue::Members{}}); }
  bool start_array(std::size_t) { return open({JsonValue::Items{}}); }
  bool end_array() { return close(); }
  bool key(std::string& name) {
    std::get<JsonValue::Members>(open_.back()->content).push_back({std::move(name), {}});
    return true;
  }
  bool end_object() {
    const auto& members = std::get<JsonValue::Members>(open_.back()->content);
    StringIndex keys(members.size());
    for (const auto& member : members) {
      if (!keys.insert(member.key, 0))
        return refuse(shown(member.key) + ": expected the key once, got it twice");
    }
    return close();
  }
  bool parse_error(std::size_t position, const std::string&, const Json::exception&) {
    return refuse("expected valid JSON, got an error at byte " + std::to_string(position));
  }

  JsonValue root;
  std::string complaint;

 private:
  bool refuse(std::string why) {
    complaint = std::move(why);
    return false;
  }
  JsonValue& place(JsonValue value) {
    if (open_.empty()) return root = std::move(value);
    JsonValue& parent = *open_.back();
    if (auto* members = std::get_if<JsonValue::Members>(&parent.content)) {
      return members->back().value = std::move(value);
    }
    return std::get<JsonValue::Items>(parent.content).emplace_back(std::move(value));
  }
  bool add(JsonValue value) { return place(std::move(value)), true; }
  bool open(JsonValue value) {
    if (open_.size() == kMaxDepth)
      return refuse("nesting: expected at most " + std::to_string(kMaxDepth) + " levels, got more");
    open_.push_back(&place(std::move(value)));
    return true;
  }
  bool close() { return open_.pop_back(), true; }

  std::vector<JsonValue*> open_;  // stays valid: a parent does not grow while a child is open
};

}  // namespace

JsonValue parse_json(std::string_view text, std::string_view file) {
  // The lexer takes a NUL for the end of its input and would not look at what follows.
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos) {
    throw Error(Code::malformed,
                std::string(file) + ": expected valid JSON, got a NUL at byte " + std::to_string(nul));
  }
  TreeBuilder builder;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
    throw Error(Code::malformed, std::string(file) + ": " + builder.complaint);
  }
  return std::move(builder.root);
}

void JsonField::fail(std::string_view expected, std::string_view got) const {
  std::string message = file_ + ": ";
  if (!path_.empty()) message += path_ + ": ";
  throw Error(Code::malformed, message + "expected " + std::string(expected) + ", got " + std::string(got));
}

void JsonField::fail_type(JsonValue::Type expected) const {
  fail(name_of(expected), name_of(value_->type()));
}

std::int64_t JsonField::integer(std::int64_t low, std::int64_t high) const {
  const auto got = want<std::int64_t>(JsonValue::Type::integer);
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
    if (name == key && value.type() != JsonValue::Type::null) return child(value, key);
  }
  return std::nullopt;
}

JsonField JsonField::member(std::string_view key) const {
  auto found = maybe(key);
  if (!found) child({}, key).fail("a value", "nothing");
  return *std::move(found);
}

}  // namespace inkling
