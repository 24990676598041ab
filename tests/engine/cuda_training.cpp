// The training ops on a GPU against those on the CPU, whose oracles are in training_ops.cpp and backward.cpp.
// Where no GPU can be used each case says so and checks nothing.
// Above 400 lines: one case an op, all over the same random operands and comparison.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <span>
#include <vector>

#include "engine/cpu/reference.h"
#include "engine/ops.h"
#include "engine/training_ops.h"
#include "tests/engine/on_device.h"
#include "tests/gpu.h"
#include "tests/random.h"
#include "tests/worse.h"

using namespace inkling;
using test::have_gpu;
using test::OnDevice;
using test::Random;

namespace {

using Floats = std::vector<float>;
using Ints = std::vector<std::int32_t>;

/// The operands of one op on one device. bf16 rows hold the same numbers on the CPU, as f32.
class Operands {
 public:
  Operands(ExecContext& context, DType half) : context_(context), half_(half) {}

  TensorView rows(Floats values, std::int64_t m, std::int64_t n) {
    return place(std::move(values), m, n, DType::f32);
  }
  TensorView half(Floats values, std::int64_t m, std::int64_t n) {
    if (half_ == DType::bf16) {
      for (float& v : values) v = static_cast<float>(bf16(v));
    }
    return place(std::move(values), m, n, context_.device() == Device::cpu ? DType::f32 : half_);
  }
  TensorView vector(Floats values) {
    const auto n = static_cast<std::int64_t>(values.size());
    return rows(std::move(values), 1, n);
  }
  std::span<const std::int32_t> list(const Ints& values) {
    lists_.push_back(context_.backend().allocate(values.size() * sizeof(std::int32_t)));
    context_.backend().copy_in(lists_.back().data(), values.data(), values.size() * sizeof(std::int32_t));
    return {reinterpret_cast<const std::int32_t*>(lists_.back().data()), values.size()};
  }
  ExecContext& context() { return context_; }
  WeightFormat format() const {
    return half_ == DType::bf16 && context_.device() == Device::cuda ? WeightFormat::bf16 : WeightFormat::f32;
  }
  std::vector<Floats> results() {
    std::vector<Floats> all;
    for (OnDevice& each : placed_) all.push_back(each.values());
    return all;
  }

 private:
  TensorView place(Floats values, std::int64_t m, std::int64_t n, DType dtype) {
    return placed_.emplace_back(context_, std::move(values), m, n, dtype).view();
  }
  ExecContext& context_;
  DType half_;
  std::deque<OnDevice> placed_;
  std::deque<Buffer> lists_;
};

float* floats(const TensorView& view) {
  return view.as<float>();
}

/// Runs `op` on both devices, and twice on the GPU: the same bits there, and each operand afterwards within
/// `tolerance` of the largest number that the CPU has in it, f32; a rounding more where it is stored in bf16.
template <class Op>
void compare(DType half, double tolerance, const Op& op) {
  const auto run = [&](Device device) {
    ExecContext context({.device = device, .threads = 1});
    Operands operands(context, half);
    op(operands);
    return operands.results();
  };
  const std::vector<Floats> cpu = run(Device::cpu), gpu = run(Device::cuda);
  CHECK(run(Device::cuda) == gpu);
  REQUIRE(cpu.size() == gpu.size());
  const double rounding = half == DType::bf16 ? 0x1p-8 : 0.0;
  for (std::size_t i = 0; i < cpu.size(); ++i) {
    CAPTURE(i);
    REQUIRE(cpu[i].size() == gpu[i].size());
    double most = 0.0, worst = 0.0;
    for (std::size_t j = 0; j < cpu[i].size(); ++j) {
      most = std::max(most, std::fabs(double{cpu[i][j]}));
      worst = test::worse(worst, std::fabs(double{cpu[i][j]} - double{gpu[i][j]}));
    }
    CHECK(worst <= (tolerance + rounding) * most);
  }
}

constexpr DType kHalves[] = {DType::f32, DType::bf16};
// Sums of up to 1000 terms in f32, in another order: √1000 roundings of 2^-24, and thrice that for chains of
// truncating matrix instructions.
constexpr double kSum = 6e-6;

struct Shape {
  std::int64_t m, k, n;
};
constexpr Shape kShapes[] = {{1, 8, 8},      {130, 64, 96},   {77, 37, 51},    {300, 200, 7},
                             {64, 768, 264}, {700, 128, 384}, {256, 192, 320}, {70, 1000, 16}};

/// `columns` of the columns of rows that are longer, as an arena lays odd widths out.
TensorView narrowed(TensorView rows, std::int64_t columns) {
  rows.shape[1] = columns;
  return rows;
}
/// (N, K) in memory as the matrix (K, N).
TensorView turned(TensorView rows) {
  std::swap(rows.shape[0], rows.shape[1]);
  std::swap(rows.stride[0], rows.stride[1]);
  return rows;
}

/// x · w on the device of `o`, w lying by rows or by columns.
LinearArgs product(Operands& o, const Shape& s, const Floats& x, const Floats& w, bool by_columns) {
  LinearArgs args;
  args.x = o.half(x, s.m, s.k);
  args.matrix = by_columns ? turned(o.rows(w, s.n, s.k)) : o.rows(w, s.k, s.n);
  args.matrix_format = o.format();
  return args;
}

Floats rounded(Floats values, DType half) {
  if (half == DType::bf16) {
    for (float& v : values) v = static_cast<float>(bf16(v));
  }
  return values;
}

}  // namespace

