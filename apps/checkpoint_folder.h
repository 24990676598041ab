// The checkpoints of a run: OUT/checkpoints/iter-000000250.safetensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace inkling::app {

class CheckpointFolder {
 public:
  /// Nothing is made before prepare().
  explicit CheckpointFolder(std::filesystem::path folder) : folder_(std::move(folder)) {}

  /// Makes the folder, and removes what killed processes have left of their last checkpoint. For the one
  /// process that writes there. Throws Error{output}.
  void prepare() const;
  /// Where that of an iteration lies.
  std::filesystem::path file(std::int64_t iteration) const;
  /// The oldest first.
  std::vector<std::filesystem::path> files() const;
  /// Throws Error{file} when there is none.
  std::filesystem::path newest() const;
  /// Removes the oldest beyond `count`. What cannot be removed stays.
  void keep(std::int64_t count) const;

 private:
  std::filesystem::path folder_;
};

}  // namespace inkling::app
