// Packing of one panel of weights from a file's layout, and reading a column back. See packed_matrix.h for
// layouts. Include only from sources of one ISA.
// Longer than a header: it is a source, compiled once per ISA.
#pragma once

#include <cstring>
#include <type_traits>

#include "engine/cpu/kernels.h"
#include "engine/cpu/transpose.h"

namespace inkling::cpu {

template <class V>
struct PanelKernels {
  static constexpr std::int64_t NR = V::kPanelVectors * V::kLanes;

  /// Rows k in [begin, begin + count) of the panel as f32 (count, NR); columns past N are zero.
  template <class T>
  static void gather(const MatrixSource& s, std::int64_t panel, std::int64_t begin, std::int64_t count,
                     float* out) {
    const std::int64_t first = panel * NR;
    const std::int64_t columns = s.n - first < NR ? s.n - first : NR;
    const T* base = static_cast<const T*>(s.data) + first * s.n_stride + begin * s.k_stride;
    if (columns < NR) std::memset(out, 0, static_cast<std::size_t>(count * NR) * sizeof(float));
    if (s.n_stride == 1) {
      for (std::int64_t k = 0; k < count; ++k) {
        const T* row = base + k * s.k_stride;
        for (std::int64_t j = 0; j < columns; ++j) out[k * NR + j] = static_cast<float>(row[j]);
      }
      return;
    }
    if constexpr (std::is_same_v<T, float>) {
      if (s.k_stride == 1) return transpose<V>(base, s.n_stride, columns, count, out, NR);
    }
    // [out, in] files: 16 k of every column at a time, so that each cache line is read once.
    for (std::int64_t k0 = 0; k0 < count; k0 += 16) {
      const std::int64_t k1 = k0 + 16 < count ? k0 + 16 : count;
      for (std::int64_t j = 0; j < columns; ++j) {
        const T* column = base + j * s.n_stride;
        for (std::int64_t k = k0; k < k1; ++k) out[k * NR + j] = static_cast<float>(column[k * s.k_stride]);
      }
    }
  }

  static void gather_f32(const MatrixSource& s, std::int64_t panel, std::int64_t begin, std::int64_t count,
                         float* out) {
    switch (s.dtype) {
      case DType::f32:
        return gather<float>(s, panel, begin, count, out);
      case DType::f16:
        return gather<f16>(s, panel, begin, count, out);
      case DType::bf16:
        return gather<bf16>(s, panel, begin, count, out);
      default:
        return;  // ops.cpp has refused it
    }
  }

  static void pack_panel(const MatrixSource& s, WeightFormat format, std::int64_t panel, std::byte* out,
                         std::byte* scratch) {
    auto* stage = reinterpret_cast<float*>(scratch);
    constexpr std::int64_t kChunk = 128;  // a multiple of both group sizes; 128 × 64 floats are 32 KiB
    static_assert(kChunk % kInt8Group == 0 && kChunk % kInt4Group == 0);
    for (std::int64_t begin = 0; begin < s.k; begin += kChunk) {
      const std::int64_t count = s.k - begin < kChunk ? s.k - begin : kChunk;
      if (format == WeightFormat::f32) {
        gather_f32(s, panel, begin, count, reinterpret_cast<float*>(out) + begin * NR);
        continue;
      }
      gather_f32(s, panel, begin, count, stage);
      switch (format) {
        case WeightFormat::f16:
          store_rows(stage, count, reinterpret_cast<f16*>(out) + begin * NR);
          break;
        case WeightFormat::bf16:
          store_bf16(stage, count, reinterpret_cast<bf16*>(out) + begin * NR);
          break;
        case WeightFormat::int8:
          out = quantise_int8(stage, count, out);
          break;
        case WeightFormat::int4:
          for (std::int64_t g = 0; g < count; g += kInt4Group) {
            out = quantise_int4(stage + g * NR, count - g < kInt4Group ? count - g : kInt4Group, out);
          }
          break;
        case WeightFormat::f32:
          break;
      }
    }
  }

  template <class T>
  static void store_rows(const float* rows, std::int64_t count, T* out) {
    for (std::int64_t i = 0; i < count * NR; i += V::kLanes) V::store(out + i, V::load(rows + i));
  }

  // Pairs of k side by side where vdpbf16ps wants them so; plain rows elsewhere.
  static void store_bf16(const float* rows, std::int64_t count, bf16* out) {
    if constexpr (requires { &V::dot_bf16; }) {
      for (std::int64_t k = 0; k < count; ++k) {
        bf16* pair = out + k / 2 * 2 * NR + k % 2;
        for (std::int64_t j = 0; j < NR; ++j) pair[2 * j] = bf16(rows[k * NR + j]);
      }
      if (count % 2 != 0) {
        for (std::int64_t j = 0; j < NR; ++j) out[(count - 1) * NR + 2 * j + 1] = bf16(0.0f);
      }
    } else {
      store_rows(rows, count, out);
    }
  }

