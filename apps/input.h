// What commands read: whole texts, and JSON lines whose every complaint names file, line and field.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/error.h"

namespace inkling::app {

/// A file's name in errors: "standard input" for "-".
std::string input_name(const std::filesystem::path& path);

/// A whole file, or standard input for "-". Throws Error{file}, or Interrupted.
std::string read_text(const std::filesystem::path& path);

/// Token ids as a JSON array, or as whole numbers with white space between them. Throws Error{input}
/// "ids: expected …, got …".
std::vector<std::int32_t> parse_ids(std::string_view text);

/// Runs `work`; an Error about its input gets `where` in front.
template <class Work>
auto located(const std::string& where, Work&& work) {
  try {
    return work();
  } catch (const Error& error) {
    if (error.code() != Code::input) throw;
    throw Error(error.code(), where + ": " + error.message());
  }
}

/// One line of a JSONL file: an object without duplicate keys.
class Record {
 public:
  /// `known` are the fields allowed; empty: any. Throws Error{input} "FILE: line N: …".
  Record(std::string_view line, std::string where, std::initializer_list<std::string_view> known);

  bool has(const char* field) const { return value_.contains(field); }
  /// Which of two fields there is; both or neither is an error.
  const char* one_of(const char* first, const char* second) const;
  std::string text(const char* field) const;
  /// Token ids below `vocab_size`.
  std::vector<std::int32_t> ids(const char* field, std::int64_t vocab_size) const;
  /// A whole number from 0 to `most`.
  std::uint64_t count(const char* field, std::uint64_t most) const;
  /// The field "id" as JSON text, or `otherwise` when there is none. A string or a whole number of 64 bits:
  /// what comes back as it was given.
  std::string id(std::size_t otherwise) const;
  /// Throws Error{input} with the place in front.
  [[noreturn]] void fail(const std::string& what) const;
  /// Runs `work`; an Error that leaves it gets the place in front, and `field` unless that is "".
  template <class Work>
  auto located(const std::string& field, Work&& work) const {
    try {
      return work();
    } catch (const Error& error) {
      throw Error(error.code(), where_ + ": " + (field.empty() ? "" : field + ": ") + error.message());
    }
  }
  const std::string& where() const noexcept { return where_; }

 private:
  const nlohmann::json& at(const char* field) const { return value_.at(field); }
  [[noreturn]] void wrong(const char* field, const std::string& expected) const;

  nlohmann::json value_;
  std::string where_;
};

/// Shows the records of a JSONL file's `text` one by one. Blank lines are skipped; `name` is the file's for
/// errors. Throws Error{input}, and what `visit` throws.
void for_each_record(std::string_view text, const std::string& name,
                     std::initializer_list<std::string_view> known,
                     const std::function<void(const Record&)>& visit);

/// All records of a file ("-": standard input). Throws Error{file} or Error{input}.
std::vector<Record> read_records(const std::filesystem::path& path,
                                 std::initializer_list<std::string_view> known);

}  // namespace inkling::app
