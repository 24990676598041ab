// int8 and int4 weights on a GPU: the integers are the CPU's, and a product has the bits of the product with
// a bf16 matrix of what they stand for, which cuda.cpp holds against the oracle. Where no GPU can be used
// each case says so and checks nothing.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "engine/cpu/reference.h"
#include "engine/cuda/quant_format.h"
#include "engine/exec_context.h"
#include "engine/ops.h"
#include "tests/engine/on_device.h"
#include "tests/gpu.h"
#include "tests/random.h"
#include "tests/worse.h"

using namespace inkling;
using test::have_gpu;
using test::OnDevice;
using test::Random;

namespace {

constexpr WeightFormat kQuantised[] = {WeightFormat::int8, WeightFormat::int4};

/// What a packed matrix stands for, (K, N) in rows.
std::vector<float> unpacked(ExecContext& context, const PackedMatrix& packed) {
  std::vector<float> all(static_cast<std::size_t>(packed.k * packed.n)),
      column(static_cast<std::size_t>(packed.k));
  for (std::int64_t n = 0; n < packed.n; ++n) {
    unpack_column(context, packed, n, column.data());
    for (std::int64_t k = 0; k < packed.k; ++k) {
      all[static_cast<std::size_t>(k * packed.n + n)] = column[static_cast<std::size_t>(k)];
    }
  }
  return all;
}

/// bf16 of each; every NaN is one.
std::vector<std::uint32_t> bits_as_bf16(std::vector<float> values) {
  std::vector<std::uint32_t> bits;
  for (const float v : values) {
    bits.push_back(std::isnan(v) ? 0x7fffffffu : std::bit_cast<std::uint32_t>(static_cast<float>(bf16(v))));
  }
  return bits;
}

}  // namespace

TEST_CASE("cuda: a row of integers as a GPU holds it, read by hand") {
  float out[70];
  // K = 70: 128 bytes of integers, one scale; rows are whole sectors of 32 bytes.
  const cuda::QuantMatrix eight(nullptr, WeightFormat::int8, 70, 3);
  CHECK(eight.numbers == 128);
  CHECK(eight.stride == 160);
  std::vector<std::byte> row(160);
  const f16 scale(0.5f), minimum(-1.0f), other(3.0f);
  for (int k = 0; k < 70; ++k) row[static_cast<std::size_t>(k)] = static_cast<std::byte>(100 + k);
  std::memcpy(row.data() + 128, &scale, 2);
  cuda::unpack_row(eight, row.data(), out);
  CHECK(out[0] == -14.0f);
  CHECK(out[28] == 0.0f);
  CHECK(out[69] == 20.5f);
  // 64 bytes of nibbles, the lower first; scale and minimum of two groups.
  const cuda::QuantMatrix four(nullptr, WeightFormat::int4, 70, 3);
  CHECK(four.numbers == 64);
  CHECK(four.stride == 96);
  CHECK(four.part(2, 1).data - four.data == 192);
  row.assign(96, std::byte{0x92});
  const f16 numbers[] = {scale, minimum, other, minimum};
  std::memcpy(row.data() + 64, numbers, 8);
  cuda::unpack_row(four, row.data(), out);
  CHECK(out[0] == 0.0f);
  CHECK(out[1] == 3.5f);
  CHECK(out[64] == 5.0f);
  CHECK(out[69] == 26.0f);
}

