// libFuzzer: any bytes as model.safetensors.index.json; a shard's name that passes must stay in its folder.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "weights/sharded.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto index = inkling::parse_index_json(text, "fuzz");
  if (!index) return index.error().code() == inkling::Code::malformed ? 0 : (std::abort(), 0);
  if (index->shards.empty() || index->shards.size() > index->weight_map.size()) std::abort();
  const std::filesystem::path folder = "folder";
  for (const auto& shard : index->shards) {
    const auto path = folder / shard;
    if (path.lexically_normal().parent_path() != folder || path.filename() != shard) std::abort();
  }
  return 0;
}
