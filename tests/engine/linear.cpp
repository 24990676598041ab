// Packed products against the naive oracle, for every instruction set of this machine and every format; and
// their signature: the same bits whatever the number of rows and threads.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "engine/cpu/reference.h"
#include "engine/exec_context.h"
#include "engine/ops.h"
#include "tests/random.h"

using namespace inkling;
using test::Random;

namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::f32, WeightFormat::f16, WeightFormat::bf16,
                                     WeightFormat::int8, WeightFormat::int4};

TensorView view(std::vector<float>& data, std::int64_t rows, std::int64_t columns) {
  return TensorView(data.data(), DType::f32, {rows, columns});
}

// What the kernels really multiply with.
std::vector<float> unpacked(ExecContext& context, const PackedMatrix& w) {
  std::vector<float> all(static_cast<std::size_t>(w.k * w.n)), column(static_cast<std::size_t>(w.k));
  for (std::int64_t n = 0; n < w.n; ++n) {
    unpack_column(context, w, n, column.data());
    for (std::int64_t k = 0; k < w.k; ++k)
      all[static_cast<std::size_t>(k * w.n + n)] = column[static_cast<std::size_t>(k)];
  }
  return all;
}

// What the kernels make of a row of activations before they multiply: bf16 where vdpbf16ps does the work,
// bytes with a scale per group for quantised weights. With these in the oracle's hands only f32 rounding is
// left to tolerate.
std::vector<float> prepared(std::span<const float> row, Isa isa, WeightFormat format) {
  std::vector<float> out(row.begin(), row.end());
  if (format == WeightFormat::bf16 && isa == Isa::avx512_bf16) {
    for (float& v : out) v = static_cast<float>(bf16(v));
  }
  const auto group = static_cast<std::size_t>(group_size(format));
  for (std::size_t begin = 0; group != 0 && begin < out.size(); begin += group) {
    const auto part = std::span(out).subspan(begin, std::min(group, out.size() - begin));
    float top = 0.0f;
    for (const float v : part) top = std::max(top, std::fabs(v));
    const float scale = top / 127.0f, inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (float& v : part) v = std::nearbyint(v * inverse) * scale;
  }
  return out;
}

// In units of Σ|x||w|: K roundings of 2^-24 that average out.
double tolerance(std::int64_t k) {
  return 1e-7 * (2.0 + std::sqrt(static_cast<double>(k)));
}

}  // namespace

TEST_CASE("linear equals the oracle on every ISA, format and awkward shape") {
  struct Shape {
    std::int64_t m, k, n;
  };
  const Shape shapes[] = {{1, 1, 1},    {1, 48, 144},   {2, 63, 65},   {3, 64, 64},
                          {7, 130, 50}, {13, 257, 100}, {130, 96, 200}};
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 2, .isa = isa});
    for (const WeightFormat format : kFormats) {
      for (const Shape s : shapes) {
        CAPTURE(isa_name(isa));
        CAPTURE(weight_format_name(format));
        CAPTURE(s.m);
        CAPTURE(s.k);
        CAPTURE(s.n);
        Random random(static_cast<std::uint64_t>(s.m * 1000 + s.n));
        const auto w = random.normals(s.k * s.n, 0.5);
        auto x = random.normals(s.m * s.k);
        const auto bias = random.normals(s.n), residual0 = random.normals(s.m * s.n);
        const PackedMatrix packed = pack(context, {w.data(), DType::f32, s.k, s.n, s.n, 1}, format);
        CHECK(packed.bytes == packed_nbytes(context, s.k, s.n, format));
        const auto effective = unpacked(context, packed);
        for (const Activation act : {Activation::none, Activation::gelu_tanh}) {
          auto out = residual0;  // residual and out are the same memory, as in the model
          linear(context, {view(x, s.m, s.k),
                           {},
                           {},
                           &packed,
                           bias.data(),
                           act,
                           view(out, s.m, s.n),
                           view(out, s.m, s.n)});
          std::vector<float> expected(static_cast<std::size_t>(s.n));
          for (std::int64_t m = 0; m < s.m; ++m) {
            const std::vector<float> row = prepared(
                std::span(x).subspan(static_cast<std::size_t>(m * s.k), static_cast<std::size_t>(s.k)), isa,
                format);
            reference::linear(row, effective, bias.data(), act, residual0.data() + m * s.n, expected);
            for (std::int64_t n = 0; n < s.n; ++n) {
              double scale = 1.0;
              for (std::int64_t k = 0; k < s.k; ++k) {
                scale += std::fabs(double{row[static_cast<std::size_t>(k)]} *
                                   effective[static_cast<std::size_t>(k * s.n + n)]);
              }
              REQUIRE(std::fabs(out[static_cast<std::size_t>(m * s.n + n)] -
                                expected[static_cast<std::size_t>(n)]) <= scale * tolerance(s.k));
            }
          }
        }
      }
    }
  }
}

