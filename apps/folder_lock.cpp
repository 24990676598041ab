#include "apps/folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>

#include "engine/base/error.h"
#include "weights/atomic_file.h"

namespace inkling::app {

FolderLock::FolderLock(const char* flag, const std::filesystem::path& folder) {
  std::error_code ignored;
  const bool there = std::filesystem::exists(folder, ignored);
  make_folder(folder).value();
  if (!there) made_ = folder;
  // The folder itself: a file for it would stay, or be removed under the hands of who waits for it.
  descriptor_ = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor_ < 0 || ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
  ::close(descriptor_);
  throw Error(Code::usage,
              std::string(flag) + ": expected a folder that no other run writes to, got " + folder.string());
}

FolderLock::~FolderLock() {
  std::error_code ignored;
  if (!made_.empty()) std::filesystem::remove(made_, ignored);  // fails unless it is empty
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace inkling::app
