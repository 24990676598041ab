// Rows in the memory of a context's device.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "engine/exec_context.h"

namespace inkling::test {

/// Rows on the device and what is written there.
class OnDevice {
 public:
  OnDevice(ExecContext& context, const std::vector<float>& values, std::int64_t rows, std::int64_t columns,
           DType dtype = DType::f32)
      : context_(context), bytes_(encode(values, dtype)) {
    buffer_ = context.backend().allocate(std::max<std::size_t>(bytes_.size(), 64));
    context.backend().copy_in(buffer_.data(), bytes_.data(), bytes_.size());
    view_ = TensorView(buffer_.data(), dtype, {rows, columns});
  }
  const TensorView& view() const { return view_; }
  float* data() const { return static_cast<float*>(view_.data); }
  std::vector<float> values() {
    context_.backend().copy_out(bytes_.data(), buffer_.data(), bytes_.size());
    std::vector<float> out(static_cast<std::size_t>(view_.numel()));
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (view_.dtype == DType::bf16)
        out[i] = static_cast<float>(reinterpret_cast<const bf16*>(bytes_.data())[i]);
      if (view_.dtype == DType::f16)
        out[i] = static_cast<float>(reinterpret_cast<const f16*>(bytes_.data())[i]);
      if (view_.dtype == DType::f32) std::memcpy(&out[i], bytes_.data() + 4 * i, 4);
    }
    return out;
  }

 private:
  static std::vector<std::byte> encode(const std::vector<float>& values, DType dtype) {
    std::vector<std::byte> bytes(values.size() * dtype_size(dtype));
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (dtype == DType::bf16) reinterpret_cast<bf16*>(bytes.data())[i] = bf16(values[i]);
      if (dtype == DType::f16) reinterpret_cast<f16*>(bytes.data())[i] = f16(values[i]);
      if (dtype == DType::f32) std::memcpy(bytes.data() + 4 * i, &values[i], 4);
    }
    return bytes;
  }

  ExecContext& context_;
  std::vector<std::byte> bytes_;
  Buffer buffer_;
  TensorView view_;
};

}  // namespace inkling::test
