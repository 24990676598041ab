// safetensors: u64 little-endian header length n, n bytes of JSON, tensor bytes. Reader and writer.
//
// Format: https://github.com/huggingface/safetensors#format. The reader takes hostile bytes: every rule of
// the format is checked before a tensor can be seen, in O(header) time and memory, whatever the header
// claims: n ≤ 100,000,000 and within the file; a JSON object, no duplicate keys; __metadata__ maps strings to
// strings; dtype known; rank ≤ 4; shape × element size = end − begin without overflow; offsets contiguous
// from 0 to the last byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/result.h"
#include "engine/tensor.h"
#include "weights/file.h"

namespace inkling {

inline constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;

/// A tensor and its name. The view is read-only memory when it comes from a reader.
struct NamedTensor {
  std::string name;
  TensorView view;
};

/// String pairs of the header's __metadata__, in the order of the file.
using Metadata = std::vector<std::pair<std::string, std::string>>;
/// The value of a key; null when there is none.
const std::string* find(const Metadata& metadata, std::string_view key) noexcept;

/// A checked safetensors file. Move-only; const access is thread-safe.
///
/// The bytes are a private read-only memory map (open) or the caller's (from_bytes). Views live as long as
/// they do; writing through one is a fault. A view's data may be unaligned for its dtype, since the format
/// promises no alignment: Gpt2Source repairs that. A mapped file must not be truncated while it is open
/// (SIGBUS): replace files by renaming, as write_safetensors() does.
class SafetensorsFile {
 public:
  /// Error{file} when it cannot be opened or mapped, Error{malformed} "PATH: FIELD: expected …, got …".
  static Result<SafetensorsFile> open(const std::filesystem::path& path);
  /// The same over memory that the caller keeps alive; `name` stands for the path in errors.
  static Result<SafetensorsFile> from_bytes(std::span<const std::byte> bytes, std::string_view name);

  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

  const std::string& name() const noexcept;
  /// Which file was opened, as it was before any of it was read; empty for from_bytes().
  const weights::FileIdentity& identity() const noexcept;
  /// In the order of the file's bytes.
  std::span<const NamedTensor> tensors() const noexcept;
  /// Null when there is none. O(log tensors).
  const NamedTensor* find(std::string_view name) const noexcept;
  const Metadata& metadata() const noexcept;
  /// Size of the file, header included.
  std::size_t file_bytes() const noexcept;

  /// Lets the memory of a tensor's pages go; touching them again reads the file again. Does nothing for
  /// memory outside the map.
  void release(const TensorView& tensor) const noexcept;

 private:
  struct State;
  explicit SafetensorsFile(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Writes a file that any safetensors reader opens, byte for byte what Python's `safetensors` writes: tensors
/// by dtype (widest first) and then by name, header padded to 8 bytes, so that equal tensors make equal
/// files. Atomic and durable (AtomicFile): a failure leaves the old file as it was. Error{usage} for a
/// strided view, a duplicate name or the name "__metadata__"; Error{output} when writing fails.
Result<void> write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                               const Metadata& metadata = {});

}  // namespace inkling
