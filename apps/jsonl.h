// JSON lines in, JSON lines out. Errors name file, line and field.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "apps/session.h"

namespace inkling::app {

using Json = nlohmann::ordered_json;

/// One object of a file: its fields with types checked.
class Record {
 public:
  Record(Json value, std::string where) : value_(std::move(value)), where_(std::move(where)) {}

  bool has(const char* field) const { return value_.contains(field); }
  const Json& at(const char* field) const { return value_.at(field); }
  [[noreturn]] void fail(const std::string& what) const { throw Error(Code::input, where_ + ": " + what); }
  const std::string& where() const { return where_; }

  std::string text(const char* field) const {
    if (!at(field).is_string())
      fail(std::string(field) + ": expected a string, got " + at(field).type_name());
    return at(field).get<std::string>();
  }
  std::uint64_t count(const char* field) const {
    if (!at(field).is_number_unsigned())
      fail(std::string(field) + ": expected a whole number ≥ 0, got " + at(field).dump());
    return at(field).get<std::uint64_t>();
  }
  std::vector<std::int32_t> ids(const char* field) const {
    if (!at(field).is_array())
      fail(std::string(field) + ": expected an array of ids, got " + at(field).type_name());
    std::vector<std::int32_t> out;
    for (const Json& id : at(field)) {
      if (!id.is_number_unsigned() || id.get<std::uint64_t>() > 0x7fffffff) {
        fail(std::string(field) + ": expected ids, got " + id.dump());
      }
      out.push_back(id.get<std::int32_t>());
    }
    return out;
  }

 private:
  Json value_;
  std::string where_;
};

/// All objects of a JSONL file ("-": standard input); blank lines are skipped.
inline std::vector<Record> read_records(const std::string& path) {
  std::vector<Record> records;
  std::istringstream in(read_text(path));
  std::size_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = path + ": line " + std::to_string(number);
    Json value = Json::parse(line, nullptr, false);
    if (value.is_discarded())
      throw Error(Code::input, where + ": expected JSON, got '" + line.substr(0, 60) + "'");
    if (!value.is_object())
      throw Error(Code::input, where + ": expected an object, got " + value.type_name());
    records.emplace_back(std::move(value), where);
  }
  return records;
}

/// Nine significant digits, which is every bit of an f32; null for NaN.
inline std::string number(float value) {
  if (std::isnan(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
  return std::isinf(value) ? (value > 0 ? "1e999" : "-1e999") : text;
}

inline std::string id_list(const std::vector<std::int32_t>& ids) {
  std::string out = "[";
  for (std::size_t i = 0; i < ids.size(); ++i) out += (i == 0 ? "" : ",") + std::to_string(ids[i]);
  return out + "]";
}

inline std::string quoted(const std::string& text) {
  return Json(text).dump();
}

}  // namespace inkling::app
