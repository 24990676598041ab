// The plain ops on a GPU against the naive oracle, and their signature: a row's bits do not depend on the
// other rows. Where no GPU can be used each case says so and checks nothing. Above 400 lines: one product,
// whose kernels are held to each other.
#include "engine/cuda/cuda.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <vector>

#include "engine/cpu/draw.h"
#include "engine/cpu/reference.h"
#include "engine/cuda/hopper_tiles.h"
#include "engine/exec_context.h"
#include "engine/ops.h"
#include "tests/draw_case.h"
#include "tests/engine/on_device.h"
#include "tests/engine/top_case.h"
#include "tests/gpu.h"
#include "tests/random.h"
#include "tests/worse.h"

using namespace inkling;
using test::have_gpu;
using test::OnDevice;
using test::Random;

namespace {

constexpr WeightFormat kFloats[] = {WeightFormat::f32, WeightFormat::f16, WeightFormat::bf16};

float rounded(float x, WeightFormat format) {
  if (format == WeightFormat::bf16) return static_cast<float>(bf16(x));
  if (format == WeightFormat::f16) return static_cast<float>(f16(x));
  return x;
}

void check_device_draws(std::int64_t columns) {
  ExecContext context({.device = Device::cuda, .threads = 1});
  Backend& backend = context.backend();
  const auto draw_of = [&](const std::vector<float>& rows, std::int64_t n,
                           const std::vector<DrawSettings>& settings) {
    const OnDevice logits(context, rows, static_cast<std::int64_t>(rows.size()) / n, n);
    std::vector<std::int32_t> ids(settings.size());
    const Buffer list = backend.allocate(settings.size() * sizeof(DrawSettings)),
                 drawn = backend.allocate(ids.size() * sizeof(std::int32_t));
    backend.copy_in(list.data(), settings.data(), list.size());
    draw(context,
         {logits.view(), reinterpret_cast<const DrawSettings*>(list.data()),
          static_cast<std::int64_t>(settings.size()), reinterpret_cast<std::int32_t*>(drawn.data())});
    backend.copy_out(ids.data(), drawn.data(), drawn.size());
    return ids;
  };
  test::check_draws(columns, draw_of, [](const std::vector<float>& row, const DrawSettings& one) {
    return draw_from(row, one);
  });
}

}  // namespace

TEST_CASE("[cuda] linear is the oracle's, and a row's bits are its own") {
  if (!have_gpu()) return;
  ExecContext context({.device = Device::cuda, .threads = 1});
  Random random(3);
  struct Shape {
    std::int64_t k, n;
  };
  for (const WeightFormat format : kFloats) {
    for (const Shape shape : {Shape{64, 96}, {37, 51}, {768, 130}, {200, 7}, {3072, 40}}) {
      const auto [k, n] = shape;
      CAPTURE(weight_format_name(format));
      CAPTURE(k);
      const auto weight = random.normals(k * n, 0.5), bias = random.normals(n);
      const PackedMatrix packed = pack(context, {weight.data(), DType::f32, k, n, n, 1}, format);
      OnDevice device_bias(context, bias, 1, n);
      std::vector<float> all_weights(weight);
      for (float& w : all_weights) w = rounded(w, format);
      std::vector<float> column(static_cast<std::size_t>(k));
      unpack_column(context, packed, n - 1, column.data());
      for (std::int64_t i = 0; i < k; ++i) {
        CHECK(column[static_cast<std::size_t>(i)] == all_weights[static_cast<std::size_t>(i * n + n - 1)]);
      }

      constexpr std::int64_t kMost = 300;
      const auto x = random.normals(kMost * k), residual = random.normals(kMost * n);
      std::vector<float> whole;
      for (const std::int64_t m : {kMost, std::int64_t{130}, std::int64_t{65}, std::int64_t{64},
                                   std::int64_t{17}, std::int64_t{16}, std::int64_t{3}, std::int64_t{1}}) {
        CAPTURE(m);
        const std::vector<float> some(x.begin(), x.begin() + m * k);
        OnDevice dx(context, some, m, k), dr(context, {residual.begin(), residual.begin() + m * n}, m, n);
        OnDevice out(context, std::vector<float>(static_cast<std::size_t>(m * n)), m, n);
        linear(
            context,
            {dx.view(), {}, {}, &packed, device_bias.data(), Activation::gelu_tanh, dr.view(), out.view()});
        const auto got = out.values();
        if (m == kMost) {
          whole = got;
          std::vector<float> row(static_cast<std::size_t>(k)), expected(static_cast<std::size_t>(n));
          for (std::int64_t i = 0; i < m; i += 37) {
            for (std::int64_t c = 0; c < k; ++c) {
              row[static_cast<std::size_t>(c)] = rounded(x[static_cast<std::size_t>(i * k + c)], format);
            }
            reference::linear(row, all_weights, bias.data(), Activation::gelu_tanh, residual.data() + i * n,
                              expected);
            // A matrix instruction truncates its sum: K/16 of them lose up to 2^-23 of a partial sum each,
            // which is some ±2 times its deviation 0.5·√K. f32 has twice the steps and half the loss, for it
            // rounds.
            const double terms = static_cast<double>(k);
            const double tolerance = 1e-5 + terms / 16 * 0x1p-23 * std::sqrt(terms);
            for (std::int64_t c = 0; c < n; ++c) {
              CHECK(std::fabs(got[static_cast<std::size_t>(i * n + c)] -
                              expected[static_cast<std::size_t>(c)]) <= tolerance);
            }
          }
        }
        CHECK(std::memcmp(got.data(), whole.data(), got.size() * sizeof(float)) == 0);
      }
    }
  }
}

