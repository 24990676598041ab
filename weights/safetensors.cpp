#include "weights/safetensors.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>

#include "weights/file.h"
#include "weights/guard.h"
#include "weights/safetensors_header.h"

namespace inkling {

static_assert(std::endian::native == std::endian::little, "tensors are used as they lie in the file");

struct SafetensorsFile::State {
  std::string name;
  weights::FileIdentity identity;
  weights::FileMap map;  // empty when the bytes are the caller's
  std::span<const std::byte> bytes;
  std::vector<NamedTensor> tensors;
  std::vector<std::uint32_t> by_name;  // indices of tensors, sorted by name
  Metadata metadata;

  Result<void> read();
};

SafetensorsFile::SafetensorsFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;
SafetensorsFile::~SafetensorsFile() = default;

Result<void> SafetensorsFile::State::read() {
  constexpr std::size_t kLength = sizeof(std::uint64_t);
  if (bytes.size() < kLength) {
    return weights::malformed(name, "size", "at least 8 bytes", std::to_string(bytes.size()));
  }
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLength);
  const std::uint64_t room = std::min<std::uint64_t>(kMaxSafetensorsHeader, bytes.size() - kLength);
  if (length > room) {
    return weights::malformed(name, "header length", "at most " + std::to_string(room),
                              std::to_string(length));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLength, length);
  const auto data = bytes.subspan(kLength + length);
  auto header = weights::parse_header(text, data.size(), name);
  if (!header) return header.error();

  metadata = std::move(header->metadata);
  tensors.reserve(header->entries.size());
  for (auto& entry : header->entries) {
    // TensorView has one pointer type for reading and writing; the contract says that these are for reading.
    entry.tensor.view.data = const_cast<std::byte*>(data.data() + entry.begin);
    tensors.push_back(std::move(entry.tensor));
  }
  by_name.resize(tensors.size());  // a header of 100 MB holds fewer than 2^32 tensors
  for (std::size_t i = 0; i < tensors.size(); ++i) by_name[i] = static_cast<std::uint32_t>(i);
  std::ranges::sort(by_name, {}, [this](std::uint32_t i) { return std::string_view(tensors[i].name); });
  return {};
}

Result<SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path) {
  return weights::guarded(path, [&]() -> Result<SafetensorsFile> {
    const auto file = weights::InputFile::open(path);
    if (!file) return file.error();
    auto identity = weights::FileIdentity::of(*file);
    if (!identity) return identity.error();
    auto map = weights::FileMap::of(*file);
    if (!map) return map.error();
    auto state = std::make_unique<State>();
    state->name = path.string();
    state->identity = *std::move(identity);
    state->map = *std::move(map);
    state->bytes = state->map.bytes();
    if (const auto read = state->read(); !read) return read.error();
    return SafetensorsFile(std::move(state));
  });
}

Result<SafetensorsFile> SafetensorsFile::from_bytes(std::span<const std::byte> bytes, std::string_view name) {
  return weights::guarded(name, [&]() -> Result<SafetensorsFile> {
    auto state = std::make_unique<State>();
    state->name = name;
    state->bytes = bytes;
    if (const auto read = state->read(); !read) return read.error();
    return SafetensorsFile(std::move(state));
  });
}

const std::string& SafetensorsFile::name() const noexcept {
  return state_->name;
}
const weights::FileIdentity& SafetensorsFile::identity() const noexcept {
  return state_->identity;
}
std::span<const NamedTensor> SafetensorsFile::tensors() const noexcept {
  return state_->tensors;
}
const std::string* find(const Metadata& metadata, std::string_view key) noexcept {
  const auto at = std::ranges::find(metadata, key, &Metadata::value_type::first);
  return at != metadata.end() ? &at->second : nullptr;
}

const Metadata& SafetensorsFile::metadata() const noexcept {
  return state_->metadata;
}
std::size_t SafetensorsFile::file_bytes() const noexcept {
  return state_->bytes.size();
}

const NamedTensor* SafetensorsFile::find(std::string_view name) const noexcept {
  const auto name_of = [this](std::uint32_t i) { return std::string_view(state_->tensors[i].name); };
  const auto at = std::ranges::lower_bound(state_->by_name, name, {}, name_of);
  return at != state_->by_name.end() && name_of(*at) == name ? &state_->tensors[*at] : nullptr;
}

void SafetensorsFile::release(const TensorView& tensor) const noexcept {
  const auto map = state_->map.bytes();
  const auto* data = static_cast<const std::byte*>(tensor.data);
  const std::size_t bytes = tensor.nbytes();
  // Pages of the heap must never be dropped: the range has to lie in our map.
  const bool inside =
      std::greater_equal<>{}(data, map.data()) && std::less<>{}(data, map.data() + map.size());
  if (!inside || bytes == 0 || bytes > static_cast<std::size_t>(map.data() + map.size() - data)) return;
  // Outwards to whole pages: of a neighbour's bytes on a shared page, the worst is that they are read again.
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(data) / page * page;
  ::madvise(reinterpret_cast<void*>(begin), reinterpret_cast<std::uintptr_t>(data) + bytes - begin,
            MADV_DONTNEED);
}

}  // namespace inkling