TEST_CASE("[cuda] linear multiplies with a matrix that lies by rows or by columns") {
  if (!have_gpu()) return;
  Random random(11);
  for (const DType half : kHalves) {
    for (const Shape s : kShapes) {
      for (const bool by_columns : {false, true}) {
        CAPTURE(s.m);
        CAPTURE(s.k);
        CAPTURE(s.n);
        const Floats x = random.normals(s.m * s.k), w = rounded(random.normals(s.k * s.n), half),
                     bias = random.normals(s.n), residual = random.normals(s.m * s.n);
        compare(half, kSum, [&](Operands& o) {
          LinearArgs args = product(o, s, x, w, by_columns);
          args.bias = floats(o.vector(bias));
          args.activation = Activation::gelu_erf;
          args.residual = o.rows(residual, s.m, s.n);
          args.pre_activation = o.half(Floats(residual.size()), s.m, s.n);
          args.out = o.half(Floats(residual.size()), s.m, s.n);
          linear(o.context(), args);
        });
      }
    }
  }
}

TEST_CASE("[cuda] linear_backward is the CPU's, and adds to what is there") {
  if (!have_gpu()) return;
  Random random(12);
  for (const DType half : kHalves) {
    for (const Shape s : kShapes) {
      CAPTURE(s.m);
      CAPTURE(s.k);
      CAPTURE(s.n);
      const Floats x = random.normals(s.m * s.k), w = rounded(random.normals(s.k * s.n), half),
                   dout = random.normals(s.m * s.n), dw = random.normals(s.k * s.n), db = random.normals(s.n);
      compare(half, kSum, [&](Operands& o) {
        LinearBackwardArgs args;
        args.x = o.half(x, s.m, s.k);
        args.weight = o.rows(w, s.k, s.n);
        args.dout = o.half(dout, s.m, s.n);
        args.dx = o.half(Floats(x.size()), s.m, s.k);
        args.dweight = o.rows(dw, s.k, s.n);
        args.dbias = floats(o.vector(db));
        args.format = o.format();
        linear_backward(o.context(), args);
        args.dweight = o.rows(dw, s.k, s.n);
        args.dbias = floats(o.vector(db));
        args.replaces = true;
        linear_backward(o.context(), args);
      });
    }
  }
}

// Extents that cuBLASLt does not get: 171 tiles for 132 processors, in more than one band of 2048 rows; and a
// sum over as many rows, cut in runs. 2307 terms are √2.3 times as far off as 1000.
TEST_CASE("[cuda] a product of more tiles than processors, and of more rows than a band") {
  if (!have_gpu()) return;
  Random random(26);
  constexpr Shape wide{2307, 70, 2060}, deep{2307, 300, 521};
  const Floats x = random.normals(wide.m * wide.k), w = random.normals(wide.k * wide.n);
  compare(DType::bf16, kSum, [&](Operands& o) {
    LinearArgs args = product(o, wide, x, rounded(w, DType::bf16), false);
    args.out = o.rows(Floats(static_cast<std::size_t>(wide.m * wide.n)), wide.m, wide.n);
    linear(o.context(), args);
  });
  const Floats rows = random.normals(deep.m * deep.k), dout = random.normals(deep.m * deep.n),
               matrix = rounded(random.normals(deep.k * deep.n), DType::bf16);
  compare(DType::bf16, 1.6 * kSum, [&](Operands& o) {
    LinearBackwardArgs args;
    args.x = o.half(rows, deep.m, deep.k);
    args.weight = o.rows(matrix, deep.k, deep.n);
    args.dout = o.half(dout, deep.m, deep.n);
    args.dx = o.half(Floats(rows.size()), deep.m, deep.k);
    args.dweight = o.rows(Floats(matrix.size()), deep.k, deep.n);
    args.format = o.format();
    linear_backward(o.context(), args);
  });
}