namespace {

/// A product by each of kHopperTiles, in their order.
struct HopperCase {
  std::int64_t m, n, k;
};
constexpr HopperCase kHopperCases[] = {{1024, 3072, 768}, {1024, 2304, 768}, {512, 4096, 768},
                                       {512, 3072, 768},  {512, 2304, 768},  {1024, 768, 3072},
                                       {512, 768, 768},   {130, 768, 3072}};

}  // namespace

TEST_CASE("cuda: each tile of wgmma is the choice for some product") {
  REQUIRE(std::size(kHopperCases) == std::size(cuda::kHopperTiles));
  for (std::size_t i = 0; i < std::size(kHopperCases); ++i) {
    const auto [m, n, k] = kHopperCases[i];
    CHECK(cuda::hopper_tile(m, n, k) == static_cast<int>(i));
  }
}

TEST_CASE("[cuda] every tile of wgmma gives the bits of eight rows, which are the oracle's") {
  if (!have_gpu()) return;
  ExecContext context({.device = Device::cuda, .threads = 1});
  Random random(23);
  for (const WeightFormat format : {WeightFormat::bf16, WeightFormat::f16}) {
    const DType half = context.backend().activation_dtype(format);
    for (const auto [m, n, k] : kHopperCases) {
      CAPTURE(weight_format_name(format));
      CAPTURE(m);
      CAPTURE(n);
      CAPTURE(k);
      const auto x = random.normals(m * k), residual = random.normals(m * n), bias = random.normals(n);
      auto weight = random.normals(k * n, 0.5);
      const PackedMatrix packed = pack(context, {weight.data(), DType::f32, k, n, n, 1}, format);
      OnDevice db(context, bias, 1, n);
      const auto rows_from = [&](std::int64_t first, std::int64_t count) {
        OnDevice dx(context, {x.begin() + first * k, x.begin() + (first + count) * k}, count, k, half),
            dr(context, {residual.begin() + first * n, residual.begin() + (first + count) * n}, count, n),
            out(context, std::vector<float>(static_cast<std::size_t>(count * n)), count, n);
        linear(context,
               {dx.view(), {}, {}, &packed, db.data(), Activation::gelu_tanh, dr.view(), out.view()});
        return out.values();
      };
      const auto all = rows_from(0, m);
      // Rows of each tile's first and last part, and of the last tile.
      for (const std::int64_t first :
           {std::int64_t{0}, std::int64_t{56}, std::min(std::int64_t{124}, m - 8), m - 8}) {
        CAPTURE(first);
        const auto few = rows_from(first, 8);
        CHECK(std::memcmp(few.data(), all.data() + first * n, few.size() * sizeof(float)) == 0);
      }
      for (float& w : weight) w = rounded(w, format);
      std::vector<float> row(static_cast<std::size_t>(k)), expected(static_cast<std::size_t>(n));
      const double terms = static_cast<double>(k), tolerance = 1e-5 + terms / 16 * 0x1p-23 * std::sqrt(terms);
      for (const std::int64_t i : {std::int64_t{0}, m - 1}) {
        for (std::int64_t c = 0; c < k; ++c) {
          row[static_cast<std::size_t>(c)] = rounded(x[static_cast<std::size_t>(i * k + c)], format);
        }
        reference::linear(row, weight, bias.data(), Activation::gelu_tanh, residual.data() + i * n, expected);
        double worst = 0;
        for (std::int64_t c = 0; c < n; ++c) {
          worst = test::worse(worst, std::fabs(double{all[static_cast<std::size_t>(i * n + c)]} -
                                               double{expected[static_cast<std::size_t>(c)]}));
        }
        CHECK(worst <= tolerance);
      }
    }
  }
}

