#include "weights/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <system_error>
#include <utility>

#include "weights/guard.h"

namespace inkling {
namespace {

// Unlike mkstemp's 0600, 0666 lets the umask decide who may read the file, as for any other file.
constexpr mode_t kMode = 0666;
constexpr int kAttempts = 100;

// Distinct among the threads of this process, and by the process id among processes.
std::filesystem::path temporary_name(const std::filesystem::path& target) {
  static std::atomic<unsigned> counter{0};
  std::string name = '.' + target.filename().string();
  name += '.' + std::to_string(::getpid()) + '.' + std::to_string(counter.fetch_add(1)) + ".tmp";
  return target.parent_path() / name;
}

constexpr std::string_view kAnyTarget;

// Whether temporary_name() could have given it, for a target of that name or for any: ".TARGET.PID.N.tmp".
bool is_temporary(std::string_view name, std::string_view target) {
  if (!name.starts_with('.') || !name.ends_with(".tmp")) return false;
  name.remove_suffix(4);
  for (int number = 0; number < 2; ++number) {
    const std::size_t dot = name.rfind('.');
    if (dot == std::string_view::npos || dot == 0 || dot + 1 == name.size()) return false;
    if (name.find_first_not_of("0123456789", dot + 1) != std::string_view::npos) return false;
    name = name.substr(0, dot);
  }
  return name.size() > 1 && (target == kAnyTarget || name.substr(1) == target);
}

// Removes those temporaries of `target` (or of any) in a folder of which goes(path) is true.
template <class Goes>
void remove_temporaries(const std::filesystem::path& folder, std::string_view target, Goes&& goes) {
  namespace fs = std::filesystem;
  std::error_code error;
  for (auto at = fs::directory_iterator(folder, error); !error && at != fs::end(at); at.increment(error)) {
    std::error_code ignored;
    if (is_temporary(at->path().filename().string(), target) && goes(at->path()))
      fs::remove(at->path(), ignored);
  }
}

// Makes the rename itself durable. A file system that cannot flush a folder has done what it can.
void flush_folder(const std::filesystem::path& target) {
  const std::filesystem::path folder = target.has_parent_path() ? target.parent_path() : ".";
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path target, std::filesystem::path temporary, int descriptor)
    : target_(std::move(target)), temporary_(std::move(temporary)), descriptor_(descriptor) {}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : target_(std::move(other.target_)),
      temporary_(std::exchange(other.temporary_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

Error AtomicFile::failure(std::string_view action) const {
  const int reason = errno;
  std::string message = target_.string();
  message.append(": cannot ").append(action).append(": ");
  return Error(Code::output, message + std::generic_category().message(reason));
}

Result<AtomicFile> AtomicFile::create(const std::filesystem::path& target) {
  return weights::guarded(target, [&]() -> Result<AtomicFile> {
    // Renaming over a link would replace the link; the file it leads to is what the caller means.
    std::error_code no_such_file;
    const auto real = std::filesystem::canonical(target, no_such_file);
    AtomicFile file(no_such_file ? target : real, {}, -1);
    struct stat status {};
    if (::stat(file.target_.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
      file.descriptor_ = ::open(file.target_.c_str(), O_WRONLY | O_CLOEXEC);
      if (file.descriptor_ < 0) return file.failure("open for writing");
      return file;
    }
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      std::filesystem::path temporary = temporary_name(file.target_);
      file.descriptor_ = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, kMode);
      if (file.descriptor_ >= 0) {
        file.temporary_ = std::move(temporary);
        return file;
      }
      if (errno != EEXIST) break;
    }
    return file.failure("create a temporary file beside it");
  });
}

Result<void> AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t wrote = ::write(descriptor_, bytes.data(), bytes.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return failure("write");
    bytes = bytes.subspan(static_cast<std::size_t>(wrote));
  }
  return {};
}

Result<void> AtomicFile::commit() {
  const bool in_place = temporary_.empty();
  if (!in_place && ::fsync(descriptor_) != 0) return failure("flush");
  if (::close(std::exchange(descriptor_, -1)) != 0) return failure("close");
  if (in_place) return {};
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) return failure("rename into place");
  temporary_.clear();
  flush_folder(target_);
  return {};
}

void remove_leftovers(const std::filesystem::path& target) {
  namespace fs = std::filesystem;
  const fs::path folder = target.has_parent_path() ? target.parent_path() : fs::path(".");
  remove_temporaries(folder, target.filename().string(), [](const fs::path& path) {
    std::error_code unknown;
    const auto age = fs::file_time_type::clock::now() - fs::last_write_time(path, unknown);
    return !unknown && age > std::chrono::hours(1);
  });
}

void remove_all_leftovers(const std::filesystem::path& folder) {
  remove_temporaries(folder, kAnyTarget, [](const std::filesystem::path&) { return true; });
}

Result<void> write_file(const std::filesystem::path& path, std::string_view text) {
  auto file = AtomicFile::create(path);
  if (!file) return file.error();
  if (auto wrote = file->write(text); !wrote) return wrote;
  return file->commit();
}

Result<void> make_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return Error(Code::output, folder.string() + ": cannot make the folder: " + error.message());
  return {};
}

}  // namespace inkling
