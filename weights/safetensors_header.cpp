#include "weights/safetensors_header.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <string>
#include <tuple>
#include <utility>

#include "engine/base/json.h"
#include "weights/guard.h"

namespace inkling::weights {
namespace {

struct DTypeName {
  std::string_view name;
  DType dtype;
};
// In the order of the `Dtype` enum of the safetensors crate, by which its writer sorts.
constexpr std::array kDTypes = {
    DTypeName{"BOOL", DType::boolean}, DTypeName{"U8", DType::u8},   DTypeName{"I8", DType::i8},
    DTypeName{"I16", DType::i16},      DTypeName{"F16", DType::f16}, DTypeName{"BF16", DType::bf16},
    DTypeName{"I32", DType::i32},      DTypeName{"F32", DType::f32}, DTypeName{"F64", DType::f64},
    DTypeName{"I64", DType::i64},
};

constexpr std::array<std::string_view, 3> kFields = {"dtype", "shape", "data_offsets"};
constexpr std::string_view kInteger = "an integer, 0 to 2^63-1";

// {"__metadata__": {string: string…}, NAME: {"dtype": string, "shape": [integer…], "data_offsets": [begin,
// end]}…}
class HeaderReader final : public JsonHandler {
 public:
  bool begin_object() override {
    switch (level_) {
      case Level::document:
        return enter(Level::tensors);
      case Level::tensors:
        return name_ == "__metadata__" ? begin_metadata() : begin_tensor();
      default:
        return unexpected("an object");
    }
  }

  bool begin_array() override {
    if (level_ != Level::tensor || key_ == "dtype") return unexpected("a list");
    return enter(key_ == "shape" ? Level::shape : Level::offsets);
  }

  bool key(std::string&& key) override {
    if (level_ == Level::tensors) return name_ = std::move(key), true;
    key_ = std::move(key);
    return level_ == Level::metadata || begin_field();
  }

  bool scalar(JsonScalar&& value) override {
    if (auto* text = std::get_if<std::string>(&value)) {
      if (level_ == Level::metadata) return header_.metadata.emplace_back(key_, std::move(*text)), true;
      if (level_ == Level::tensor && key_ == "dtype") return set_dtype(*text);
    }
    if (const auto* number = std::get_if<std::int64_t>(&value); number != nullptr && *number >= 0) {
      if (level_ == Level::shape) return add_extent(*number);
      if (level_ == Level::offsets) return add_offset(*number);
    }
    return unexpected(describe(value));
  }

  bool end_array() override {
    if (level_ == Level::offsets && offsets_.size() != 2) {
      return fail(field(), "two offsets", std::to_string(offsets_.size()));
    }
    return enter(Level::tensor);
  }

  bool end_object() override {
    if (level_ == Level::tensor && !end_tensor()) return false;
    level_ = level_ == Level::tensors ? Level::document : Level::tensors;
    return true;
  }

  Header take() { return std::move(header_); }

 private:
  enum class Level { document, tensors, metadata, tensor, shape, offsets };

  bool enter(Level level) { return level_ = level, true; }

  bool begin_metadata() {
    if (std::exchange(has_metadata_, true)) return fail(name_, "the key once", "it twice");
    return enter(Level::metadata);
  }

  bool begin_tensor() {
    seen_ = 0;
    extents_.clear();
    offsets_.clear();
    return enter(Level::tensor);
  }

  bool begin_field() {
    const auto at = std::ranges::find(kFields, key_);
    const unsigned bit = at != kFields.end() ? 1u << (at - kFields.begin()) : 0;
    if (bit == 0) return fail(field(), "dtype, shape or data_offsets", "an unknown key");
    if ((seen_ & bit) != 0) return fail(field(), "the key once", "it twice");
    seen_ |= bit;
    return true;
  }

  bool set_dtype(const std::string& text) {
    const auto known = parse_safetensors_dtype(text);
    if (!known) return fail(field(), "BOOL, U8, I8, I16, I32, I64, F16, BF16, F32 or F64", describe(text));
    dtype_ = *known;
    return true;
  }

  bool add_extent(std::int64_t extent) {
    if (extents_.size() == kMaxRank) return fail(field(), "at most 4 extents", "more");
    return extents_.push_back(extent), true;
  }

  bool add_offset(std::int64_t offset) {
    if (offsets_.size() == 2) return fail(field(), "two offsets", "more");
    return offsets_.push_back(static_cast<std::uint64_t>(offset)), true;
  }

