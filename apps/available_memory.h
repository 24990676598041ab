// How much memory this process can take before the system ends it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace inkling::app {

/// What Linux calls available (no swap), or less where a control group of this process, version 1 or 2, has a
/// limit: pages of files do not count against it, since they can go. `root`: where /proc and /sys lie. None
/// where neither is told.
std::optional<std::uint64_t> available_memory(const std::filesystem::path& root = "/");

}  // namespace inkling::app
