// What the files of this folder share and nobody else needs: the form of an error, and exceptions → Result.
#pragma once

#include <filesystem>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>

#include "engine/base/result.h"
#include "engine/base/shown.h"

namespace inkling::weights {

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
