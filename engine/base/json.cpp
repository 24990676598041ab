#include "engine/base/json.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "engine/base/decimal.h"
#include "engine/base/shown.h"

namespace inkling {
namespace {

// Adapts nlohmann's SAX interface, whose method names are fixed, to JsonHandler.
class Adapter {
 public:
  Adapter(std::string_view name, JsonHandler& handler) : name_(name), handler_(handler) {}

  bool null() { return handler_.scalar(std::monostate{}); }
  bool boolean(bool value) { return handler_.scalar(value); }
  // Only "-0" arrives here as zero. It is a negative number to every other reader of these formats.
  bool number_integer(std::int64_t value) {
    return value == 0 ? handler_.scalar(-0.0) : handler_.scalar(value);
  }
  bool number_unsigned(std::uint64_t value) {
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      return handler_.scalar(static_cast<double>(value));
    }
    return handler_.scalar(static_cast<std::int64_t>(value));
  }
  bool number_float(double value, const std::string&) { return handler_.scalar(value); }
  bool string(std::string& value) { return handler_.scalar(std::move(value)); }
  bool binary(std::vector<std::uint8_t>&) { return false; }
  bool key(std::string& value) { return handler_.key(std::move(value)); }
  bool start_object(std::size_t) { return deeper() && handler_.begin_object(); }
  bool end_object() { return --depth_, handler_.end_object(); }
  bool start_array(std::size_t) { return deeper() && handler_.begin_array(); }
  bool end_array() { return --depth_, handler_.end_array(); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) {
    problem_ = "expected valid JSON, got an error at byte " + std::to_string(position);
    return false;
  }

  Error error() const {
    return Error(Code::malformed,
                 std::string(name_) + ": " + (problem_.empty() ? handler_.failure() : problem_));
  }

 private:
  bool deeper() {
    if (++depth_ <= kMaxJsonDepth) return true;
    problem_ = "nesting: expected at most " + std::to_string(kMaxJsonDepth) + " levels, got more";
    return false;
  }

  std::string_view name_;
  JsonHandler& handler_;
  std::string problem_;
  int depth_ = 0;
};

// Only keys that share a slot with another are compared: one in eight of a vocabulary's, and for keys made to
// collide it is a sort.
const std::string* repeated_key(const JsonValue::Object& members) {
  const std::size_t slots = std::bit_ceil(8 * members.size() + 1);
  const auto slot = [&](const JsonMember& member) {
    return std::hash<std::string>{}(member.key) & (slots - 1);
  };
  std::vector<bool> taken(slots), shared(slots);
  for (const JsonMember& member : members) {
    const std::size_t at = slot(member);
    (taken[at] ? shared : taken)[at] = true;
  }
  std::vector<const std::string*> keys;
  for (const JsonMember& member : members) {
    if (shared[slot(member)]) keys.push_back(&member.key);
  }
  const auto by_text = [](const std::string* key) -> const std::string& { return *key; };
  std::ranges::sort(keys, {}, by_text);
  const auto twice = std::ranges::adjacent_find(keys, {}, by_text);
  return twice == keys.end() ? nullptr : *twice;
}

// Builds a JsonValue in place. A parent does not grow while a child is open, so that pointers stay valid.
class TreeBuilder final : public JsonHandler {
 public:
  bool scalar(JsonScalar&& value) override {
    JsonValue& placed = place();
    std::visit([&](auto& held) { placed.value = std::move(held); }, value);
    return true;
  }
  bool begin_object() override { return open(JsonValue::Object{}); }
  bool begin_array() override { return open(JsonValue::Array{}); }
  bool end_array() override { return open_.pop_back(), true; }
  bool key(std::string&& name) override {
    return std::get<JsonValue::Object>(open_.back()->value).push_back({std::move(name), {}}), true;
  }
  bool end_object() override {
    const std::string* twice = repeated_key(std::get<JsonValue::Object>(open_.back()->value));
    if (twice != nullptr) return fail(*twice, "the key once", "it twice");
    return open_.pop_back(), true;
  }

  JsonValue take() { return std::move(root_); }

 private:
  template <class Container>
  bool open(Container&& empty) {
    JsonValue& placed = place();
    placed.value = std::forward<Container>(empty);
    return open_.push_back(&placed), true;
  }

  // Where the next value goes.
  JsonValue& place() {
    if (open_.empty()) return root_;
    JsonValue& parent = *open_.back();
    if (auto* members = std::get_if<JsonValue::Object>(&parent.value)) return members->back().value;
    return std::get<JsonValue::Array>(parent.value).emplace_back();
  }

  std::vector<JsonValue*> open_;  // outermost first
  JsonValue root_;
};

struct Printer {
  std::string operator()(std::monostate) const { return "null"; }
  std::string operator()(bool value) const { return value ? "true" : "false"; }
  std::string operator()(std::int64_t value) const { return std::to_string(value); }
  std::string operator()(double value) const { return "the number " + significant(value, 9); }
  std::string operator()(const std::string& value) const { return in_quotes(value); }
  std::string operator()(const JsonValue::Array&) const { return "a list"; }
  std::string operator()(const JsonValue::Object&) const { return "an object"; }
};

}  // namespace

std::string describe(const JsonScalar& scalar) {
  return std::visit(Printer{}, scalar);
}

bool JsonHandler::fail(std::string_view field, std::string_view expected, std::string_view got) {
  failure_ = shown(field);
  failure_.append(": expected ").append(expected).append(", got ").append(got);
  return false;
}

Result<void> read_json(std::string_view text, std::string_view name, JsonHandler& handler) {
  // The lexer takes a nul byte for the end of its input and would not look at what follows.
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos) {
    return Error(Code::malformed,
                 std::string(name) + ": expected valid JSON, got a nul byte at " + std::to_string(nul));
  }
  Adapter adapter(name, handler);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &adapter)) return adapter.error();
  return {};
}

const JsonValue* JsonValue::find(std::string_view key) const noexcept {
  const Object* members = object();
  if (members == nullptr) return nullptr;
  const auto at = std::ranges::find(*members, key, &JsonMember::key);
  return at != members->end() ? &at->value : nullptr;
}

std::string JsonValue::describe() const {
  return std::visit(Printer{}, value);
}

Result<JsonValue> parse_json(std::string_view text, std::string_view name, std::size_t max_bytes) {
  if (text.size() > max_bytes) {
    return Error(Code::malformed, std::string(name) + ": size: expected at most " +
                                      std::to_string(max_bytes) + " bytes, got " +
                                      std::to_string(text.size()));
  }
  TreeBuilder builder;
  if (const auto read = read_json(text, name, builder); !read) return read.error();
  JsonValue root = builder.take();
  if (root.object() == nullptr) {
    return Error(Code::malformed,
                 std::string(name) + ": top level: expected an object, got " + root.describe());
  }
  return root;
}

}  // namespace inkling