  bool end_tensor() {
    if (seen_ != (1u << kFields.size()) - 1) {
      const auto missing = static_cast<std::size_t>(std::countr_one(seen_));
      return fail(name_, "the key " + std::string(kFields[missing]), "none");
    }
    // Extents of 0 count as 1 here: strides are products too, and must not overflow on the way to nothing.
    std::uint64_t bound = dtype_size(dtype_), bytes = bound;
    for (const std::int64_t extent : extents_) {
      const auto count = static_cast<std::uint64_t>(extent);
      if (__builtin_mul_overflow(bound, std::max<std::uint64_t>(count, 1), &bound) || bound >> 63 != 0) {
        return fail(name_ + ".shape", "fewer than 2^63 bytes", "more");
      }
      bytes *= count;
    }
    const std::uint64_t begin = offsets_[0], end = offsets_[1];
    if (begin > end) return fail(name_ + ".data_offsets", "begin <= end", range(begin, end));
    if (end - begin != bytes) {
      return fail(name_ + ".data_offsets", std::to_string(bytes) + " bytes for its shape and dtype",
                  range(begin, end));
    }
    header_.entries.push_back({{std::move(name_), TensorView(nullptr, dtype_, extents_)}, begin, end});
    return true;
  }

  static std::string range(std::uint64_t begin, std::uint64_t end) {
    return '[' + std::to_string(begin) + ", " + std::to_string(end) + ']';
  }

  std::string field() const { return level_ == Level::tensors ? name_ : metadata_or_tensor() + '.' + key_; }
  std::string metadata_or_tensor() const { return level_ == Level::metadata ? "__metadata__" : name_; }

  bool unexpected(std::string_view got) {
    switch (level_) {
      case Level::document:
        return fail("header", "an object", got);
      case Level::tensors:
        return fail(field(), "an object", got);
      case Level::metadata:
        return fail(field(), "a string", got);
      case Level::tensor:
        return fail(field(), key_ == "dtype" ? "a string" : "a list", got);
      case Level::shape:
      case Level::offsets:
        return fail(field(), kInteger, got);
    }
    return false;
  }

  Header header_;
  Level level_ = Level::document;
  bool has_metadata_ = false;
  // The tensor being read.
  std::string name_, key_;
  unsigned seen_ = 0;  // bit i: kFields[i]
  DType dtype_ = DType::f32;
  std::vector<std::int64_t> extents_;
  std::vector<std::uint64_t> offsets_;
};

// Every byte belongs to exactly one tensor: no overlap, no hole, nothing after the last. `entries` is by
// begin.
Result<void> check_tiling(const std::vector<Header::Entry>& entries, std::uint64_t data_bytes,
                          std::string_view name) {
  std::uint64_t next = 0;
  for (const auto& entry : entries) {
    if (entry.begin != next) {
      return malformed(name, entry.tensor.name + ".data_offsets",
                       "to begin where the tensor before ends, at " + std::to_string(next),
                       std::to_string(entry.begin));
    }
    next = entry.end;
  }
  if (next != data_bytes) {
    return malformed(name, "data_offsets", "the last to end at the file's end, " + std::to_string(data_bytes),
                     std::to_string(next));
  }
  return {};
}

template <class Keys>
Result<void> check_distinct(Keys keys, std::string_view name) {
  std::ranges::sort(keys);
  const auto twice = std::ranges::adjacent_find(keys);
  if (twice != keys.end()) return malformed(name, *twice, "the key once", "it twice");
  return {};
}

}  // namespace

std::string_view safetensors_dtype(DType dtype) noexcept {
  return kDTypes[static_cast<std::size_t>(safetensors_dtype_rank(dtype))].name;
}

std::optional<DType> parse_safetensors_dtype(std::string_view name) noexcept {
  const auto at = std::ranges::find(kDTypes, name, &DTypeName::name);
  if (at == kDTypes.end()) return std::nullopt;
  return at->dtype;
}

int safetensors_dtype_rank(DType dtype) noexcept {
  return static_cast<int>(std::ranges::find(kDTypes, dtype, &DTypeName::dtype) - kDTypes.begin());
}

Result<Header> parse_header(std::string_view text, std::uint64_t data_bytes, std::string_view name) {
  if (!text.starts_with('{'))
    return malformed(name, "header", "a JSON object from its first byte", "something else");
  HeaderReader reader;
  if (const auto read = read_json(text, name, reader); !read) return read.error();
  Header header = reader.take();

  std::vector<std::string_view> keys;
  for (const auto& entry : header.entries) keys.push_back(entry.tensor.name);
  if (auto distinct = check_distinct(std::move(keys), name); !distinct) return distinct.error();
  keys.clear();
  for (const auto& [key, value] : header.metadata) keys.push_back(key);
  if (auto distinct = check_distinct(std::move(keys), name); !distinct) return distinct.error();

  std::ranges::sort(header.entries, {}, [](const Header::Entry& e) {
    return std::tuple<std::uint64_t, std::uint64_t, std::string_view>(e.begin, e.end, e.tensor.name);
  });
  if (auto tiled = check_tiling(header.entries, data_bytes, name); !tiled) return tiled.error();
  return header;
}

}  // namespace inkling::weights
