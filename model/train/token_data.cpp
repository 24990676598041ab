#include "model/train/token_data.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "weights/atomic_file.h"

namespace inkling {
namespace {

constexpr char kMagic[] = {'I', 'N', 'K', 'L', 'T', 'O', 'K', '1'};

struct Header {
  char magic[8];
  std::uint32_t width, zero;
  std::uint64_t ids, documents;
  char source[64];
};
static_assert(sizeof(Header) == 96);

Error malformed(const std::filesystem::path& path, const std::string& what) {
  return Error(Code::malformed, path.string() + ": " + what);
}

template <class T>
T at(std::span<const std::byte> bytes, std::int64_t i) noexcept {
  T value;
  std::memcpy(&value, bytes.data() + static_cast<std::size_t>(i) * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

Result<TokenData> TokenData::open(const std::filesystem::path& path) {
  auto map = weights::FileMap::open(path);
  if (!map) return map.error();
  TokenData data;
  data.map_ = std::move(*map);
  const auto bytes = data.map_.bytes();
  Header header{};
  if (bytes.size() < sizeof header) {
    return malformed(path, "header: expected 96 bytes, got " + std::to_string(bytes.size()));
  }
  std::memcpy(&header, bytes.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof header.magic) != 0) {
    return malformed(path, "header: expected INKLTOK1, got other bytes");
  }
  if (header.width != 2 && header.width != 4) {
    return malformed(path, "bytes per id: expected 2 or 4, got " + std::to_string(header.width));
  }
  const std::uint64_t body = bytes.size() - sizeof header;
  // Each factor is held against what is there before they are multiplied.
  if (header.documents > body / 8 || header.ids > body / header.width ||
      header.documents * 8 + header.ids * header.width != body) {
    return malformed(path, "size: expected that of " + std::to_string(header.documents) + " documents and " +
                               std::to_string(header.ids) + " ids, got " + std::to_string(bytes.size()) +
                               " bytes");
  }
  data.width_ = header.width;
  data.size_ = static_cast<std::int64_t>(header.ids);
  data.documents_ = static_cast<std::int64_t>(header.documents);
  data.source_.assign(header.source, ::strnlen(header.source, sizeof header.source));
  data.ends_ = bytes.subspan(sizeof header, header.documents * 8);
  data.ids_ = bytes.subspan(sizeof header + header.documents * 8);
  for (std::int64_t d = 0, before = 0; d < data.documents_; ++d) {
    const std::int64_t end = data.document_end(d);
    if (end < before || end > data.size_) {
      return malformed(path, "document " + std::to_string(d) + ": expected an end from " +
                                 std::to_string(before) + " to " + std::to_string(data.size_) + ", got " +
                                 std::to_string(end));
    }
    before = end;
  }
  if (data.documents_ == 0 ? data.size_ != 0 : data.document_end(data.documents_ - 1) != data.size_) {
    return malformed(path, "documents: expected them to end with the ids");
  }
  return data;
}

Result<TokenData> TokenData::open_u16(const std::filesystem::path& path,
                                      std::optional<std::int32_t> document_end) {
  auto map = weights::FileMap::open(path);
  if (!map) return map.error();
  TokenData data;
  data.map_ = std::move(*map);
  data.ids_ = data.map_.bytes();
  if (data.ids_.size() % 2 != 0) {
    return malformed(path,
                     "size: expected ids of two bytes, got " + std::to_string(data.ids_.size()) + " bytes");
  }
  data.size_ = static_cast<std::int64_t>(data.ids_.size() / 2);
  data.documents_ = data.size_ > 0 ? 1 : 0;
  if (!document_end) return data;
  auto& ends = data.found_ends_;
  for (std::int64_t i = 0; i < data.size_; ++i) {
    if (data.id(i) == *document_end || i + 1 == data.size_) ends.push_back(static_cast<std::uint64_t>(i) + 1);
  }
  data.documents_ = static_cast<std::int64_t>(ends.size());
  data.ends_ = std::as_bytes(std::span(ends));
  return data;
}

std::int64_t TokenData::document_end(std::int64_t d) const noexcept {
  return ends_.empty() ? size_ : static_cast<std::int64_t>(at<std::uint64_t>(ends_, d));
}

std::int64_t TokenData::document_of(std::int64_t i) const noexcept {
  std::int64_t low = 0, high = documents_ - 1;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (document_end(middle) > i) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

std::int32_t TokenData::id(std::int64_t i) const noexcept {
  return width_ == 2 ? at<std::uint16_t>(ids_, i) : at<std::int32_t>(ids_, i);
}

void TokenData::copy(std::int64_t begin, std::span<std::int32_t> out) const noexcept {
  for (std::int32_t& value : out) value = id(begin++);
}

std::optional<std::int64_t> TokenData::first_outside(std::int64_t begin, std::int64_t end,
                                                     std::int64_t vocab_size) const noexcept {
  for (std::int64_t i = begin; i < end; ++i) {
    if (id(i) < 0 || id(i) >= vocab_size) return i;
  }
  return std::nullopt;
}

std::span<const std::byte> TokenData::bytes(std::int64_t begin, std::int64_t end) const noexcept {
  return ids_.subspan(static_cast<std::size_t>(begin) * width_,
                      static_cast<std::size_t>(end - begin) * width_);
}

Result<void> write_token_data(const std::filesystem::path& path, std::span<const std::int32_t> ids,
                              std::span<const std::int64_t> ends, std::string_view source) {
  const auto count = static_cast<std::int64_t>(ids.size());
  if (!std::ranges::is_sorted(ends) ||
      (ends.empty() ? count != 0 : ends.front() < 0 || ends.back() != count)) {
    return Error(Code::usage, path.string() + ": ends: expected offsets rising to " + std::to_string(count));
  }
  const bool narrow = std::ranges::all_of(ids, [](std::int32_t id) { return id >= 0 && id <= UINT16_MAX; });
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof header.magic);
  header.width = narrow ? 2 : 4;
  header.ids = ids.size();
  header.documents = ends.size();
  source.copy(header.source, sizeof header.source);
  auto file = AtomicFile::create(path);
  if (!file) return file.error();
  if (auto wrote = file->write(std::as_bytes(std::span(&header, 1))); !wrote) return wrote;
  if (auto wrote = file->write(std::as_bytes(ends)); !wrote) return wrote;
  if (narrow) {
    const std::vector<std::uint16_t> two(ids.begin(), ids.end());
    if (auto wrote = file->write(std::as_bytes(std::span(two))); !wrote) return wrote;
  } else if (auto wrote = file->write(std::as_bytes(ids)); !wrote) {
    return wrote;
  }
  return file->commit();
}

}  // namespace inkling
