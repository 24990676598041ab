// FolderLock: a folder that one process at a time writes to.
#pragma once

#include <filesystem>

namespace inkling::app {

/// Held from construction to destruction, or to the end of the process however it comes: nothing is left that
/// a later one would find. Advisory: among FolderLocks. Where the file system has no locks there is none.
class FolderLock {
 public:
  /// Makes the folder unless it is there; one that is still empty in the end goes again. Throws Error{usage}
  /// "FLAG: expected …" when another process holds it, Error{output} when it cannot be made.
  FolderLock(const char* flag, const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  std::filesystem::path made_;  // empty: it was there
  int descriptor_ = -1;
};

}  // namespace inkling::app