  static std::byte* quantise_int8(const float* rows, std::int64_t count, std::byte* out) {
    auto* scales = reinterpret_cast<f16*>(out);
    auto* bytes = reinterpret_cast<std::uint8_t*>(out + NR * 2);
    float top[NR] = {}, inverse[NR];
    for (std::int64_t k = 0; k < count; ++k) {
      for (std::int64_t j = 0; j < NR; ++j) {
        const float a = rows[k * NR + j] < 0 ? -rows[k * NR + j] : rows[k * NR + j];
        top[j] = a > top[j] || a != a ? a : top[j];  // NaN stays
      }
    }
    for (std::int64_t j = 0; j < NR; ++j) {
      scales[j] = f16(top[j] / 127.0f);
      const auto scale = static_cast<float>(scales[j]);
      inverse[j] = scale > 0.0f ? 1.0f / scale : 0.0f;
    }
    const std::int64_t padded = (count + 3) / 4 * 4;
    for (std::int64_t k = 0; k < padded; ++k) {
      std::uint8_t* quad = bytes + k / 4 * 4 * NR + k % 4;
      for (std::int64_t j = 0; j < NR; ++j) {
        const float v = k < count ? rows[k * NR + j] * inverse[j] : 0.0f;
        const float clamped = v > 127.0f ? 127.0f : v > -127.0f ? v : -127.0f;
        quad[4 * j] =
            static_cast<std::uint8_t>(static_cast<int>(clamped + 128.5f));  // ≥ 1: truncation floors
      }
    }
    return out + NR * 2 + padded * NR;
  }

  static std::byte* quantise_int4(const float* rows, std::int64_t count, std::byte* out) {
    auto* scales = reinterpret_cast<f16*>(out);
    auto* minima = scales + NR;
    auto* bytes = reinterpret_cast<std::uint8_t*>(out + NR * 4);
    float low[NR], high[NR], inverse[NR];
    for (std::int64_t j = 0; j < NR; ++j) low[j] = high[j] = rows[j];
    for (std::int64_t k = 1; k < count; ++k) {
      for (std::int64_t j = 0; j < NR; ++j) {
        const float v = rows[k * NR + j];
        low[j] = v < low[j] || v != v ? v : low[j];  // NaN stays
        high[j] = v > high[j] ? v : high[j];
      }
    }
    for (std::int64_t j = 0; j < NR; ++j) {
      minima[j] = f16(low[j]);
      low[j] = static_cast<float>(minima[j]);
      scales[j] = f16((high[j] - low[j]) / 15.0f);
      const auto scale = static_cast<float>(scales[j]);
      inverse[j] = scale > 0.0f ? 1.0f / scale : 0.0f;
    }
    const std::int64_t padded = (count + 7) / 8 * 8;
    std::memset(bytes, 0, static_cast<std::size_t>(padded / 2 * NR));
    for (std::int64_t k = 0; k < count; ++k) {
      std::uint8_t* octet = bytes + k / 8 * 4 * NR + k % 4;
      const int shift = k % 8 < 4 ? 0 : 4;
      for (std::int64_t j = 0; j < NR; ++j) {
        const float v = (rows[k * NR + j] - low[j]) * inverse[j] + 0.5f;
        const int q = v > 15.0f ? 15 : v > 0.0f ? static_cast<int>(v) : 0;
        octet[4 * j] = static_cast<std::uint8_t>(octet[4 * j] | (q << shift));
      }
    }
    return out + NR * 4 + padded / 2 * NR;
  }

  static void unpack_column(const PackedMatrix& w, std::int64_t n, float* out) {
    const std::byte* data = w.panel_data(n / NR);
    const std::int64_t j = n % NR;
    switch (w.format) {
      case WeightFormat::f32:
        return copy_column(reinterpret_cast<const float*>(data), w.k, j, out);
      case WeightFormat::f16:
        return copy_column(reinterpret_cast<const f16*>(data), w.k, j, out);
      case WeightFormat::bf16:
        if constexpr (requires { &V::dot_bf16; }) {
          const auto* pairs = reinterpret_cast<const bf16*>(data);
          for (std::int64_t k = 0; k < w.k; ++k)
            out[k] = static_cast<float>(pairs[k / 2 * 2 * NR + 2 * j + k % 2]);
          return;
        } else {
          return copy_column(reinterpret_cast<const bf16*>(data), w.k, j, out);
        }
      case WeightFormat::int8:
        return int8_column(data, w.k, j, out);
      case WeightFormat::int4:
        return int4_column(data, w.k, j, out);
    }
  }

  template <class T>
  static void copy_column(const T* rows, std::int64_t k, std::int64_t j, float* out) {
    for (std::int64_t i = 0; i < k; ++i) out[i] = static_cast<float>(rows[i * NR + j]);
  }

  static void int8_column(const std::byte* data, std::int64_t k, std::int64_t j, float* out) {
    for (std::int64_t begin = 0; begin < k; begin += kInt8Group) {
      const std::int64_t count = k - begin < kInt8Group ? k - begin : kInt8Group;
      const auto scale = static_cast<float>(reinterpret_cast<const f16*>(data)[j]);
      const auto* bytes = reinterpret_cast<const std::uint8_t*>(data + NR * 2);
      for (std::int64_t i = 0; i < count; ++i) {
        out[begin + i] = scale * static_cast<float>(bytes[i / 4 * 4 * NR + 4 * j + i % 4] - 128);
      }
      data += NR * 2 + (count + 3) / 4 * 4 * NR;
    }
  }

  static void int4_column(const std::byte* data, std::int64_t k, std::int64_t j, float* out) {
    for (std::int64_t begin = 0; begin < k; begin += kInt4Group) {
      const std::int64_t count = k - begin < kInt4Group ? k - begin : kInt4Group;
      const auto* header = reinterpret_cast<const f16*>(data);
      const auto scale = static_cast<float>(header[j]), minimum = static_cast<float>(header[NR + j]);
      const auto* bytes = reinterpret_cast<const std::uint8_t*>(data + NR * 4);
      for (std::int64_t i = 0; i < count; ++i) {
        const int byte = bytes[i / 8 * 4 * NR + 4 * j + i % 4];
        out[begin + i] = scale * static_cast<float>(i % 8 < 4 ? byte & 0xf : byte >> 4) + minimum;
      }
      data += NR * 4 + (count + 7) / 8 * 4 * NR;
    }
  }
};

}  // namespace inkling::cpu
