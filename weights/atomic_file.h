// AtomicFile: a file that appears whole or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "engine/base/result.h"

namespace inkling {

/// Writes a temporary file beside the target; commit() flushes it to the disk and renames it over the target,
/// so that a crash, a kill or a full disk at any point leaves either the old content or the new. Destroyed
/// without commit(), it removes the temporary. A target that exists and is no regular file (a device, a pipe)
/// is written in place. Move-only, one thread at a time. Every failure is Error{output} "PATH: cannot …:
/// reason".
class AtomicFile {
 public:
  static Result<AtomicFile> create(const std::filesystem::path& target);

  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  Result<void> write(std::span<const std::byte> bytes);
  Result<void> write(std::string_view text) { return write(std::as_bytes(std::span(text))); }
  Result<void> commit();

 private:
  AtomicFile(std::filesystem::path target, std::filesystem::path temporary, int descriptor);
  Error failure(std::string_view action) const;

  std::filesystem::path target_;
  std::filesystem::path temporary_;  // empty when the target is written in place
  int descriptor_ = -1;
};

/// Removes what processes that were killed have left of writing `target`: temporaries of AtomicFile that
/// nobody has touched for an hour. What cannot be removed stays.
void remove_leftovers(const std::filesystem::path& target);

/// Removes all temporaries of AtomicFile from a folder that only the caller writes to, whatever their target.
/// What cannot be removed stays.
void remove_all_leftovers(const std::filesystem::path& folder);

/// Replaces the content of `path` with `text`, atomically.
Result<void> write_file(const std::filesystem::path& path, std::string_view text);

/// Makes the folder, and those above it, unless it is there. Error{output} "PATH: cannot make the folder:
/// reason".
Result<void> make_folder(const std::filesystem::path& folder);

}  // namespace inkling