// Tiles of 64 columns for 132 processors two by two, two more and the last one cut short. Of k a part of a
// step, and so much that the ring is short.
TEST_CASE("[cuda] very many columns: a few rows have the bits of many, which are the oracle's") {
  if (!have_gpu()) return;
  ExecContext context({.device = Device::cuda, .threads = 1});
  Random random(29);
  constexpr std::int64_t n = 17003, wide = n + 1, most = 65;  // the last column is not the product's
  for (const WeightFormat format : {WeightFormat::bf16, WeightFormat::f16}) {
    const DType half = context.backend().activation_dtype(format);
    for (const std::int64_t k : {768, 1280, 40, 100}) {  // rows of 100 are in no pieces of 16 bytes
      CAPTURE(weight_format_name(format));
      CAPTURE(k);
      const auto x = random.normals(most * k);
      auto weight = random.normals(k * n, 0.5);
      const PackedMatrix packed = pack(context, {weight.data(), DType::f32, k, n, n, 1}, format);
      const auto rows_of = [&](std::int64_t m) {
        OnDevice dx(context, {x.begin(), x.begin() + m * k}, m, k, half),
            out(context, std::vector<float>(static_cast<std::size_t>(m * wide), NAN), m, wide);
        TensorView columns = out.view();
        columns.shape[1] = n;
        linear(context, {dx.view(), {}, {}, &packed, nullptr, Activation::none, {}, columns});
        return out.values();
      };
      const auto all = rows_of(most);
      for (const std::int64_t m : {1, 5, 16, 17, 64}) {
        CAPTURE(m);
        const auto some = rows_of(m);
        CHECK(std::memcmp(some.data(), all.data(), some.size() * sizeof(float)) == 0);
      }
      for (float& w : weight) w = rounded(w, format);
      std::vector<float> row(static_cast<std::size_t>(k)), expected(static_cast<std::size_t>(n));
      for (std::int64_t c = 0; c < k; ++c)
        row[static_cast<std::size_t>(c)] = rounded(x[static_cast<std::size_t>(c)], format);
      reference::linear(row, weight, nullptr, Activation::none, nullptr, expected);
      const double terms = static_cast<double>(k), tolerance = 1e-5 + terms / 16 * 0x1p-23 * std::sqrt(terms);
      double worst = 0;
      for (std::size_t c = 0; c < expected.size(); ++c)
        worst = test::worse(worst, std::fabs(double{all[c]} - double{expected[c]}));
      CHECK(worst <= tolerance);
      CHECK(std::isnan(all[n]));
    }
  }
}