// Ops begin while those before them end (engine/cuda/chain.cuh), and AdamW is right before what it trains.
TEST_CASE("[cuda] what the optimiser has just written is what the next ops read") {
  if (!have_gpu()) return;
  Random random(27);
  ExecContext context({.device = Device::cuda, .threads = 1});
  constexpr std::int64_t m = 150, width = 256;
  const Floats x = random.normals(m * width), w = random.normals(width * width, 0.1),
               gain = random.normals(width), step = random.normals(width);
  for (const DType half : kHalves) {
    const auto run = [&](bool waits) {
      Operands o(context, half);
      const TensorView from = o.rows(x, m, width), matrix = o.rows(w, width, width), trained = o.vector(gain),
                       gradient = o.vector(step), first = o.vector(Floats(width)),
                       second = o.vector(Floats(width)), normed = o.half(Floats(x.size()), m, width),
                       sum = o.rows(Floats(x.size()), m, width), out = o.rows(Floats(x.size()), m, width);
      const auto cu = o.list({0, 50, m});
      const auto end_of_op = [&] {
        if (waits) context.backend().synchronise();
      };
      AdamWArgs args;
      args.parameter = {floats(trained), width}, args.gradient = {floats(gradient), width};
      args.m = {floats(first), width}, args.v = {floats(second), width};
      args.learning_rate = 0.3;
      const LayerNorm norm{floats(trained), floats(gradient), 1e-5f};
      for (args.step = 1; args.step <= 8; ++args.step) {
        adamw(context, args);
        end_of_op();
        layer_norm(context, {from, {}, norm, normed});
        end_of_op();
        adamw(context, args);
        end_of_op();
        DropoutArgs drop{sum, cu, 0.1f, 5, 9, {}, from};
        drop.norm = norm;
        drop.normed = normed;
        dropout(context, drop);
        end_of_op();
        adamw(context, args);
        end_of_op();
        LinearArgs linear_args;
        linear_args.x = sum;
        linear_args.norm = norm;
        linear_args.matrix = matrix;
        linear_args.matrix_format = o.format();
        linear_args.out = out;
        linear(context, linear_args);
        end_of_op();
      }
      return o.results();
    };
    const auto expected = run(true);
    for (int again = 0; again < 3; ++again) CHECK(run(false) == expected);
  }
}

// Epilogues that cuBLASLt has, and beside each the one more that it lacks: whichever kernel takes a product.
TEST_CASE("[cuda] linear adds what it is asked to, to f32 and to bf16") {
  if (!have_gpu()) return;
  Random random(16);
  enum class Out { half, f32 };
  struct Form {
    Out out;
    bool bias, residual, in_place;
  };
  constexpr Form kForms[] = {{Out::half, false, false, false}, {Out::half, true, false, false},
                             {Out::f32, false, false, false},  {Out::f32, true, false, false},
                             {Out::f32, false, true, false},   {Out::f32, true, true, false},
                             {Out::f32, true, true, true},     {Out::half, false, true, false}};
  for (const DType half : kHalves) {
    for (const Shape s : kShapes) {
      for (const bool by_columns : {false, true}) {
        for (const Form& form : kForms) {
          CAPTURE(s.m);
          CAPTURE(s.k);
          CAPTURE(s.n);
          CAPTURE(by_columns);
          CAPTURE(&form - kForms);
          const Floats x = random.normals(s.m * s.k), w = rounded(random.normals(s.k * s.n), half),
                       bias = random.normals(s.n), residual = random.normals(s.m * s.n);
          compare(half, kSum, [&](Operands& o) {
            LinearArgs args = product(o, s, x, w, by_columns);
            if (form.bias) args.bias = floats(o.vector(bias));
            if (form.residual) args.residual = o.rows(residual, s.m, s.n);
            args.out = form.in_place          ? args.residual
                       : form.out == Out::f32 ? o.rows(Floats(residual.size()), s.m, s.n)
                                              : o.half(Floats(residual.size()), s.m, s.n);
            linear(o.context(), args);
          });
        }
      }
    }
  }
}