TEST_CASE("[cuda] integers of weights are the CPU's, whatever their magnitude, and no numbers stay none") {
  if (!have_gpu()) return;
  ExecContext gpu({.device = Device::cuda, .threads = 1}), cpu({.device = Device::cpu, .threads = 2});
  Random random(31);
  struct Shape {
    std::int64_t k, n;
  };
  for (const Shape shape : {Shape{64, 16}, {37, 51}, {768, 40}, {200, 7}, {130, 33}, {1, 5}}) {
    for (const float magnitude : {1e4f, 1.0f, 1e-2f, 1e-4f, 1e-6f}) {
      const auto [k, n] = shape;
      auto w = random.normals(k * n, magnitude);
      const float broken[] = {std::nanf(""), INFINITY, -INFINITY};
      if (n > 10) {
        for (std::int64_t i = 0; i < 3; ++i) w[static_cast<std::size_t>(k / 2 * n + 3 * i + 1)] = broken[i];
      }
      for (std::int64_t i = 0; i < k; ++i) w[static_cast<std::size_t>(i * n)] = magnitude;  // one value alone
      for (const WeightFormat format : kQuantised) {
        CAPTURE(k);
        CAPTURE(magnitude);
        CAPTURE(weight_format_name(format));
        const MatrixSource rows{w.data(), DType::f32, k, n, n, 1};
        const auto expected = bits_as_bf16(unpacked(cpu, pack(cpu, rows, format)));
        CHECK(bits_as_bf16(unpacked(gpu, pack(gpu, rows, format))) == expected);
        // As an embedding lies in a file, already on the device.
        std::vector<float> turned(w.size());
        for (std::int64_t i = 0; i < k * n; ++i) {
          turned[static_cast<std::size_t>(i % n * k + i / n)] = w[static_cast<std::size_t>(i)];
        }
        const OnDevice there(gpu, turned, n, k);
        const MatrixSource columns{there.data(), DType::f32, k, n, 1, k};
        CHECK(bits_as_bf16(unpacked(gpu, pack(gpu, columns, format))) == expected);
      }
    }
  }
}

TEST_CASE("[cuda] a product with integers has the bits of the bf16 matrix of what they stand for") {
  if (!have_gpu()) return;
  ExecContext context({.device = Device::cuda, .threads = 1});
  Random random(32);
  struct Shape {
    std::int64_t k, n;
  };
  for (const WeightFormat format : kQuantised) {
    for (const Shape shape :
         {Shape{64, 96}, {37, 51}, {768, 2304}, {768, 130}, {200, 7}, {3072, 40}, {768, 9001}}) {
      const auto [k, n] = shape;
      CAPTURE(weight_format_name(format));
      CAPTURE(k);
      CAPTURE(n);
      const auto weight = random.normals(k * n, 0.5), bias = random.normals(n), gain = random.normals(k),
                 shift = random.normals(k);
      const PackedMatrix packed = pack(context, {weight.data(), DType::f32, k, n, n, 1}, format);
      const auto values = unpacked(context, packed);
      const PackedMatrix same = pack(context, {values.data(), DType::f32, k, n, n, 1}, WeightFormat::bf16);
      CHECK(packed.bytes < same.bytes);
      const OnDevice db(context, bias, 1, n), dg(context, gain, 1, k), ds(context, shift, 1, k);

      constexpr std::int64_t kMost = 520;  // so many become bf16 in a workspace
      const auto x = random.normals(kMost * k), residual = random.normals(kMost * n);
      for (const DType from : {DType::f32, DType::bf16}) {
        std::vector<float> whole;
        for (const std::int64_t m : {kMost, std::int64_t{300}, std::int64_t{130}, std::int64_t{65},
                                     std::int64_t{64}, std::int64_t{17}, std::int64_t{16}, std::int64_t{9},
                                     std::int64_t{8}, std::int64_t{3}, std::int64_t{1}}) {
          CAPTURE(m);
          const OnDevice dx(context, {x.begin(), x.begin() + m * k}, m, k, from),
              dr(context, {residual.begin(), residual.begin() + m * n}, m, n);
          const auto product = [&](const PackedMatrix& w) {
            OnDevice out(context, std::vector<float>(static_cast<std::size_t>(m * n), NAN), m, n);
            LayerNorm norm;
            if (from == DType::f32) norm = {dg.data(), ds.data(), 1e-5f};
            linear(context,
                   {dx.view(), {}, norm, &w, db.data(), Activation::gelu_tanh, dr.view(), out.view()});
            return out.values();
          };
          const auto got = product(packed), expected = product(same);
          CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
          if (m == kMost) whole = got;
          CHECK(std::memcmp(got.data(), whole.data(), got.size() * sizeof(float)) == 0);
        }
        if (from == DType::f32) continue;
        std::vector<float> row(static_cast<std::size_t>(k)), expected(static_cast<std::size_t>(n));
        for (const std::int64_t i : {std::int64_t{0}, kMost - 1}) {
          for (std::int64_t c = 0; c < k; ++c) {
            row[static_cast<std::size_t>(c)] =
                static_cast<float>(bf16(x[static_cast<std::size_t>(i * k + c)]));
          }
          reference::linear(row, values, bias.data(), Activation::gelu_tanh, residual.data() + i * n,
                            expected);
          // The truncation of K/16 matrix instructions, as in cuda.cpp.
          const double terms = static_cast<double>(k);
          double worst = 0;
          for (std::int64_t c = 0; c < n; ++c) {
            worst = test::worse(worst, std::fabs(double{whole[static_cast<std::size_t>(i * n + c)]} -
                                                 double{expected[static_cast<std::size_t>(c)]}));
          }
          CHECK(worst <= 1e-5 + terms / 16 * 0x1p-23 * std::sqrt(terms));
        }
      }
    }
  }
}

