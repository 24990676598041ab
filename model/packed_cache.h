// The packed-weights cache: a model's weights on disk in the order in which the kernels of this machine read
// them, so that the next load maps them and packs nothing.
//
// File: a page of header (magic, sizes, key; as text), the slab of packed matrices, then positions,
// norms and biases in f32, each at a multiple of 64 bytes. The key is text: format of the weights,
// instruction set, config, and path, size, inode and times of change of each source
// file. A file is taken when its key is the wanted one, letter by letter, and its size the stated one; it is
// written beside and renamed, so it is whole or absent. Like the weight files themselves it is not hashed on
// every load.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "engine/base/result.h"
#include "engine/cpu/isa.h"
#include "engine/packed_matrix.h"
#include "weights/config.h"
#include "weights/file.h"
#include "weights/sharded.h"

namespace inkling {

/// Where in a folder a model's packed weights lie, and what they must be of.
struct PackedCacheKey {
  std::string name;  ///< of the file: one per model, format and instruction set
  std::string text;

  /// Of the files that are open, not of what has taken their paths since: a trainer may replace them while
  /// they are read.
  static PackedCacheKey of(const WeightFiles& files, const ModelConfig& config, WeightFormat format, Isa isa);
};

/// A cache file mapped into memory.
struct PackedCacheFile {
  weights::FileMap map;
  std::span<const std::byte> slab, small;
};

/// The file of that key whose slab has `slab_bytes`; none when there is none that fits, whatever the reason.
std::optional<PackedCacheFile> open_packed_cache(const std::filesystem::path& folder,
                                                 const PackedCacheKey& key, std::size_t slab_bytes);

/// Writes it, making the folder if need be. Processes that write the same at once leave one whole file.
/// Error{output}.
Result<void> write_packed_cache(const std::filesystem::path& folder, const PackedCacheKey& key,
                                std::span<const std::byte> slab, std::span<const std::byte> small);

}  // namespace inkling