TEST_CASE("[cuda] a product's activation and the gradient through it are the CPU's, before and after") {
  if (!have_gpu()) return;
  Random random(18);
  for (const DType half : kHalves) {
    for (const Shape s : kShapes) {
      for (const Activation activation : {Activation::gelu_tanh, Activation::gelu_erf, Activation::relu}) {
        CAPTURE(s.m);
        CAPTURE(s.k);
        CAPTURE(s.n);
        CAPTURE(static_cast<int>(activation));
        const Floats x = random.normals(s.m * s.k), w = rounded(random.normals(s.k * s.n), half),
                     bias = random.normals(s.n), dout = random.normals(s.m * s.n);
        // A gradient is rounded as a product, and again behind the slope.
        const double twice = half == DType::bf16 ? 0x1p-8 : 0.0;
        compare(half, kSum + twice, [&](Operands& o) {
          for (const bool biased : {false, true}) {
            LinearArgs args;
            args.x = o.half(x, s.m, s.k);
            args.matrix = biased ? o.rows(w, s.k, s.n) : o.half(w, s.k, s.n);  // rounded before
            args.matrix_format = o.format();
            if (biased) args.bias = floats(o.vector(bias));
            args.activation = activation;
            args.pre_activation = o.half(Floats(dout.size()), s.m, s.n);
            args.out = o.half(Floats(dout.size()), s.m, s.n);
            linear(o.context(), args);
            LinearBackwardArgs gradient;
            gradient.weight = args.matrix;
            gradient.dout = o.half(dout, s.m, s.n);
            gradient.dx = o.half(Floats(x.size()), s.m, s.k);
            gradient.format = o.format();
            gradient.activation = activation;
            gradient.pre_activation = o.half(x, s.m, s.k);
            linear_backward(o.context(), gradient);
          }
        });
      }
    }
  }
}

// Beside the largest numbers the two forms of GELU look alike: here each number stands alone.
TEST_CASE("[cuda] GELU of a product in bf16 is the tanh form at every x, and so is its slope") {
  if (!have_gpu()) return;
  constexpr std::int64_t kSize = 64;
  Floats x, identity(kSize * kSize);
  for (std::int64_t i = 0; i < kSize; ++i) identity[static_cast<std::size_t>(i * (kSize + 1))] = 1.0f;
  for (std::int64_t i = 0; i < kSize * kSize; ++i) {
    x.push_back(static_cast<float>(bf16(8.0f * static_cast<float>(i) / (kSize * kSize) - 4.0f)));
  }
  ExecContext context({.device = Device::cuda, .threads = 1});
  Operands o(context, DType::bf16);
  LinearArgs args;
  args.x = o.half(x, kSize, kSize);
  args.matrix = o.half(identity, kSize, kSize);
  args.matrix_format = o.format();
  args.bias = floats(o.vector(Floats(kSize)));
  args.activation = Activation::gelu_tanh;
  args.pre_activation = o.half(Floats(x.size()), kSize, kSize);
  args.out = o.half(Floats(x.size()), kSize, kSize);
  linear(context, args);
  LinearBackwardArgs gradient;
  gradient.dx = o.half(Floats(x.size()), kSize, kSize);
  gradient.format = o.format();
  gradient.activation = Activation::gelu_tanh;
  gradient.pre_activation = args.x;
  gradient.dout = o.half(Floats(x.size(), 1.0f / kSize), kSize, kSize);
  gradient.weight = o.half(Floats(x.size(), 1.0f), kSize, kSize);  // their product is 1 everywhere
  linear_backward(context, gradient);
  const std::vector<Floats> all = o.results();
  const Floats &before = all[3], &after = all[4], &slopes = all[5];
  CHECK(before == x);
  // Beyond their rounding, half a unit in a last place of 2^-7. The erf form is off by up to 4.7e-4, where
  // its own rounding is a tenth of that.
  double value_off = 0.0, slope_off = 0.0, bias_of_tail = 0.0;
  int tail = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double v = double{x[i]}, root = 0.7978845608028654, u = root * (v + 0.044715 * v * v * v),
                 s = 0.5 * (1 + std::tanh(u)), value = v * s,
                 slope = s + 2 * v * s * (1 - s) * root * (1 + 3 * 0.044715 * v * v);
    value_off = test::worse(value_off, std::fabs(after[i] - value) - 0x1p-8 * std::fabs(value));
    slope_off = test::worse(slope_off, std::fabs(slopes[i] - slope) - 0x1p-8 * std::fabs(slope));
    if (v > -3.2 && v < -2.4) bias_of_tail += after[i] - value, ++tail;
  }
  MESSAGE("GELU is off by ", value_off, ", its slope by ", slope_off, ", between -3.2 and -2.4 by ",
          bias_of_tail / tail, " on average, beyond their rounding");
  CHECK(value_off <= 1e-4);
  CHECK(slope_off <= 1e-4);
  CHECK(std::fabs(bias_of_tail / tail) <= 5e-5);
}

