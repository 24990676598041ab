// The JSON header of a safetensors file, read and checked. Shared by the reader and its tests' subject matter
// only.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "weights/safetensors.h"

namespace inkling::weights {

/// The format's name of a dtype, e.g. "BF16".
std::string_view safetensors_dtype(DType dtype) noexcept;
/// Absent for a name that the format or the engine does not know.
std::optional<DType> parse_safetensors_dtype(std::string_view name) noexcept;

/// Order in which the format's writers lay tensors out, by dtype: greater comes first.
int safetensors_dtype_rank(DType dtype) noexcept;

struct Header {
  struct Entry {
    NamedTensor tensor;  ///< data is null: the header knows no address
    std::uint64_t begin = 0, end = 0;
  };
  std::vector<Entry> entries;  ///< by begin
  Metadata metadata;
};

/// Reads header text describing `data_bytes` bytes of tensors. Error{malformed} "NAME: TENSOR.FIELD: …".
Result<Header> parse_header(std::string_view text, std::uint64_t data_bytes, std::string_view name);

}  // namespace inkling::weights