TEST_CASE("a row's bits depend on nothing but the row: rows, threads, gather, norm, both file layouts") {
  const std::int64_t k = 192, n = 150, most = 131;
  Random random(9);
  auto x = random.normals(most * k);
  const auto w = random.normals(k * n, 0.1), bias = random.normals(n), gamma = random.normals(k),
             beta = random.normals(k);
  std::vector<float> transposed(w.size());
  for (std::int64_t i = 0; i < k; ++i) {
    for (std::int64_t j = 0; j < n; ++j)
      transposed[static_cast<std::size_t>(j * k + i)] = w[static_cast<std::size_t>(i * n + j)];
  }
  for (const Isa isa : supported_isas()) {
    for (const WeightFormat format : kFormats) {
      CAPTURE(isa_name(isa));
      CAPTURE(weight_format_name(format));
      std::vector<float> alone(static_cast<std::size_t>(most * n));
      for (const int threads : {1, 2, 3}) {
        ExecContext context({.threads = threads, .isa = isa});
        const MatrixSource in_out{w.data(), DType::f32, k, n, n, 1},
            out_in{transposed.data(), DType::f32, k, n, 1, k};
        const PackedMatrix packed = pack(context, threads == 2 ? out_in : in_out, format);
        const LayerNorm norm{gamma.data(), beta.data(), 1e-5f};
        if (threads == 1) {
          for (std::int64_t m = 0; m < most; ++m) {
            TensorView row(x.data() + m * k, DType::f32, {1, k}),
                out(alone.data() + m * n, DType::f32, {1, n});
            linear(context, {row, {}, norm, &packed, bias.data(), Activation::gelu_erf, {}, out});
          }
        }
        for (const std::int64_t rows : {2, 3, 5, 6, 7, 8, 13, 64, 131}) {
          std::vector<float> out(static_cast<std::size_t>(rows * n));
          std::vector<std::int32_t> order;
          for (std::int64_t i = 0; i < rows; ++i)
            order.push_back(static_cast<std::int32_t>((i * 37 + rows) % most));
          linear(context, {view(x, most, k),
                           order,
                           norm,
                           &packed,
                           bias.data(),
                           Activation::gelu_erf,
                           {},
                           view(out, rows, n)});
          for (std::int64_t i = 0; i < rows; ++i) {
            REQUIRE(std::memcmp(out.data() + i * n, alone.data() + order[static_cast<std::size_t>(i)] * n,
                                static_cast<std::size_t>(n) * sizeof(float)) == 0);
          }
        }
      }
    }
  }
}

TEST_CASE("linear says what is wrong with its arguments") {
  ExecContext context({.threads = 1});
  Random random(1);
  const auto w = random.normals(12);
  auto x = random.normals(8), out = random.normals(6);
  const PackedMatrix packed = pack(context, {w.data(), DType::f32, 4, 3, 3, 1}, WeightFormat::f32);
  CHECK_THROWS_WITH_AS(
      linear(context, {view(x, 2, 4), {}, {}, &packed, nullptr, Activation::none, {}, view(out, 3, 2)}),
      "linear: out: expected [2, 3], got [3, 2]", Error);
  const std::int32_t bad[] = {0, 2};
  CHECK_THROWS_WITH_AS(
      linear(context, {view(x, 2, 4), bad, {}, &packed, nullptr, Activation::none, {}, view(out, 2, 3)}),
      "linear: rows: expected indices below 2, got 2", Error);
  CHECK_THROWS_AS(
      linear(context, {view(x, 4, 2), {}, {}, &packed, nullptr, Activation::none, {}, view(out, 2, 3)}),
      Error);
  CHECK_THROWS_AS((void)pack(context, {w.data(), DType::i32, 4, 3, 3, 1}, WeightFormat::f32), Error);
}

TEST_CASE("a matrix packed for other kernels is refused by every op that reads it") {
  if (supported_isas().size() < 2) {
    MESSAGE("SKIPPED: this machine has one instruction set");
    return;
  }
  ExecContext here({.threads = 1, .isa = supported_isas()[0]}),
      there({.threads = 1, .isa = supported_isas()[1]});
  std::vector<float> w(12), x(4), out(4), positions(4);
  const PackedMatrix packed = pack(there, {w.data(), DType::f32, 4, 3, 3, 1}, WeightFormat::f32);
  const std::string got = ": expected the layout of cpu " + std::string(isa_name(here.isa())) +
                          ", got that of cpu " + std::string(isa_name(there.isa()));
  CHECK_THROWS_WITH_AS(
      linear(here, {view(x, 1, 4), {}, {}, &packed, nullptr, Activation::none, {}, view(out, 1, 3)}),
      ("linear: weight" + got).c_str(), Error);
  const std::int32_t zero[] = {0};
  CHECK_THROWS_WITH_AS(embed(here, {zero, zero, &packed, {}, view(positions, 1, 4), view(out, 1, 4)}),
                       ("embed: token_table" + got).c_str(), Error);
  CHECK_THROWS_WITH_AS(unpack_column(here, packed, 0, out.data()), ("unpack_column: matrix" + got).c_str(),
                       Error);
}

