// What the files of this folder share and nobody else needs: error text from hostile input, and exceptions →
// Result.
#pragma once

#include <filesystem>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>

#include "engine/base/result.h"

namespace inkling::weights {

/// `text` fit for an error message: control bytes become '?', at most 80 bytes are kept. Names in a weight
/// file are a stranger's: printed as they are, they could drive a terminal or fill a log.
inline std::string shown(std::string_view text) {
  constexpr std::size_t kKept = 80;
  std::string out(text.substr(0, kKept));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  if (text.size() <= kKept) return out;
  while (!out.empty() && (static_cast<unsigned char>(out.back()) & 0xc0u) == 0x80u) out.pop_back();
  if (!out.empty() && static_cast<unsigned char>(out.back()) >= 0xc0u) out.pop_back();
  return out + "...";
}

/// "NAME: FIELD: expected EXPECTED, got GOT".
inline Error malformed(std::string_view name, std::string_view field, std::string_view expected,
                       std::string_view got) {
  std::string message(name);
  message.append(": ")
      .append(shown(field))
      .append(": expected ")
      .append(expected)
      .append(", got ")
      .append(got);
  return Error(Code::malformed, message);
}

/// Runs `body`, which returns a Result, and turns a thrown Error or a failed allocation into its error.
/// `name`, a string or a path, is made into text only then: making text allocates.
template <class Name, class Body>
std::invoke_result_t<Body> guarded(const Name& name, Body&& body) {
  try {
    return body();
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(Code::out_of_memory, std::filesystem::path(name).string() + ": cannot allocate memory");
  }
}

}  // namespace inkling::weights
