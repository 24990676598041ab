#include "weights/sharded.h"

#include <algorithm>
#include <cerrno>

#include "engine/base/json.h"
#include "weights/file.h"
#include "weights/guard.h"

namespace inkling {
namespace {

namespace fs = std::filesystem;
using weights::malformed;

constexpr std::string_view kExtension = ".safetensors";
constexpr std::string_view kIndexEnding = ".index.json";
constexpr std::size_t kMaxShards = 1000;
constexpr std::size_t kMaxFileName = 255;

// A name that cannot leave its folder, whatever the file system makes of it.
bool plain_file_name(std::string_view name) {
  const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20; };
  return name.size() <= kMaxFileName && name.size() > kExtension.size() && name.ends_with(kExtension) &&
         !name.starts_with('.') && name.find_first_of("/\\:") == name.npos &&
         std::ranges::none_of(name, control);
}

Result<void> read_weight_map(const JsonValue& root, std::string_view name, ShardIndex& index) {
  const JsonValue* map = root.find("weight_map");
  if (map == nullptr || map->object() == nullptr || map->object()->empty()) {
    return malformed(name, "weight_map", "an object of tensor names",
                     map == nullptr ? "nothing" : map->describe());
  }
  for (const auto& [tensor, value] : *map->object()) {
    const auto* shard = value.scalar<std::string>();
    if (shard == nullptr || !plain_file_name(*shard)) {
      return malformed(name, "weight_map." + tensor, "the name of a .safetensors file in the same folder",
                       value.describe());
    }
    index.weight_map.emplace_back(tensor, *shard);
    index.shards.push_back(*shard);
  }
  std::ranges::sort(index.weight_map);
  std::ranges::sort(index.shards);
  index.shards.erase(std::unique(index.shards.begin(), index.shards.end()), index.shards.end());
  if (index.shards.size() > kMaxShards) {
    return malformed(name, "weight_map", "at most " + std::to_string(kMaxShards) + " files",
                     std::to_string(index.shards.size()));
  }
  return {};
}

Result<WeightLocation> locate_index(const fs::path& path) {
  const auto text = weights::read_text(path, kMaxIndexBytes);
  if (!text) return text.error();
  auto index = parse_index_json(*text, path.string());
  if (!index) return index.error();
  WeightLocation location{path.parent_path(), {}, path, *std::move(index)};
  for (const std::string& shard : location.index->shards) location.files.push_back(location.folder / shard);
  return location;
}

Result<WeightLocation> locate_only_file(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code failed;
  for (fs::directory_iterator it(folder, failed), end; !failed && it != end; it.increment(failed)) {
    if (it->path().extension() == kExtension) found.push_back(it->path());
  }
  if (failed) return weights::file_error(folder, "read the folder", failed.value());
  if (found.size() != 1) {
    return Error(Code::file, folder.string() +
                                 ": expected model.safetensors, model.safetensors.index.json or exactly one "
                                 ".safetensors file, got " +
                                 std::to_string(found.size()) + " of them");
  }
  return WeightLocation{folder, std::move(found), {}, {}};
}

// `index.weight_map` is sorted by tensor name.
const std::string* shard_of(const ShardIndex& index, std::string_view tensor) {
  const auto at = std::ranges::lower_bound(index.weight_map, tensor, {},
                                           [](const auto& entry) { return std::string_view(entry.first); });
  return at != index.weight_map.end() && at->first == tensor ? &at->second : nullptr;
}

// `files` are the shards in the index's order.
Result<void> check_against_index(std::span<const SafetensorsFile> files, const ShardIndex& index,
                                 std::string_view name) {
  std::size_t matched = 0;
  for (std::size_t i = 0; i < files.size(); ++i) {
    for (const NamedTensor& tensor : files[i].tensors()) {
      const std::string* shard = shard_of(index, tensor.name);
      if (shard == nullptr || *shard != index.shards[i]) {
        return malformed(name, "weight_map." + tensor.name,
                         shard == nullptr ? "it listed" : "it in " + *shard, "it in " + index.shards[i]);
      }
      ++matched;
    }
  }
  if (matched == index.weight_map.size()) return {};
  for (const auto& [tensor, shard] : index.weight_map) {
    const auto at = std::ranges::lower_bound(index.shards, shard) - index.shards.begin();
    if (files[static_cast<std::size_t>(at)].find(tensor) == nullptr) {
      return malformed(name, "weight_map." + tensor, "it in " + shard, "no such tensor there");
    }
  }
  return {};
}

}  // namespace

Result<ShardIndex> parse_index_json(std::string_view text, std::string_view name) {
  return weights::guarded(name, [&]() -> Result<ShardIndex> {
    const auto root = parse_json(text, name, kMaxIndexBytes);
    if (!root) return root.error();
    ShardIndex index;
    if (const auto read = read_weight_map(*root, name, index); !read) return read.error();
    return index;
  });
}

Result<WeightLocation> locate_weights(const fs::path& folder_or_file) {
  return weights::guarded(folder_or_file, [&]() -> Result<WeightLocation> {
    std::error_code failed;
    const auto kind = fs::status(folder_or_file, failed).type();
    if (kind == fs::file_type::not_found) return weights::file_error(folder_or_file, "open", ENOENT);
    if (failed) return weights::file_error(folder_or_file, "open", failed.value());
    if (kind != fs::file_type::directory) {
      if (folder_or_file.string().ends_with(kIndexEnding)) return locate_index(folder_or_file);
      return WeightLocation{folder_or_file.parent_path(), {folder_or_file}, {}, {}};
    }
    const fs::path whole = folder_or_file / "model.safetensors";
    if (fs::exists(whole, failed)) return WeightLocation{folder_or_file, {whole}, {}, {}};
    const fs::path index = folder_or_file / "model.safetensors.index.json";
    if (fs::exists(index, failed)) return locate_index(index);
    return locate_only_file(folder_or_file);
  });
}

Result<WeightFiles> WeightFiles::open(const fs::path& folder_or_file) {
  return weights::guarded(folder_or_file, [&]() -> Result<WeightFiles> {
    auto location = locate_weights(folder_or_file);
    if (!location) return location.error();
    WeightFiles weights;
    for (const fs::path& path : location->files) {
      auto file = SafetensorsFile::open(path);
      if (!file) return file.error();
      weights.files_.push_back(*std::move(file));
    }
    weights.folder_ = std::move(location->folder);
    weights.name_ = (location->index_path ? *location->index_path : location->files.front()).string();
    if (location->index) {
      if (auto fits = check_against_index(weights.files_, *location->index, weights.name_); !fits)
        return fits.error();
    }
    return weights;
  });
}

std::vector<const NamedTensor*> WeightFiles::tensors() const {
  std::vector<const NamedTensor*> all;
  for (const SafetensorsFile& file : files_) {
    for (const NamedTensor& tensor : file.tensors()) all.push_back(&tensor);
  }
  return all;
}

const NamedTensor* WeightFiles::find(std::string_view name) const noexcept {
  for (const SafetensorsFile& file : files_) {
    if (const NamedTensor* tensor = file.find(name)) return tensor;
  }
  return nullptr;
}

void WeightFiles::release(const TensorView& tensor) const noexcept {
  for (const SafetensorsFile& file : files_) file.release(tensor);
}

}  // namespace inkling