// Ops begin while those before them end (engine/cuda/chain.cuh): each round reads what the last one wrote.
TEST_CASE("[cuda] ops that follow each other at once give the bits of ops that were waited for") {
  if (!have_gpu()) return;
  ExecContext context({.device = Device::cuda, .threads = 1});
  Backend& backend = context.backend();
  Random random(24);
  constexpr std::int64_t width = 256, inner = 1024;
  const auto w1 = random.normals(width * inner, 0.05), w2 = random.normals(inner * width, 0.05),
             gain = random.normals(width), shift = random.normals(width);
  OnDevice dg(context, gain, 1, width), ds(context, shift, 1, width);
  const LayerNorm norm{dg.data(), ds.data(), 1e-5f};
  for (const WeightFormat format : kFloats) {
    CAPTURE(weight_format_name(format));
    const DType half = backend.activation_dtype(format);
    const PackedMatrix up = pack(context, {w1.data(), DType::f32, width, inner, inner, 1}, format),
                       down = pack(context, {w2.data(), DType::f32, inner, width, width, 1}, format);
    for (const std::int64_t m : {1, 7, 16, 40, 200}) {
      CAPTURE(m);
      const auto x = random.normals(m * width);
      const auto run = [&](bool waits) {
        OnDevice stream(context, x, m, width), rows(context, x, m, width),
            wide(context, std::vector<float>(static_cast<std::size_t>(m * inner)), m, inner, half);
        const auto end_of_op = [&] {
          if (waits) backend.synchronise();
        };
        for (int round = 0; round < 12; ++round) {
          linear(context, {stream.view(), {}, norm, &up, nullptr, Activation::gelu_tanh, {}, wide.view()});
          end_of_op();
          linear(context,
                 {wide.view(), {}, {}, &down, ds.data(), Activation::none, stream.view(), rows.view()});
          end_of_op();
          layer_norm(context, {rows.view(), {}, norm, stream.view()});
          end_of_op();
        }
        return stream.values();
      };
      const auto expected = run(true);
      for (int again = 0; again < 3; ++again) {
        const auto got = run(false);
        CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("[cuda] linear takes chosen rows through a norm, and writes the weights' own type") {
  if (!have_gpu()) return;
  ExecContext context({.device = Device::cuda, .threads = 1});
  Random random(4);
  const std::int64_t m = 20, k = 96, n = 48;
  const auto x = random.normals(m * k), weight = random.normals(k * n, 0.2), gain = random.normals(k),
             shift = random.normals(k);
  const std::vector<std::int32_t> rows = {19, 0, 7};
  const Buffer list = context.backend().allocate(rows.size() * sizeof(std::int32_t));
  context.backend().copy_in(list.data(), rows.data(), rows.size() * sizeof(std::int32_t));
  const std::span on_device(reinterpret_cast<const std::int32_t*>(list.data()), rows.size());
  for (const WeightFormat format : kFloats) {
    CAPTURE(weight_format_name(format));
    const PackedMatrix packed = pack(context, {weight.data(), DType::f32, k, n, n, 1}, format);
    OnDevice dx(context, x, m, k), dg(context, gain, 1, k), ds(context, shift, 1, k);
    OnDevice out(context, std::vector<float>(static_cast<std::size_t>(3 * n)), 3, n,
                 context.backend().activation_dtype(format));
    linear(context, {dx.view(),
                     on_device,
                     {dg.data(), ds.data(), 1e-5f},
                     &packed,
                     nullptr,
                     Activation::none,
                     {},
                     out.view()});
    const auto got = out.values();
    std::vector<float> normed(static_cast<std::size_t>(k)), expected(static_cast<std::size_t>(n)), w(weight);
    for (float& v : w) v = rounded(v, format);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      reference::layer_norm(
          std::span(x).subspan(static_cast<std::size_t>(rows[i] * k), static_cast<std::size_t>(k)),
          {gain.data(), shift.data(), 1e-5f}, normed);
      // The output's own rounding is half a unit; each input of the norm that falls on the other side of a
      // rounding moves it by a unit of that input times a weight of 0.2, and few of 96 do.
      for (float& v : normed) v = rounded(v, format);
      reference::linear(normed, w, nullptr, Activation::none, nullptr, expected);
      const double unit = format == WeightFormat::f32 ? 1e-6 : format == WeightFormat::f16 ? 0x1p-10 : 0x1p-7;
      for (std::size_t c = 0; c < expected.size(); ++c) {
        CHECK(std::fabs(got[i * expected.size() + c] - expected[c]) <=
              2 * unit * (1.0 + std::fabs(expected[c])));
      }
    }
  }
}

TEST_CASE("[cuda] ops over rows are the oracle's") {
  if (!have_gpu()) return;
  ExecContext context({.device = Device::cuda, .threads = 1});
  Random random(5);
  for (const std::int64_t width : {1, 31, 256, 1000, 50257}) {
    CAPTURE(width);
    const std::int64_t m = 3;
    const auto x = random.normals(m * width, 3.0), gain = random.normals(width),
               shift = random.normals(width);
    const auto row = [&](std::int64_t i) {
      return std::vector<float>(x.begin() + i * width, x.begin() + (i + 1) * width);
    };
    const auto check = [&](OnDevice& got, auto&& oracle) {
      const auto values = got.values();
      for (std::int64_t i = 0; i < m; ++i) {
        const std::vector<float> expected = oracle(i);
        for (std::int64_t c = 0; c < width; ++c) {
          const float e = expected[static_cast<std::size_t>(c)];
          CHECK(std::fabs(values[static_cast<std::size_t>(i * width + c)] - e) <=
                2e-5 * (1.0 + std::fabs(e)));
        }
      }
    };
    OnDevice a(context, x, m, width), b(context, x, m, width), c(context, x, m, width),
        d(context, x, m, width);
    OnDevice dg(context, gain, 1, width), ds(context, shift, 1, width);
    softmax(context, a.view());
    check(a, [&](std::int64_t i) {
      auto r = row(i);
      return reference::softmax(r), r;
    });
    log_softmax(context, b.view());
    check(b, [&](std::int64_t i) {
      auto r = row(i);
      return reference::log_softmax(r), r;
    });
    activate(context, c.view(), Activation::gelu_erf);
    check(c, [&](std::int64_t i) {
      auto r = row(i);
      for (float& v : r) v = static_cast<float>(reference::activate(v, Activation::gelu_erf));
      return r;
    });
    const LayerNorm norm{gain.data(), shift.data(), 1e-5f}, on_device{dg.data(), ds.data(), 1e-5f};
    OnDevice out(context, x, m, width);
    layer_norm(context, {d.view(), {}, on_device, out.view()});
    if (width > 1) {
      check(out, [&](std::int64_t i) {
        std::vector<float> r(static_cast<std::size_t>(width));
        return reference::layer_norm(row(i), norm, r), r;
      });
    }
  }
  std::vector<float> nothing(70, -INFINITY);
  OnDevice hidden(context, nothing, 1, 70);
  softmax(context, hidden.view());
  for (const float v : hidden.values()) CHECK(v == 0.0f);
}

TEST_CASE("[cuda] top is the head of a stable sort") {
  if (!have_gpu()) return;
  ExecContext context({.device = Device::cuda, .threads = 1});
  test::check_top([&](const std::vector<float>& x, std::int64_t rows, std::int64_t k) {
    OnDevice dx(context, x, rows, static_cast<std::int64_t>(x.size()) / rows);
    OnDevice values(context, std::vector<float>(static_cast<std::size_t>(rows * k)), rows, k);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(rows * k));
    const Buffer list = context.backend().allocate(ids.size() * sizeof(std::int32_t));
    top(context, {dx.view(), values.view(), reinterpret_cast<std::int32_t*>(list.data())});
    context.backend().copy_out(ids.data(), list.data(), ids.size() * sizeof(std::int32_t));
    return std::pair(values.values(), ids);
  });
}

TEST_CASE("[cuda] a draw is the CPU's, on rows with ties, limits and every mix of cuts") {
  if (!have_gpu()) return;
  // First a row that with the kernel's own shared memory passes 48 KB, and without it does not: a larger one
  // would leave its permission behind.
  for (const std::int64_t n : {8192, 5000, 50257}) check_device_draws(n);
}

TEST_CASE("[cuda] a draw from short rows is the CPU's") {
  if (!have_gpu()) return;
  for (const std::int64_t n : {8, 1000, 1030}) check_device_draws(n);
}

TEST_CASE("[cuda] memory given back is taken again without the driver, and what is too much is refused") {
  if (!have_gpu()) return;
  ExecContext context({.device = Device::cuda, .threads = 1});
  Backend& backend = context.backend();
  std::vector<float> ones(1 << 20, 1.0f), read(ones.size());
  const bool pooled = backend.description().find("cudaMalloc()") == std::string::npos;
  const auto left_to_the_driver = [] { return cuda_devices().at(0).free_memory; };
  for (int round = 0; round < 50;
       ++round) {  // each reuses what the one before gave back in the stream's order
    std::size_t while_taken = 0;
    {
      OnDevice rows(context, ones, 1024, 1024);
      activate(context, rows.view(), Activation::relu);
      read = rows.values();
      REQUIRE(read == ones);
      while_taken = left_to_the_driver();
    }
    backend.synchronise();
    if (pooled) REQUIRE(left_to_the_driver() == while_taken);
  }
  try {
    const Buffer all = backend.allocate(std::size_t{1} << 45);
    FAIL("32 TiB were had");
  } catch (const Error& error) {
    CHECK(error.code() == Code::out_of_memory);
    CHECK(error.message().find(" bytes were needed, ") != std::string::npos);
  }
  OnDevice after(context, ones, 1024, 1024);
  CHECK(after.values() == ones);
}

TEST_CASE("cuda: a GPU that cannot be used is refused with its reason") {
  const std::string reason = cuda_unavailable_reason(99);
  REQUIRE(!reason.empty());
  try {
    const ExecContext context({.device = Device::cuda, .ordinal = 99});
    FAIL("no error");
  } catch (const Error& error) {
    CHECK(error.code() == Code::device);
    CHECK(std::string(error.what()).find(reason) != std::string::npos);
  }
  const ExecContext context({.device = Device::automatic, .ordinal = 99});
  CHECK(context.device() == Device::cpu);
}

TEST_CASE("[cuda] memory that is not there is refused") {
  if (!have_gpu()) return;
  ExecContext context({.device = Device::cuda, .threads = 1});
  CHECK_THROWS_AS(context.backend().allocate(std::size_t{1} << 50), Error);
}
