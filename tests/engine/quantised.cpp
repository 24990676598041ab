// int8 and int4: what the formats keep of weights of any magnitude, and of values that are no numbers.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "engine/exec_context.h"
#include "engine/ops.h"
#include "tests/random.h"

using namespace inkling;
using test::Random;

namespace {

constexpr WeightFormat kQuantised[] = {WeightFormat::int8, WeightFormat::int4};

// A column of the matrix of K × N, as given and as kept.
struct Column {
  std::vector<float> given, kept;
};

Column column_of(ExecContext& context, const std::vector<float>& w, const PackedMatrix& packed,
                 std::int64_t j) {
  Column column{std::vector<float>(static_cast<std::size_t>(packed.k)),
                std::vector<float>(static_cast<std::size_t>(packed.k))};
  for (std::int64_t i = 0; i < packed.k; ++i) {
    column.given[static_cast<std::size_t>(i)] = w[static_cast<std::size_t>(i * packed.n + j)];
  }
  unpack_column(context, packed, j, column.kept.data());
  return column;
}

}  // namespace

TEST_CASE("quantised weights stay within the bound of packed_matrix.h, whatever their magnitude") {
  const std::int64_t k = 200, n = 70;
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 1, .isa = isa});
    for (const float magnitude : {1e4f, 1.0f, 1e-1f, 1e-2f, 1e-3f, 1e-4f, 1e-5f, 1e-7f}) {
      Random random(5);
      const auto w = random.normals(k * n, magnitude);
      for (const WeightFormat format : kQuantised) {
        CAPTURE(isa_name(isa));
        CAPTURE(magnitude);
        CAPTURE(weight_format_name(format));
        const PackedMatrix packed = pack(context, {w.data(), DType::f32, k, n, n, 1}, format);
        const auto group = static_cast<std::size_t>(group_size(format));
        for (std::int64_t j = 0; j < n; ++j) {
          const Column column = column_of(context, w, packed, j);
          for (std::size_t begin = 0; begin < column.given.size(); begin += group) {
            const auto part =
                std::span(column.given).subspan(begin, std::min(group, column.given.size() - begin));
            const auto [low, high] = std::ranges::minmax(part);
            const float top = std::max(std::fabs(low), std::fabs(high));
            const bool bytes = format == WeightFormat::int8;
            const float step = bytes ? top / 127.0f : (high - low) / 15.0f;
            const float floor = (bytes ? 128.0f : 16.0f) * 0x1p-25f;
            for (std::size_t i = 0; i < part.size(); ++i) {
              REQUIRE(std::fabs(column.kept[begin + i] - part[i]) <= 0.5f * step + top * 0x1p-10f + floor);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("a weight that is no number shows in its column, and in no other") {
  const std::int64_t k = 200, n = 70;
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 1, .isa = isa});
    for (const float broken : {std::nanf(""), INFINITY, -INFINITY}) {
      Random random(6);
      auto w = random.normals(k * n, 0.1), x = random.normals(k), out = random.normals(n);
      w[static_cast<std::size_t>(150 * n + 33)] = broken;
      for (const WeightFormat format : kQuantised) {
        CAPTURE(isa_name(isa));
        CAPTURE(broken);
        CAPTURE(weight_format_name(format));
        const PackedMatrix packed = pack(context, {w.data(), DType::f32, k, n, n, 1}, format);
        linear(context, {TensorView(x.data(), DType::f32, {1, k}),
                         {},
                         {},
                         &packed,
                         nullptr,
                         Activation::none,
                         {},
                         TensorView(out.data(), DType::f32, {1, n})});
        for (std::int64_t j = 0; j < n; ++j) {
          REQUIRE(std::isfinite(out[static_cast<std::size_t>(j)]) == (j != 33));
        }
      }
    }
  }
}

TEST_CASE("an activation that is no number shows in every output of its row, and in no other row") {
  const std::int64_t k = 300, n = 70;
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 2, .isa = isa});
    for (const std::int64_t rows : {2, 7}) {
      for (const float broken : {std::nanf(""), INFINITY, -INFINITY}) {
        for (const std::int64_t at : {0, 5, 127, 200, 299}) {
          Random random(7);
          const auto w = random.normals(k * n, 0.1);
          auto x = random.normals(rows * k), out = random.normals(rows * n);
          x[static_cast<std::size_t>(k + at)] = broken;
          for (const WeightFormat format : kQuantised) {
            CAPTURE(isa_name(isa));
            CAPTURE(rows);
            CAPTURE(broken);
            CAPTURE(at);
            CAPTURE(weight_format_name(format));
            const PackedMatrix packed = pack(context, {w.data(), DType::f32, k, n, n, 1}, format);
            linear(context, {TensorView(x.data(), DType::f32, {rows, k}),
                             {},
                             {},
                             &packed,
                             nullptr,
                             Activation::none,
                             {},
                             TensorView(out.data(), DType::f32, {rows, n})});
            for (std::int64_t i = 0; i < rows * n; ++i) {
              REQUIRE(std::isnan(out[static_cast<std::size_t>(i)]) == (i / n == 1));
            }
          }
        }
      }
    }
  }
}