TEST_CASE("[cuda] integers: chosen rows, the weights' own type, columns of a matrix, an embedding") {
  if (!have_gpu()) return;
  ExecContext context({.device = Device::cuda, .threads = 1});
  Random random(33);
  const std::int64_t m = 40, k = 96, n = 48;
  const auto x = random.normals(m * k), weight = random.normals(k * n, 0.2), places = random.normals(m * k);
  std::vector<std::int32_t> rows = {19, 0, 7, 39, 19, 1, 2, 3, 4, 5, 6, 8};
  const Buffer list = context.backend().allocate(rows.size() * sizeof(std::int32_t));
  context.backend().copy_in(list.data(), rows.data(), rows.size() * sizeof(std::int32_t));
  for (const WeightFormat format : kQuantised) {
    CAPTURE(weight_format_name(format));
    CHECK(context.backend().activation_dtype(format) == DType::bf16);
    const PackedMatrix packed = pack(context, {weight.data(), DType::f32, k, n, n, 1}, format);
    const auto values = unpacked(context, packed);
    const PackedMatrix same = pack(context, {values.data(), DType::f32, k, n, n, 1}, WeightFormat::bf16);
    const OnDevice dx(context, x, m, k), dp(context, places, m, k);
    const auto bits = [&](auto&& op, std::int64_t count, std::int64_t columns, DType dtype) {
      const auto by = [&](const PackedMatrix& w) {
        OnDevice out(context, std::vector<float>(static_cast<std::size_t>(count * columns), NAN), count,
                     columns, dtype);
        op(w, out.view());
        return out.values();
      };
      const auto got = by(packed), expected = by(same);
      CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
    };
    for (const std::size_t count : {std::size_t{3}, rows.size()}) {
      const std::span chosen(reinterpret_cast<const std::int32_t*>(list.data()), count);
      const auto some = static_cast<std::int64_t>(count);
      bits(
          [&](const PackedMatrix& w, const TensorView& out) {
            linear(context, {dx.view(), chosen, {}, &w, nullptr, Activation::none, {}, out});
          },
          some, n, DType::bf16);
      bits(
          [&](const PackedMatrix& w, const TensorView& out) {
            embed(context, {chosen, chosen, &w, {}, dp.view(), out});
          },
          some, k, DType::f32);
      // The last 13 columns, as a matrix in the same memory.
      bits(
          [&](const PackedMatrix& w, const TensorView& out) {
            PackedMatrix part;
            part.format = w.format;
            part.device = w.device;
            part.isa = w.isa;
            part.k = k;
            part.n = 13;
            part.panel = w.panel;
            part.panel_bytes = w.panel_bytes;
            part.data = w.panel_data(n - 13);
            part.bytes = 13 * w.panel_bytes;
            linear(context, {dx.view(), chosen, {}, &part, nullptr, Activation::none, {}, out});
          },
          some, 13, DType::f32);
    }
  }
}