TEST_CASE("[cuda] products leave what lies between rows of odd widths") {
  if (!have_gpu()) return;
  Random random(17);
  struct Padded {
    Shape shape;
    std::int64_t width;  // of a row of n in memory
  };
  for (const DType half : kHalves) {
    for (const auto& [s, width] : {Padded{{96, 64, 51}, 64}, Padded{{129, 72, 1001}, 1024}}) {
      CAPTURE(s.n);
      const Floats x = random.normals(s.m * s.k), table = rounded(random.normals(s.n * s.k), half),
                   gradient = random.normals(s.m * width), dtable = random.normals(s.n * s.k),
                   dmatrix = random.normals(s.k * width);
      compare(half, kSum, [&](Operands& o) {  // a head and its gradients, as training asks for them
        const TensorView rows = o.half(x, s.m, s.k), head = o.rows(table, s.n, s.k);
        LinearArgs args;
        args.x = rows;
        args.matrix = turned(head);
        args.matrix_format = o.format();
        args.out = narrowed(o.half(gradient, s.m, width), s.n);
        linear(o.context(), args);
        const TensorView dout = narrowed(o.half(gradient, s.m, width), s.n);
        LinearBackwardArgs input;
        input.weight = turned(head);
        input.dout = dout;
        input.dx = o.half(Floats(x.size()), s.m, s.k);
        input.format = o.format();
        linear_backward(o.context(), input);
        LinearBackwardArgs weight;
        weight.x = dout;
        weight.dout = rows;
        weight.dweight = o.rows(dtable, s.n, s.k);
        weight.format = o.format();
        linear_backward(o.context(), weight);
        weight.x = rows;
        weight.dout = dout;
        weight.dweight = narrowed(o.rows(dmatrix, s.k, width), s.n);
        linear_backward(o.context(), weight);
      });
    }
  }
}

TEST_CASE("[cuda] gradients of norm, activation and embedding are the CPU's") {
  if (!have_gpu()) return;
  Random random(13);
  for (const DType half : kHalves) {
    for (const Shape s : kShapes) {
      CAPTURE(s.m);
      CAPTURE(s.k);
      const std::int64_t m = s.m, c = s.k;
      const Floats x = random.normals(m * c), dout = random.normals(m * c), dx = random.normals(m * c),
                   gamma = random.normals(c), dgamma = random.normals(c), dbeta = random.normals(c);
      compare(half, kSum, [&](Operands& o) {
        const TensorView view = o.rows(x, m, c), weight = o.vector(gamma), dweight = o.vector(dgamma),
                         dbias = o.vector(dbeta);
        LayerNormBackwardArgs args{view,
                                   {floats(weight), nullptr, 1e-5f},
                                   o.half(dout, m, c),
                                   o.rows(dx, m, c),
                                   floats(dweight),
                                   floats(dbias)};
        layer_norm_backward(o.context(), args);
        args.dweight = floats(o.vector(dgamma));
        args.dbias = floats(o.vector(dbeta));
        args.replaces = true;
        layer_norm_backward(o.context(), args);
      });
      for (const Activation activation :
           {Activation::none, Activation::gelu_tanh, Activation::gelu_erf, Activation::relu}) {
        compare(half, kSum, [&](Operands& o) {
          activate_backward(o.context(), {o.half(x, m, c), activation, o.half(dout, m, c), o.half(dx, m, c)});
          // Lines that are whole but for their last elements.
          const auto most = [&](const TensorView& rows) { return narrowed(rows, c - c % 8 - 3); };
          activate_backward(o.context(), {most(o.half(x, m, c)), activation, most(o.half(dout, m, c))});
        });
      }
      // Few keys that come often, across chunks, and many that come once.
      for (const std::int64_t keys : {std::int64_t{1}, std::int64_t{3}, std::int64_t{500}}) {
        Ints ids(static_cast<std::size_t>(m)), positions(static_cast<std::size_t>(m));
        for (auto& id : ids) id = static_cast<std::int32_t>(random.range(0, static_cast<int>(keys) - 1));
        for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int32_t>(i % 90);
        const Floats table = random.normals(keys * c), places = random.normals(90 * c);
        compare(half, kSum, [&](Operands& o) {
          embed_backward(o.context(), {o.list(ids), o.list(positions), o.half(dout, m, c),
                                       o.rows(table, keys, c), o.rows(places, 90, c)});
        });
      }
    }
  }
}

