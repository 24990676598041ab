// The one error type of Inkling: what went wrong (code), in words (message), and where.
//
// Core folders (engine, attention, model) throw it; edge folders (weights, tokenizer, apps) carry it in a
// Result<T> (result.h). Libraries never exit, abort or print. A message reads "op: argument: expected …, got
// …" or "file: field: expected …, got …".
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace inkling {

/// Kinds of failure. The values are the exit codes of the `inkling` program and the status codes of the C
/// ABI.
enum class Code : std::uint8_t {
  usage = 2,          ///< a flag, option or argument is wrong
  file = 3,           ///< a file is missing or cannot be read
  malformed = 4,      ///< a file's content breaks its format, or a hash differs
  out_of_memory = 5,  ///< an allocation failed or a stated limit would be passed
  device = 6,         ///< a device, driver or instruction set is missing or failed
  input = 7,          ///< text or ids are invalid or too long
  output = 8,         ///< writing failed
  gate = 9,           ///< a check that the caller asked for did not pass
  internal = 10,      ///< a broken promise of this library
};

/// A place in the source. (clang 14 has no std::source_location.)
struct Where {
  const char* file = "";
  int line = 0;
  static constexpr Where current(const char* at_file = __builtin_FILE(), int at_line = __builtin_LINE()) {
    return {at_file, at_line};
  }
};

class Error : public std::runtime_error {
 public:
  explicit Error(Code code, const std::string& message, Where where = Where::current())
      : std::runtime_error(message), code_(code), where_(where) {}

  Code code() const noexcept { return code_; }
  /// The message without the source location.
  std::string message() const { return what(); }
  /// "file:line", for logs; never part of what() since it means nothing to a user.
  std::string where() const { return std::string(where_.file) + ':' + std::to_string(where_.line); }

 private:
  Code code_;
  Where where_;
};

/// Throws Error{code, message} unless `ok`. For checks at the entry of an op; on in every build.
/// `message` is a callable returning std::string, so that the good path builds no string.
template <class Message>
void require(bool ok, Code code, Message&& message, Where where = Where::current()) {
  if (!ok) [[unlikely]]
    throw Error(code, std::forward<Message>(message)(), where);
}

}  // namespace inkling
