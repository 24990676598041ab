#include "apps/available_memory.h"

#include <algorithm>
#include <fstream>
#include <string>
#include <string_view>

namespace inkling::app {
namespace fs = std::filesystem;
namespace {

// The number behind a key, "MemAvailable: 123 kB" or "inactive_file 456", or of a file of one number.
std::optional<std::uint64_t> number_in(const fs::path& path, std::string_view key = {}) {
  std::ifstream file(path);
  std::string word;
  while (!key.empty() && file >> word && word != key) {
  }
  std::uint64_t number = 0;
  if (file >> number) return number;
  return std::nullopt;  // no such file, or "max"
}

struct Group {
  const char *mount, *limit, *usage, *inactive, *active;
};
constexpr Group kVersion1 = {"sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                             "total_inactive_file", "total_active_file"};
constexpr Group kVersion2 = {"sys/fs/cgroup", "memory.max", "memory.current", "inactive_file", "active_file"};

std::optional<std::uint64_t> left_in(const fs::path& folder, const Group& group) {
  const auto limit = number_in(folder / group.limit), usage = number_in(folder / group.usage);
  if (!limit || !usage) return std::nullopt;
  const std::uint64_t files = number_in(folder / "memory.stat", group.inactive).value_or(0) +
                              number_in(folder / "memory.stat", group.active).value_or(0);
  const std::uint64_t used = *usage - std::min(files, *usage);
  return *limit - std::min(used, *limit);
}

}  // namespace

std::optional<std::uint64_t> available_memory(const fs::path& root) {
  std::optional<std::uint64_t> least;
  const auto take = [&](std::optional<std::uint64_t> bytes) {
    if (bytes) least = std::min(*bytes, least.value_or(*bytes));
  };
  if (const auto kib = number_in(root / "proc/meminfo", "MemAvailable:")) take(*kib * 1024);
  // Lines "4:memory:/a/b" and "0::/a/b". Each group above one's own has its limit too.
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = std::min(line.find(':'), line.size());
    const std::size_t second = std::min(line.find(':', first + 1), line.size());
    const bool one = line.substr(first, second - first) == ":memory";
    if (second + 2 > line.size() || (!one && second != first + 1)) continue;
    const Group& group = one ? kVersion1 : kVersion2;
    const fs::path mount = root / group.mount;
    fs::path at = fs::path(line.substr(second + 2));
    for (; !at.empty(); at = at.parent_path()) take(left_in(mount / at, group));
    take(left_in(mount, group));
  }
  return least;
}

}  // namespace inkling::app
