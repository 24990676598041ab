// TokenData: the ids of a text on disk, memory-mapped: what training draws its batches from.
//
// File: 96 bytes of header {"INKLTOK1", bytes per id u32 (2 or 4), 0 u32, ids u64, documents u64, SHA-256 of
// the source}, then where each document ends (u64 each, rising, the last = ids), then the ids; little-endian.
// Or nanoGPT's: nothing but ids of two bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "weights/file.h"

namespace inkling {

/// Immutable; any number of threads may read. Move-only.
class TokenData {
 public:
  /// Error{file}; Error{malformed} naming file and field. Whether ids fit a vocabulary is the reader's to
  /// check: first_outside().
  static Result<TokenData> open(const std::filesystem::path& path);
  /// nanoGPT's train.bin or val.bin. A document ends with each `document_end`, and the last with the ids;
  /// without one all are one document. With one all ids are read.
  static Result<TokenData> open_u16(const std::filesystem::path& path,
                                    std::optional<std::int32_t> document_end = {});

  std::int64_t size() const noexcept { return size_; }
  std::int64_t documents() const noexcept { return documents_; }
  /// Where document d ends, in ids; it begins where the one before ends.
  std::int64_t document_end(std::int64_t d) const noexcept;
  /// The document that id `i` belongs to. O(log documents).
  std::int64_t document_of(std::int64_t i) const noexcept;
  std::int32_t id(std::int64_t i) const noexcept;
  /// ids [begin, begin + out.size()).
  void copy(std::int64_t begin, std::span<std::int32_t> out) const noexcept;
  /// The place of the first of ids [begin, end) that is not in [0, vocab_size), if there is one.
  std::optional<std::int64_t> first_outside(std::int64_t begin, std::int64_t end,
                                            std::int64_t vocab_size) const noexcept;
  /// ids [begin, end) as they lie in the file.
  std::span<const std::byte> bytes(std::int64_t begin, std::int64_t end) const noexcept;
  /// What the ids were made from, in the writer's words: a SHA-256 in hexadecimal. Empty for nanoGPT's.
  const std::string& source() const noexcept { return source_; }

 private:
  weights::FileMap map_;
  std::vector<std::uint64_t> found_ends_;  // where the file has none
  std::span<const std::byte> ends_, ids_;  // u64 each; empty: one document
  std::size_t width_ = 2;
  std::int64_t size_ = 0, documents_ = 0;
  std::string source_;
};

/// Writes the file, atomically; ends as in the header. Two bytes an id where they all fit. Error{usage} for
/// ends that do not rise to the ids' count, Error{output}.
Result<void> write_token_data(const std::filesystem::path& path, std::span<const std::int32_t> ids,
                              std::span<const std::int64_t> ends, std::string_view source);

}  // namespace inkling
