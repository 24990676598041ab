// Where tests find reference data that is not part of the project. A case without its data is reported as
// skipped, never as passed; "SKIPPED: " is what tests/CMakeLists.txt looks for.
#pragma once

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace inkling::test {

/// The folder of reference data: environment INKLING_TEST_DATA, else the one configured with CMake.
inline std::filesystem::path data_dir() {
  const char* dir = std::getenv("INKLING_TEST_DATA");
  return dir != nullptr ? dir : INKLING_TEST_DATA_DIR;
}

/// True when `relative` exists under data_dir(); otherwise says "SKIPPED: …" and returns false.
inline bool have_data(const std::string& relative) {
  const bool found = std::filesystem::exists(data_dir() / relative);
  if (!found) MESSAGE("SKIPPED: reference data not found: " << relative);
  return found;
}

/// The project's files: environment INKLING_SOURCE_DIR, else where it was configured.
inline std::filesystem::path source_dir() {
  const char* dir = std::getenv("INKLING_SOURCE_DIR");
  return dir != nullptr ? dir : INKLING_SOURCE_DIR;
}

}  // namespace inkling::test