TEST_CASE("a matrix packed on the way gives the bits of one packed before, in either orientation") {
  struct Shape {
    std::int64_t m, k, n;
  };
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 3, .isa = isa});
    for (const Shape s : {Shape{1, 1, 1}, {3, 300, 65}, {7, 16, 16}, {130, 257, 200}, {500, 513, 33}}) {
      CAPTURE(isa_name(isa));
      CAPTURE(s.m);
      Random random(21);
      auto x = random.normals(s.m * s.k), w = random.normals(s.k * s.n), turned = w;
      const auto gamma = random.normals(s.k), bias = random.normals(s.n);
      auto residual = random.normals(s.m * s.n);
      for (std::int64_t k = 0; k < s.k; ++k) {
        for (std::int64_t n = 0; n < s.n; ++n) {
          turned[static_cast<std::size_t>(n * s.k + k)] = w[static_cast<std::size_t>(k * s.n + n)];
        }
      }
      std::vector<std::int32_t> backwards;
      for (std::int64_t m = s.m; m-- > 0;) backwards.push_back(static_cast<std::int32_t>(m));
      for (const WeightFormat format : {WeightFormat::f32, WeightFormat::bf16}) {
        const PackedMatrix packed = pack(context, {w.data(), DType::f32, s.k, s.n, s.n, 1}, format);
        for (const bool plain : {true, false}) {
          std::vector<float> want(residual.size()), got(residual.size());
          LinearArgs args;
          args.x = view(x, s.m, s.k);
          if (!plain) {
            args.rows = backwards;
            args.norm = {gamma.data(), nullptr, 1e-5f};
            args.bias = bias.data();
            args.activation = Activation::gelu_tanh;
            args.residual = view(residual, s.m, s.n);
          }
          args.weight = &packed;
          args.out = view(want, s.m, s.n);
          linear(context, args);
          args.weight = nullptr;
          args.matrix_format = format;
          args.out = view(got, s.m, s.n);
          args.matrix = view(w, s.k, s.n);
          linear(context, args);
          CHECK(got == want);
          args.matrix = view(turned, s.k, s.n);
          args.matrix.stride = {1, s.k, 0, 0};
          linear(context, args);
          CHECK(got == want);
        }
      }
    }
  }
}

TEST_CASE("a single input per row is read by rows, whatever the stride of columns says") {
  for (const Isa isa : supported_isas()) {
    ExecContext context({.threads = 2, .isa = isa});
    for (const std::int64_t m : {1, 3, 13}) {
      const std::int64_t n = 70;
      Random random(31);
      auto wide = random.normals(m * 3), w = random.normals(n);
      const PackedMatrix packed = pack(context, {w.data(), DType::f32, 1, n, n, 1}, WeightFormat::f32);
      for (const std::int64_t row_stride : {1, 3}) {
        for (const bool on_the_way : {false, true}) {
          CAPTURE(isa_name(isa));
          CAPTURE(m);
          CAPTURE(row_stride);
          CAPTURE(on_the_way);
          std::vector<float> out(static_cast<std::size_t>(m * n));
          LinearArgs args;
          args.x = view(wide, m, 1);
          args.x.stride = {row_stride, m, 0, 0};
          args.out = view(out, m, n);
          if (on_the_way) {
            args.matrix = view(w, 1, n);
          } else {
            args.weight = &packed;
          }
          linear(context, args);
          for (std::int64_t i = 0; i < m; ++i) {
            for (std::int64_t j = 0; j < n; ++j) {
              REQUIRE(out[static_cast<std::size_t>(i * n + j)] ==
                      wide[static_cast<std::size_t>(i * row_stride)] * w[static_cast<std::size_t>(j)]);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("a matrix to be packed on the way is refused by name") {
  ExecContext context({.threads = 1});
  std::vector<float> x(6), w(8), out(12);
  const PackedMatrix packed = pack(context, {w.data(), DType::f32, 2, 4, 4, 1}, WeightFormat::f32);
  LinearArgs args;
  args.x = view(x, 3, 2);
  args.out = view(out, 3, 4);
  const auto refused = [&](const char* message) {
    CHECK_THROWS_WITH_AS(linear(context, args), message, Error);
  };
  refused("linear: weight: expected a packed matrix, got null");
  args.matrix = TensorView(w.data(), DType::f32, {8});
  refused("linear: matrix: expected f32 (K, N) above zero, got f32 [8]");
  args.matrix = view(w, 2, 4);
  args.matrix_format = WeightFormat::int4;
  refused("linear: matrix_format: expected f32 or bf16, got int4");
  args.matrix_format = WeightFormat::f32;
  CHECK_NOTHROW(linear(context, args));
  args.weight = &packed;
  refused("linear: matrix: expected nothing beside weight, got [2, 4]");
}