TEST_CASE("[cuda] dropout with the norm behind it, and with a norm's gradient before it, is both in turn") {
  if (!have_gpu()) return;
  Random random(19);
  const Ints cu = {0, 0, 1, 17, 17, 39, 40, 40};
  constexpr std::int64_t rows = 40;
  for (const std::int64_t width :
       {std::int64_t{7}, std::int64_t{64}, std::int64_t{768}, std::int64_t{1280}, std::int64_t{1284}}) {
    CAPTURE(width);
    const Floats x = random.normals(rows * width), residual = random.normals(rows * width),
                 gamma = random.normals(width), beta = random.normals(width),
                 dout = random.normals(rows * width), dx = random.normals(rows * width);
    const Floats nothing(x.size());
    for (const DType half : kHalves) {
      for (const float p : {0.0f, 0.3f}) {
        const auto both = [&](Operands& o, bool together) {
          const TensorView weight = o.vector(gamma), bias = o.vector(beta);
          const LayerNorm norm{floats(weight), floats(bias), 1e-5f};
          DropoutArgs args{o.rows(nothing, rows, width), o.list(cu), p, 77, 5, o.rows(residual, rows, width),
                           o.half(x, rows, width)};
          const TensorView normed = o.half(nothing, rows, width);
          if (together) {
            args.norm = norm;
            args.normed = normed;
          }
          dropout(o.context(), args);
          if (!together) layer_norm(o.context(), {args.x, {}, norm, normed});
          LayerNormBackwardArgs gradient{o.rows(x, rows, width), norm, o.half(dout, rows, width),
                                         o.rows(dx, rows, width)};
          const DropoutArgs branch{o.half(nothing, rows, width), args.cu_seqlens, p, 78, 6};
          if (together) gradient.branch = branch;
          layer_norm_backward(o.context(), gradient);
          if (together) return;
          DropoutArgs after = branch;
          after.from = gradient.dx;
          dropout(o.context(), after);
        };
        compare(half, kSum, [&](Operands& o) { both(o, true); });
        ExecContext context({.device = Device::cuda, .threads = 1});
        Operands one(context, half), other(context, half);
        both(one, true);
        both(other, false);
        CHECK(one.results() == other.results());
      }
    }
  }
}

// Few enough for compute-sanitizer's racecheck (tests/gpu.sh): blocks of 44 rows, two widths held in
// registers and one that is not.
TEST_CASE("[cuda] few rows: a norm's gradient is the CPU's") {
  if (!have_gpu()) return;
  Random random(20);
  constexpr std::int64_t rows = 90;
  for (const std::int64_t width : {std::int64_t{64}, std::int64_t{768}, std::int64_t{1290}}) {
    CAPTURE(width);
    const Floats x = random.normals(rows * width), dout = random.normals(rows * width),
                 gamma = random.normals(width);
    const Ints cu = {0, 30, rows};
    compare(DType::bf16, kSum, [&](Operands& o) {
      const TensorView weight = o.vector(gamma), dweight = o.vector(Floats(gamma.size())),
                       dbias = o.vector(Floats(gamma.size()));
      LayerNormBackwardArgs args{o.rows(x, rows, width),    {floats(weight), nullptr, 1e-5f},
                                 o.half(dout, rows, width), o.rows(x, rows, width),
                                 floats(dweight),           floats(dbias)};
      args.branch = {o.half(Floats(x.size()), rows, width), o.list(cu), 0.1f, 3, 4};
      layer_norm_backward(o.context(), args);
    });
  }
}

