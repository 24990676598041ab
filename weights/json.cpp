#include "weights/json.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "weights/guard.h"

namespace inkling::weights {
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

// Builds a JsonValue. open_ holds the containers being filled, outermost first.
class TreeBuilder final : public JsonHandler {
 public:
  bool scalar(JsonScalar&& value) override { return add(JsonValue{std::move(value)}); }
  bool begin_object() override { return open_.push_back({{}, JsonValue{JsonValue::Object{}}}), true; }
  bool begin_array() override { return open_.push_back({{}, JsonValue{JsonValue::Array{}}}), true; }
  bool end_array() override { return close(); }
  bool key(std::string&& name) override { return open_.back().key = std::move(name), true; }

  bool end_object() override {
    auto& members = std::get<JsonValue::Object>(open_.back().value.value);
    std::ranges::sort(members, {}, &JsonMember::key);
    const auto twice = std::ranges::adjacent_find(members, {}, &JsonMember::key);
    if (twice != members.end()) return fail(twice->key, "the key once", "it twice");
    return close();
  }

  JsonValue take() { return std::move(root_); }

 private:
  bool close() {
    JsonValue done = std::move(open_.back().value);
    open_.pop_back();
    return add(std::move(done));
  }

  bool add(JsonValue&& value) {
    if (open_.empty()) return root_ = std::move(value), true;
    JsonMember& parent = open_.back();
    if (auto* members = std::get_if<JsonValue::Object>(&parent.value.value)) {
      members->push_back({std::move(parent.key), std::move(value)});
    } else {
      std::get<JsonValue::Array>(parent.value.value).push_back(std::move(value));
    }
    return true;
  }

  std::vector<JsonMember> open_;  // each with the key whose value comes next
  JsonValue root_;
};

}  // namespace

std::string describe(const JsonScalar& scalar) {
  struct Printer {
    std::string operator()(std::monostate) const { return "null"; }
    std::string operator()(bool value) const { return value ? "true" : "false"; }
    std::string operator()(std::int64_t value) const { return std::to_string(value); }
    std::string operator()(double value) const {
      char text[32];
      std::snprintf(text, sizeof text, "the number %.9g", value);
      return text;
    }
    std::string operator()(const std::string& value) const { return in_quotes(value); }
  };
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
  const auto at = std::ranges::lower_bound(*members, key, {}, &JsonMember::key);
  return at != members->end() && at->key == key ? &at->value : nullptr;
}

std::string JsonValue::describe() const {
  if (object() != nullptr) return "an object";
  if (array() != nullptr) return "a list";
  return weights::describe(std::get<JsonScalar>(value));
}

Result<JsonValue> parse_json(std::string_view text, std::string_view name, std::size_t max_bytes) {
  if (text.size() > max_bytes) {
    return malformed(name, "size", "at most " + std::to_string(max_bytes) + " bytes",
                     std::to_string(text.size()));
  }
  TreeBuilder builder;
  if (const auto read = read_json(text, name, builder); !read) return read.error();
  JsonValue root = builder.take();
  if (root.object() == nullptr) return malformed(name, "top level", "an object", root.describe());
  return root;
}

}  // namespace inkling::weights
