// Reading files: an owned descriptor, small texts whole, large files as memory maps.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "engine/base/result.h"

namespace inkling::weights {

/// A regular file open for reading. Move-only.
class InputFile {
 public:
  /// Error{file} for whatever is no regular file: a pipe or a device could block or never end.
  static Result<InputFile> open(const std::filesystem::path& path);

  InputFile(InputFile&& other) noexcept
      : path_(std::move(other.path_)),
        descriptor_(std::exchange(other.descriptor_, -1)),
        size_(other.size_) {}
  InputFile& operator=(InputFile&&) = delete;
  ~InputFile();

  const std::filesystem::path& path() const noexcept { return path_; }
  std::size_t size() const noexcept { return size_; }
  int descriptor() const noexcept { return descriptor_; }
  /// Fills a prefix of `into` with the next bytes; 0 at the end. Error{file}.
  Result<std::size_t> read(std::span<std::byte> into);

 private:
  InputFile(std::filesystem::path path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::size_t size_ = 0;
};

/// The whole content. Error{file}; Error{malformed} above `max_bytes`.
Result<std::string> read_text(const std::filesystem::path& path, std::size_t max_bytes);

/// What tells a file from another, and from itself after a change, without reading it.
struct FileIdentity {
  std::filesystem::path path;  ///< canonical; as given where an open file has no name any more
  std::size_t size = 0;
  std::string text;  ///< path, size, device, inode, times of modification and of change, in one line

  /// Of what the path leads to now. Error{file}.
  static Result<FileIdentity> of(const std::filesystem::path& path);
  /// Of the file that is open, whatever has taken its path since; as it is now, so ask before reading.
  static Result<FileIdentity> of(const InputFile& file);
};

/// 16 hexadecimal digits for a file's name: FNV-1a (Fowler, Noll & Vo). Texts that were made to do so may
/// share them.
std::string name_of(std::string_view text);

/// Error{file} "PATH: cannot ACTION: reason", the reason from `error_number`.
Error file_error(const std::filesystem::path& path, std::string_view action, int error_number);

/// A whole file mapped read-only and private. Move-only; empty for an empty file.
class FileMap {
 public:
  FileMap() = default;
  /// Error{file}.
  static Result<FileMap> open(const std::filesystem::path& path);
  /// The map outlives `file`. Error{file}.
  static Result<FileMap> of(const InputFile& file);

  FileMap(FileMap&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  FileMap& operator=(FileMap&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~FileMap();

  std::span<const std::byte> bytes() const noexcept { return bytes_; }
  /// For a file of which all will be read, and often: what is not in memory yet is to come in pieces of 2
  /// MiB, where the file system can (ext4 since Linux 6.16, XFS). Such a piece takes one page fault, and
  /// stays for the next process.
  void ask_for_huge_pages() const noexcept;

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace inkling::weights