TEST_CASE("[cuda] dropout draws the CPU's mask, bit for bit") {
  if (!have_gpu()) return;
  Random random(14);
  for (const std::int64_t width : {std::int64_t{1}, std::int64_t{7}, std::int64_t{64}, std::int64_t{1030}}) {
    const std::int64_t rows = 40;
    const Floats x = random.normals(rows * width), residual = random.normals(rows * width);
    const Ints cu = {0, 0, 1, 17, 17, 39, 40, 40};
    compare(DType::f32, 0.0, [&](Operands& o) {
      dropout(o.context(), {o.rows(x, rows, width), o.list(cu), 0.3f, 0x123456789abcdef, 7});
      const TensorView to = o.rows(Floats(x.size()), rows, width), from = o.rows(x, rows, width);
      dropout(o.context(), {to, o.list(cu), 0.1f, 5, 9, o.rows(residual, rows, width), from});
    });
    compare(DType::bf16, 0.0, [&](Operands& o) {
      const TensorView to = o.half(Floats(x.size()), rows, width), from = o.rows(x, rows, width);
      dropout(o.context(), {to, o.list(cu), 0.25f, 5, 9, {}, from});
    });
  }
}

TEST_CASE("[cuda] the loss and its gradient are those of f64") {
  if (!have_gpu()) return;
  Random random(15);
  ExecContext context({.device = Device::cuda, .threads = 1});
  // A warp's rows and a block's; odd strides; pieces with a rest behind them; too long for shared memory.
  struct Row {
    std::int64_t vocabulary, width;  // and of a row in memory
  };
  constexpr Row kRows[] = {{1, 1},       {65, 65},     {65, 96},       {1025, 1025},
                           {5003, 5003}, {5003, 5024}, {50257, 50272}, {130000, 130000}};
  // Of Σ e^x, and so of a probability and of log Σ. A thread adds up to 130000/512 terms, 16 roundings of
  // 2^-24 by √254 as kSum counts them. Twice 2^-23 are off e^x itself, and as much what it is multiplied with
  // whenever the thread's maximum has risen since: four of those, 16 times 2^-24 more. The CPU is no oracle
  // here: 16250 terms in each of 8 lanes lose 2e-5 of its sum, 8125 in each of 16 half of that.
  constexpr double kTolerance = 2e-6;
  constexpr std::int64_t rows = 9;
  for (const DType half : kHalves) {
    for (const auto [vocabulary, width] : kRows) {
      for (const float scale : {0.0f, 0.01f}) {
        CAPTURE(vocabulary);
        CAPTURE(width);
        CAPTURE(scale);
        Floats logits = random.normals(rows * width);
        for (std::size_t i = 0; i < logits.size(); ++i) {
          const bool between = static_cast<std::int64_t>(i) % width >= vocabulary;
          logits[i] = between ? 0.0f : logits[i] * 5;
        }
        logits[0] = 1e4f;
        logits = rounded(std::move(logits), half);
        Ints targets(rows);
        for (auto& t : targets)
          t = static_cast<std::int32_t>(random.range(-1, static_cast<int>(vocabulary) - 1));
        targets[1] = -1;
        targets[2] = static_cast<std::int32_t>(vocabulary - 1);
        const auto run = [&] {
          Operands o(context, half);
          const TensorView losses = o.vector(Floats(rows)), all = o.half(logits, rows, width);
          cross_entropy(context, {narrowed(all, vocabulary), o.list(targets), scale, {floats(losses), rows}});
          return o.results();
        };
        const std::vector<Floats> got = run();
        CHECK(run() == got);
        double worst_loss = 0.0, worst_gradient = 0.0;  // in units of what they may be off
        bool kept = true;                               // what is not to be written
        for (std::int64_t r = 0; r < rows; ++r) {
          const auto first = static_cast<std::size_t>(r * width), row = static_cast<std::size_t>(r);
          std::vector<double> gradient(static_cast<std::size_t>(vocabulary));
          const double loss = reference::cross_entropy(std::span(logits).subspan(first, gradient.size()),
                                                       targets[row], gradient);
          worst_loss = test::worse(worst_loss,
                                   std::fabs(got[0][row] - loss) / (kTolerance + 0x1p-22 * std::fabs(loss)));
          const std::size_t written = scale != 0.0f ? gradient.size() : 0;
          for (std::size_t c = 0; c < written; ++c) {
            const double expected = double{scale} * gradient[c],
                         storing = half == DType::bf16 ? 0x1p-8 * std::fabs(expected) : 0.0;
            worst_gradient = test::worse(worst_gradient, std::fabs(got[1][first + c] - expected) /
                                                             (kTolerance * double{scale} + storing));
          }
          const auto begin = static_cast<std::ptrdiff_t>(first + written),
                     end = static_cast<std::ptrdiff_t>(first) + width;
          kept = kept && std::equal(got[1].begin() + begin, got[1].begin() + end, logits.begin() + begin);
        }
        CHECK(worst_loss <= 1.0);
        CHECK(worst_gradient <= 1.0);
        CHECK(kept);
      }
    }
  }
}

