#include "weights/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

#include "weights/guard.h"

namespace inkling::weights {

Error file_error(const std::filesystem::path& path, std::string_view action, int error_number) {
  std::string message = path.string();
  message.append(": cannot ").append(action).append(": ");
  return Error(Code::file, message + std::generic_category().message(error_number));
}

Result<InputFile> InputFile::open(const std::filesystem::path& path) {
  // Without O_NONBLOCK, opening a pipe that nobody writes would wait for ever.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return file_error(path, "open", errno);
  InputFile file(path, descriptor);
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) return file_error(path, "read its status", errno);
  if (!S_ISREG(status.st_mode)) {
    return Error(Code::file, path.string() + ": cannot read: expected a regular file");
  }
  file.size_ = static_cast<std::size_t>(status.st_size);
  return file;
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Result<std::size_t> InputFile::read(std::span<std::byte> into) {
  for (;;) {
    const ssize_t got = ::read(descriptor_, into.data(), into.size());
    if (got >= 0) return static_cast<std::size_t>(got);
    if (errno != EINTR) return file_error(path_, "read", errno);
  }
}

Result<std::string> read_text(const std::filesystem::path& path, std::size_t max_bytes) {
  auto file = InputFile::open(path);
  if (!file) return file.error();
  if (file->size() > max_bytes) {
    return malformed(path.string(), "size", "at most " + std::to_string(max_bytes) + " bytes",
                     std::to_string(file->size()));
  }
  std::string text(file->size(), '\0');
  std::size_t filled = 0;
  while (filled < text.size()) {
    const auto got = file->read(std::as_writable_bytes(std::span(text).subspan(filled)));
    if (!got) return got.error();
    if (*got == 0) break;  // cut short while we read
    filled += *got;
  }
  text.resize(filled);
  return text;
}

namespace {

FileIdentity identity_of(std::filesystem::path path, const struct stat& status) {
  FileIdentity identity;
  identity.path = std::move(path);
  identity.size = static_cast<std::size_t>(status.st_size);
  identity.text = identity.path.string();
  const auto add = [&](auto number, char before) { identity.text += before + std::to_string(number); };
  add(status.st_size, ' ');
  add(status.st_dev, ' ');
  add(status.st_ino, ' ');
  for (const timespec& time : {status.st_mtim, status.st_ctim}) add(time.tv_sec, ' '), add(time.tv_nsec, '.');
  return identity;
}

}  // namespace

Result<FileIdentity> FileIdentity::of(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::path canonical = std::filesystem::canonical(path, error);
  if (error) return file_error(path, "look at", error.value());
  struct stat status {};
  if (::stat(canonical.c_str(), &status) != 0) return file_error(path, "look at", errno);
  return identity_of(std::move(canonical), status);
}

Result<FileIdentity> FileIdentity::of(const InputFile& file) {
  struct stat status {};
  if (::fstat(file.descriptor(), &status) != 0) return file_error(file.path(), "look at", errno);
  std::error_code nameless;  // an open file may have lost its name: /proc/self/fd/3
  std::filesystem::path canonical = std::filesystem::canonical(file.path(), nameless);
  if (nameless) canonical = file.path();
  return identity_of(std::move(canonical), status);
}

std::string name_of(std::string_view text) {
  std::uint64_t hash = 0xCBF29CE484222325U;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3U;
  std::string digits;
  for (int shift = 60; shift >= 0; shift -= 4) digits += "0123456789abcdef"[hash >> shift & 15U];
  return digits;
}

Result<FileMap> FileMap::open(const std::filesystem::path& path) {
  const auto file = InputFile::open(path);
  if (!file) return file.error();
  return of(*file);
}

Result<FileMap> FileMap::of(const InputFile& file) {
  FileMap map;
  if (file.size() == 0) return map;  // mmap refuses a length of zero
  void* memory = ::mmap(nullptr, file.size(), PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
  if (memory == MAP_FAILED) return file_error(file.path(), "map", errno);
  map.bytes_ = {static_cast<const std::byte*>(memory), file.size()};
  return map;
}

void FileMap::ask_for_huge_pages() const noexcept {
  if (!bytes_.empty()) ::madvise(const_cast<std::byte*>(bytes_.data()), bytes_.size(), MADV_HUGEPAGE);
}

FileMap::~FileMap() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace inkling::weights
