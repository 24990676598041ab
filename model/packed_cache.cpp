#include "model/packed_cache.h"

#include <cstring>
#include <utility>
#include <vector>

#include "weights/atomic_file.h"

namespace inkling {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kHeader = 4096;
// Its number rises whenever the header, PackedMatrix's layout or the order of tensors changes.
constexpr std::string_view kMagic = "INKLPCK3";

std::string header_text(std::string_view key, std::size_t slab, std::size_t small) {
  return std::string(kMagic) + '\n' + std::to_string(slab) + ' ' + std::to_string(small) + '\n' +
         std::string(key);
}

}  // namespace

PackedCacheKey PackedCacheKey::of(const WeightFiles& files, const ModelConfig& config, WeightFormat format,
                                  Isa isa) {
  const std::string kind = std::string(weight_format_name(format)) + ' ' + std::string(isa_name(isa));
  PackedCacheKey key;
  std::string paths;
  key.text = kind + '\n';
  for (const SafetensorsFile& file : files.files()) {
    paths += file.identity().path.string() + '\n';
    key.text += file.identity().text + '\n';
  }
  key.text += to_config_json(config);
  // Not the files' times: what has changed replaces what it was.
  key.name = weights::name_of(paths + kind) + ".packed";
  return key;
}

std::optional<PackedCacheFile> open_packed_cache(const fs::path& folder, const PackedCacheKey& key,
                                                 std::size_t slab_bytes) {
  auto map = weights::FileMap::open(folder / key.name);
  if (!map || map->bytes().size() < kHeader + slab_bytes) return std::nullopt;
  const std::span<const std::byte> bytes = map->bytes();
  const std::size_t small_bytes = bytes.size() - kHeader - slab_bytes;
  const std::string wanted = header_text(key.text, slab_bytes, small_bytes);
  if (wanted.size() >= kHeader || std::memcmp(bytes.data(), wanted.c_str(), wanted.size() + 1) != 0) {
    return std::nullopt;
  }
  map->ask_for_huge_pages();
  PackedCacheFile file;
  file.slab = bytes.subspan(kHeader, slab_bytes);
  file.small = bytes.subspan(kHeader + slab_bytes);
  file.map = std::move(*map);
  return file;
}

Result<void> write_packed_cache(const fs::path& folder, const PackedCacheKey& key,
                                std::span<const std::byte> slab, std::span<const std::byte> small) {
  std::string header = header_text(key.text, slab.size(), small.size());
  if (header.size() >= kHeader) {
    return Error(Code::output,
                 key.name + ": a key of " + std::to_string(header.size()) + " bytes is too long");
  }
  header.resize(kHeader, '\0');
  if (auto made = make_folder(folder); !made) return made;
  remove_leftovers(folder / key.name);
  auto file = AtomicFile::create(folder / key.name);
  if (!file) return file.error();
  if (auto wrote = file->write(header); !wrote) return wrote;
  if (auto wrote = file->write(slab); !wrote) return wrote;
  if (auto wrote = file->write(small); !wrote) return wrote;
  return file->commit();
}

}  // namespace inkling