TEST_CASE("[cuda] the optimiser rounds what it writes") {
  if (!have_gpu()) return;
  Random random(21);
  ExecContext context({.device = Device::cuda, .threads = 1});
  for (const std::size_t n : {std::size_t{1}, std::size_t{1023}, std::size_t{4096}}) {
    const auto columns = static_cast<std::int64_t>(n);
    const Floats w = random.normals(columns), g = random.normals(columns), nothing(n);
    Operands o(context, DType::bf16);
    AdamWArgs args;
    args.parameter = {floats(o.vector(w)), n};
    args.gradient = {floats(o.vector(g)), n};
    args.m = {floats(o.vector(nothing)), n};
    args.v = {floats(o.vector(nothing)), n};
    args.rounded = o.half(nothing, 1, columns);
    adamw(context, args);
    const std::vector<Floats> all = o.results();
    CHECK(all[0] != w);
    CHECK(all[4] == rounded(all[0], DType::bf16));
  }
}

TEST_CASE("[cuda] the optimiser and the sum of squares take what begins anywhere") {
  if (!have_gpu()) return;
  Random random(22);
  constexpr std::size_t n = 2050;
  const Floats w = random.normals(n + 1), g = random.normals(n + 1), nothing(n + 1);
  for (std::size_t apart = 0; apart < 5; ++apart) {  // that which begins after the others; the last: none
    CAPTURE(apart);
    compare(DType::f32, 1e-6, [&](Operands& o) {
      const auto part = [&](const Floats& values, std::size_t i) {
        float* const all = floats(o.vector(values));
        return std::span<float>(i == apart ? all + 1 : all, n);
      };
      AdamWArgs args;
      args.parameter = part(w, 0), args.gradient = part(g, 1), args.m = part(nothing, 2),
      args.v = part(nothing, 3);
      const double squares = sum_of_squares(o.context(), args.gradient);
      args.gradient_scale = static_cast<float>(1.0 / std::sqrt(squares));
      args.weight_decay = 0.1;
      adamw(o.context(), args);
    });
  }
}

TEST_CASE("[cuda] the sum of squares and the optimiser are the CPU's") {
  if (!have_gpu()) return;
  Random random(16);
  for (const std::size_t n : {std::size_t{1}, std::size_t{1023}, std::size_t{300001}}) {
    const Floats w = random.normals(static_cast<std::int64_t>(n)),
                 g = random.normals(static_cast<std::int64_t>(n));
    compare(DType::f32, 1e-6, [&](Operands& o) {
      const TensorView weight = o.vector(w), gradient = o.vector(g), m = o.vector(Floats(n)),
                       v = o.vector(Floats(n));
      AdamWArgs args;
      args.parameter = {floats(weight), n};
      args.gradient = {floats(gradient), n};
      args.m = {floats(m), n};
      args.v = {floats(v), n};
      args.weight_decay = 0.1;
      for (args.step = 1; args.step <= 3; ++args.step) {
        const double squares = sum_of_squares(o.context(), args.gradient);
        args.gradient_scale = static_cast<float>(1.0 / std::sqrt(squares));
        adamw(o.context(), args);
      }
    });
  }
}
