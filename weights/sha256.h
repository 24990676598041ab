// SHA-256 of weight files, and the check against a hash or a sha256sum manifest. The arithmetic is
// libcrypto's.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"

namespace inkling {

/// A running hash. Move-only, one thread at a time.
class Sha256 {
 public:
  Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  ~Sha256();

  void update(std::span<const std::byte> bytes);
  /// 64 lower-case hexadecimal digits. Ends the hash: call once.
  std::string finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Hash of a file's content, read in pieces of 1 MiB. Error{file}.
Result<std::string> sha256_file(const std::filesystem::path& path);

struct FileHash {
  std::filesystem::path path;
  std::string sha256;
};

/// Hashes of all weight files of a model, in the order of locate_weights(). Error{file}, Error{malformed}.
Result<std::vector<FileHash>> hash_weight_files(const std::filesystem::path& folder_or_file);

/// Checks a model against `expected`: "sha256:HEX" for a model of one weight file, or else the path of a
/// manifest as `sha256sum` writes it. Of a folder, every file in the manifest must exist and match (names are
/// relative to the folder) and every weight file must be listed; of a file, its own line counts, and of an
/// index.json its shards' lines too. Error{malformed} "PATH: sha256: expected …, got …"; Error{file};
/// Error{usage} for a malformed "sha256:…".
Result<void> verify(const std::filesystem::path& folder_or_file, std::string_view expected);

}  // namespace inkling
