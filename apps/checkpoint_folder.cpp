#include "apps/checkpoint_folder.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>

#include "engine/base/error.h"
#include "weights/atomic_file.h"

namespace inkling::app {
namespace fs = std::filesystem;

void CheckpointFolder::prepare() const {
  make_folder(folder_).value();
  remove_all_leftovers(folder_);
}

fs::path CheckpointFolder::file(std::int64_t iteration) const {
  std::array<char, 48> name{};
  std::snprintf(name.data(), name.size(), "iter-%09lld.safetensors", static_cast<long long>(iteration));
  return folder_ / name.data();
}

std::vector<fs::path> CheckpointFolder::files() const {
  std::vector<fs::path> found;
  std::error_code error;
  for (auto at = fs::directory_iterator(folder_, error); !error && at != fs::end(at); at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (name.starts_with("iter-") && name.ends_with(".safetensors")) found.push_back(at->path());
  }
  std::ranges::sort(found);
  return found;
}

fs::path CheckpointFolder::newest() const {
  const std::vector<fs::path> found = files();
  if (found.empty()) {
    throw Error(Code::file, folder_.string() + ": expected checkpoints to resume from, got none");
  }
  return found.back();
}

void CheckpointFolder::keep(std::int64_t count) const {
  const std::vector<fs::path> found = files();
  std::error_code ignored;
  for (std::size_t i = 0; i + static_cast<std::size_t>(count) < found.size(); ++i) {
    fs::remove(found[i], ignored);
  }
}

}  // namespace inkling::app
