// Weights spread over several safetensors files, and the index that says which tensor lies where.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/result.h"
#include "weights/safetensors.h"

namespace inkling {

/// The longest index.json accepted (a thousand-layer model needs a tenth of it).
inline constexpr std::size_t kMaxIndexBytes = std::size_t{4} << 20;

/// Content of model.safetensors.index.json. Its metadata says nothing that the shards do not say themselves,
/// and is not looked at.
struct ShardIndex {
  std::vector<std::pair<std::string, std::string>> weight_map;  ///< tensor → shard, sorted by tensor
  std::vector<std::string> shards;                              ///< distinct file names, sorted
};

/// Shards must be plain names ("a.safetensors", no folder, no "..") ending in ".safetensors"; tensor names
/// must be distinct. Error{malformed} "NAME: FIELD: expected …, got …".
Result<ShardIndex> parse_index_json(std::string_view text, std::string_view name);

/// The weight files of a model, without opening them. `folder_or_file` is a folder holding model.safetensors,
/// or else model.safetensors.index.json and its shards, or else exactly one *.safetensors file; or such a
/// file.
struct WeightLocation {
  std::filesystem::path folder;
  std::vector<std::filesystem::path> files;
  std::optional<std::filesystem::path> index_path;  ///< set when the files are shards
  std::optional<ShardIndex> index;
};
/// Error{file} when there are none, Error{malformed} for a bad index.
Result<WeightLocation> locate_weights(const std::filesystem::path& folder_or_file);

/// One or several safetensors files seen as one. Move-only; const access is thread-safe.
class WeightFiles {
 public:
  /// Every tensor must lie in the shard that the index names, and no shard may hold a tensor that the index
  /// does not know. Error{file}, Error{malformed}.
  static Result<WeightFiles> open(const std::filesystem::path& folder_or_file);

  std::span<const SafetensorsFile> files() const noexcept { return files_; }
  const std::filesystem::path& folder() const noexcept { return folder_; }
  /// What errors about tensors name: the file's path, or the index's.
  const std::string& name() const noexcept { return name_; }
  /// Every tensor of every file, in file order.
  std::vector<const NamedTensor*> tensors() const;
  /// Null when there is none.
  const NamedTensor* find(std::string_view name) const noexcept;
  /// As SafetensorsFile::release(); does nothing for a tensor that lies in none of the files.
  void release(const TensorView& tensor) const noexcept;

 private:
  WeightFiles() = default;
  std::vector<SafetensorsFile> files_;
  std::filesystem::path folder_;
  std::string name_;
};

}  // namespace inkling
