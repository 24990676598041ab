// The module against PyTorch, gradients and dropout included; its bits; what it refuses and prints.
#include "attention/causal_self_attention.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "engine/exec_context.h"
#include "tests/attention/gpu_copy.h"
#include "tests/attention/problem.h"
#include "tests/count_allocations.h"
#include "tests/data.h"
#include "tests/random.h"
#include "tests/worse.h"

namespace inkling {
namespace {

using test::Random;
using Floats = std::vector<float>;

TensorView view(Floats& data, std::int64_t columns) {
  return TensorView(data.data(), DType::f32, {static_cast<std::int64_t>(data.size()) / columns, columns});
}

Floats read_numbers(std::istream& file) {
  std::size_t count = 0;
  file >> count;
  Floats values(count);
  for (float& value : values) file >> value;
  return values;
}

double difference(const float* got, const Floats& want) {
  double worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    worst = test::worse(worst, std::fabs(double{got[i]} - double{want[i]}));
  }
  return worst;
}

void set(CausalSelfAttention& module, std::size_t index, const Floats& values) {
  REQUIRE(module.parameters()[index].value.numel() == static_cast<std::int64_t>(values.size()));
  std::ranges::copy(values, module.parameters()[index].value.as<float>());
}

CausalSelfAttentionConfig config_of(std::int64_t width, std::int64_t heads, bool bias, float p = 0.0f) {
  CausalSelfAttentionConfig config;
  config.n_embd = width;
  config.n_head = heads;
  config.bias = bias;
  config.attention_dropout = config.residual_dropout = p;
  return config;
}

/// What PyTorch made of one module (tests/golden/make_module_golden.py).
struct Golden {
  std::int64_t width = 0, heads = 0;
  bool bias = false;
  float p = 0;
  std::uint64_t seed = 0;
  std::uint32_t offset = 0;
  std::vector<std::int32_t> cu{0};
  std::vector<Floats> f;  // x, four parameters, dout; out, dx, the parameters' gradients
};

std::vector<Golden> read_golden() {
  std::ifstream file(test::source_dir() / "tests/golden/attention_module.txt");
  std::vector<Golden> all;
  Golden g;
  std::int64_t batch = 0;
  while (file >> g.width >> g.heads >> g.bias >> g.p >> g.seed >> g.offset >> batch) {
    for (std::int64_t b = 0, length = 0; b < batch; ++b) {
      file >> length;
      g.cu.push_back(g.cu.back() + static_cast<std::int32_t>(length));
    }
    for (int i = 0; i < 12; ++i) g.f.push_back(read_numbers(file));
    all.push_back(std::exchange(g, {}));
  }
  REQUIRE(all.size() == 3);
  return all;
}

}  // namespace

TEST_CASE("[golden] the module, its gradients and its dropout are PyTorch's") {
  int cases = 0;
  for (const Golden& golden : read_golden()) {
    const auto& [width, heads, bias, p, seed, offset, cu, f] = golden;
    ++cases;
    for (const Isa isa : supported_isas()) {
      CAPTURE(isa_name(isa));
      CAPTURE(cases);
      ExecContext context({.threads = 2, .isa = isa});
      CausalSelfAttention module(context, config_of(width, heads, bias, p));
      for (std::size_t i = 0; i < module.parameters().size(); ++i) set(module, i, f[1 + i]);
      module.parameters_changed();
      Floats x = f[0], dout = f[5], out(x.size()), dx(x.size());
      // Twice: gradients add up, and nothing of a call is left over for the next.
      for (int i = 0; i < 2; ++i) {
        module.forward({view(x, width), cu, Phase::training, seed, offset}, view(out, width));
        module.backward(view(dout, width), view(dx, width));
      }
      CHECK(difference(out.data(), f[6]) < 2e-6);
      CHECK(difference(dx.data(), f[7]) < 1e-5);
      for (std::size_t i = 0; i < module.parameters().size(); ++i) {
        Floats twice = f[8 + i];
        for (float& value : twice) value *= 2;
        CHECK(difference(module.parameters()[i].gradient.as<float>(), twice) < 4e-5);
      }
      module.zero_gradients();
      CHECK(*module.parameters()[0].gradient.as<float>() == 0.0f);
    }
  }
}

namespace {

/// A module on the GPU and its way in and out.
struct GpuModule {
  ExecContext context = test::make_gpu_context();
  CausalSelfAttention module;

  GpuModule(const CausalSelfAttentionConfig& config, std::uint64_t seed = 0)
      : module(context, config, seed) {}
  Floats values(const TensorView& view) {
    Floats there(static_cast<std::size_t>(view.numel()));
    context.backend().copy_out(there.data(), view.data, view.nbytes());
    return there;
  }
};

/// |got − want| ÷ |want|. Every sum of the module is over products exact to 2⁻²² and loses as much again by
/// each of at most a hundred steps; what they add up to is held to 2e-5 of it.
double distance(const Floats& got, const Floats& want) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += (double{got[i]} - double{want[i]}) * (double{got[i]} - double{want[i]});
    size += double{want[i]} * double{want[i]};
  }
  return size == 0 ? std::sqrt(error) : std::sqrt(error / size);
}
constexpr double kGpuTolerance = 2e-5;

}  // namespace

TEST_CASE("[cuda] the module begins and evaluates as on the CPU") {
  if (!test::have_gpu()) return;
  Random random(30);
  for (const auto& [width, heads] : {std::pair<std::int64_t, std::int64_t>{96, 4}, {40, 2}, {128, 1}}) {
    CAPTURE(width);
    ExecContext cpu({.threads = 2});
    CausalSelfAttention here(cpu, config_of(width, heads, true, 0.1f), 7);
    GpuModule there(config_of(width, heads, true, 0.1f), 7);
    for (std::size_t i = 0; i < here.parameters().size(); ++i) {
      const TensorView value = here.parameters()[i].value.view();
      CHECK(there.values(there.module.parameters()[i].value.view()) ==
            Floats(value.as<float>(), value.as<float>() + value.numel()));
    }
    for (const std::vector<std::int32_t>& cu : {std::vector<std::int32_t>{0, 70, 71, 71, 200}, {0, 5}}) {
      Floats x = random.normals(cu.back() * width), want(x.size()), got(x.size());
      here.forward({view(x, width), cu}, view(want, width));
      test::GpuCopy dx(there.context, view(x, width)), out(there.context, view(got, width));
      there.module.forward({dx.view(), cu}, out.view());
      out.fetch();
      CHECK(distance(got, want) <= kGpuTolerance);
    }
  }
}

TEST_CASE("[cuda] the module, its gradients and its dropout are PyTorch's") {
  if (!test::have_gpu()) return;
  for (const Golden& golden : read_golden()) {
    const auto& [width, heads, bias, p, seed, offset, cu, f] = golden;
    CAPTURE(width);
    GpuModule there(config_of(width, heads, bias, p));
    CausalSelfAttention& module = there.module;
    for (std::size_t i = 0; i < module.parameters().size(); ++i) {
      const TensorView value = module.parameters()[i].value.view();
      REQUIRE(value.numel() == static_cast<std::int64_t>(f[1 + i].size()));
      there.context.backend().copy_in(value.data, f[1 + i].data(), value.nbytes());
    }
    module.parameters_changed();
    Floats x = f[0], dout = f[5], out(x.size()), dx(x.size());
    test::GpuCopy x_there(there.context, view(x, width)), dout_there(there.context, view(dout, width)),
        out_there(there.context, view(out, width)), dx_there(there.context, view(dx, width));
    for (int i = 0; i < 2; ++i) {
      module.forward({x_there.view(), cu, Phase::training, seed, offset}, out_there.view());
      module.backward(dout_there.view(), dx_there.view());
    }
    out_there.fetch();
    dx_there.fetch();
    CHECK(distance(out, f[6]) <= kGpuTolerance);
    CHECK(distance(dx, f[7]) <= kGpuTolerance);
    for (std::size_t i = 0; i < module.parameters().size(); ++i) {
      Floats twice = f[8 + i];
      for (float& value : twice) value *= 2;
      CHECK(distance(there.values(module.parameters()[i].gradient.view()), twice) <= kGpuTolerance);
    }
    module.zero_gradients();
    CHECK(there.values(module.parameters()[0].gradient.view())[0] == 0.0f);
  }
}

TEST_CASE("a sequence's output and dx have the same bits alone and in a batch, on any threads") {
  constexpr std::int64_t kWidth = 96;
  Random random(3);
  const std::vector<std::int32_t> lengths{70, 1, 0, 129, 33};
  std::vector<std::int32_t> cu{0};
  for (const std::int32_t length : lengths) cu.push_back(cu.back() + length);
  Floats x = random.normals(cu.back() * kWidth), dout = random.normals(cu.back() * kWidth);
  Floats first_out, first_dx;
  for (const int threads : {1, 2, 3}) {
    ExecContext context({.threads = threads});
    CausalSelfAttention module(context, config_of(kWidth, 4, true), 5);
    Floats out(x.size()), dx(x.size());
    module.forward({view(x, kWidth), cu, Phase::training}, view(out, kWidth));
    module.backward(view(dout, kWidth), view(dx, kWidth));
    if (threads == 1) first_out = out, first_dx = dx;
    CHECK(out == first_out);
    CHECK(dx == first_dx);
    for (std::size_t b = 0; b < lengths.size(); ++b) {
      const auto begin = cu[b] * kWidth, end = cu[b + 1] * kWidth;
      const std::vector<std::int32_t> own{0, lengths[b]};
      Floats one_x(x.begin() + begin, x.begin() + end), one_dout(dout.begin() + begin, dout.begin() + end);
      Floats one_out(one_x.size()), one_dx(one_x.size());
      module.forward({view(one_x, kWidth), own, Phase::training}, view(one_out, kWidth));
      module.backward(view(one_dout, kWidth), view(one_dx, kWidth));
      CHECK(std::equal(one_out.begin(), one_out.end(), out.begin() + begin));
      CHECK(std::equal(one_dx.begin(), one_dx.end(), dx.begin() + begin));
    }
  }
}

TEST_CASE("evaluation knows no dropout and stays causal, training is neither the same nor less causal") {
  constexpr std::int64_t kWidth = 32, kTokens = 20;
  const std::vector<std::int32_t> cu{0, kTokens};
  Random random(4);
  ExecContext context({.threads = 1});
  CausalSelfAttention module(context, config_of(kWidth, 2, false, 0.5f), 6);
  CausalSelfAttention plain(context, config_of(kWidth, 2, false), 6);
  Floats x = random.normals(kTokens * kWidth), changed = x;
  for (std::size_t i = 12 * kWidth; i < changed.size(); ++i) changed[i] += 1.0f;
  for (const Phase phase : {Phase::evaluation, Phase::training}) {
    Floats a(x.size()), b(x.size()), c(x.size());
    module.forward({view(x, kWidth), cu, phase, 9, 1}, view(a, kWidth));
    module.forward({view(changed, kWidth), cu, phase, 9, 1}, view(b, kWidth));
    plain.forward({view(x, kWidth), cu, phase, 9, 1}, view(c, kWidth));
    CHECK(std::equal(a.begin(), a.begin() + 12 * kWidth, b.begin()));
    CHECK_FALSE(std::equal(a.begin() + 12 * kWidth, a.end(), b.begin() + 12 * kWidth));
    CHECK((a == c) == (phase == Phase::evaluation));
  }
  CausalSelfAttentionConfig open = config_of(kWidth, 2, false);
  open.mask = MaskKind::none;
  CausalSelfAttention all(context, open, 6);
  Floats a(x.size()), b(x.size());
  all.forward({view(x, kWidth), cu}, view(a, kWidth));
  all.forward({view(changed, kWidth), cu}, view(b, kWidth));
  CHECK_FALSE(std::equal(a.begin(), a.begin() + kWidth, b.begin()));
}

TEST_CASE("the module's gradients are its slopes") {
  constexpr std::int64_t kWidth = 8;
  const std::vector<std::int32_t> cu{0, 4, 9};
  Random random(10);
  ExecContext context({.threads = 2});
  CausalSelfAttention module(context, config_of(kWidth, 2, true, 0.3f), 11);
  for (const auto& p : module.parameters()) {
    for (std::int64_t i = 0; i < p.value.numel(); ++i) p.value.as<float>()[i] = random.normal(0.5);
  }
  Floats x = random.normals(9 * kWidth), dout = random.normals(9 * kWidth), out(x.size()), dx(x.size());
  const auto loss = [&] {
    module.parameters_changed();
    module.forward({view(x, kWidth), cu, Phase::training, 12, 2}, view(out, kWidth));
    double sum = 0;
    for (std::size_t i = 0; i < out.size(); ++i) sum += double{out[i]} * double{dout[i]};
    return sum;
  };
  loss();
  module.backward(view(dout, kWidth), view(dx, kWidth));
  const auto check_slope = [&](float& value, float gradient) {
    constexpr float kStep = 4e-3f;
    const float old = value;
    value = old + kStep;
    const double above = loss();
    value = old - kStep;
    const double below = loss();
    value = old;
    CHECK((above - below) / (2 * double{kStep}) == doctest::Approx(gradient).epsilon(0.01));
  };
  for (std::size_t i = 0; i < x.size(); i += 7) check_slope(x[i], dx[i]);
  for (const auto& p : module.parameters()) {
    const Floats gradient(p.gradient.as<float>(), p.gradient.as<float>() + p.gradient.numel());
    for (std::int64_t i = 0; i < p.value.numel(); i += 1 + p.value.numel() / 12) {
      CAPTURE(p.name);
      check_slope(p.value.as<float>()[i], gradient[static_cast<std::size_t>(i)]);
    }
  }
}

TEST_CASE("activations are kept from call to call and can be given back") {
  constexpr std::int64_t kWidth = 16;
  ExecContext context({.threads = 1});
  CausalSelfAttention module(context, config_of(kWidth, 2, false), 1);
  Floats x(10 * kWidth, 0.5f), out(x.size()), again(x.size());
  const std::vector<std::int32_t> cu{0, 10};
  CHECK(module.activation_bytes() == 0);
  module.forward({view(x, kWidth), cu}, view(out, kWidth));
  const std::size_t held = module.activation_bytes();
  CHECK(held > 0);
  module.forward({view(x, kWidth), cu}, view(again, kWidth));
  CHECK(module.activation_bytes() == held);
  module.release();
  CHECK(module.activation_bytes() == 0);
  module.forward({view(x, kWidth), cu}, view(again, kWidth));
  CHECK(again == out);
}

TEST_CASE("a warm call allocates nothing, forward or backward, for lengths no longer than before") {
  constexpr std::int64_t kWidth = 48;
  Random random(12);
  ExecContext context({.threads = 2});
  CausalSelfAttention module(context, config_of(kWidth, 3, true, 0.1f), 1);
  Floats x = random.normals(90 * kWidth), dout = random.normals(90 * kWidth), out(x.size()), dx(x.size());
  const auto first = [](Floats& data, std::int64_t rows) {
    return TensorView(data.data(), DType::f32, {rows, kWidth});
  };
  const std::vector<std::vector<std::int32_t>> batches{{0, 90}, {0, 20, 20, 61}, {0, 20, 90}, {0, 90}};
  for (int round = 0; round < 2; ++round) {
    for (const auto& cu : batches) {
      const std::int64_t before = test::allocations;
      module.forward({first(x, cu.back()), cu, Phase::evaluation}, first(out, cu.back()));
      module.forward({first(x, cu.back()), cu, Phase::training, 3, 4}, first(out, cu.back()));
      module.backward(first(dout, cu.back()), first(dx, cu.back()));
      if (round == 1) CHECK(test::allocations == before);
    }
  }
}

TEST_CASE("a forward pass that failed cannot be differentiated, nor can the one before it") {
  constexpr std::int64_t kWidth = 8;
  ExecContext context({.threads = 1});
  CausalSelfAttention module(context, config_of(kWidth, 2, false), 1);
  Floats x(20 * kWidth, 0.5f), out(x.size());
  const std::vector<std::int32_t> cu{0, 20};
  module.forward({view(x, kWidth), cu, Phase::training}, view(out, kWidth));
  {
    SdpaScope scope(context, {SdpaBackend::decode});  // which refuses 20 rows, after the first projection
    CHECK_THROWS_AS(module.forward({view(x, kWidth), cu, Phase::training}, view(out, kWidth)), Error);
  }
  CHECK_THROWS_AS(module.backward(view(x, kWidth), view(out, kWidth)), Error);
}

TEST_CASE("the module prints itself as the tutorial's does, and names what is wrong") {
  ExecContext context({.threads = 1});
  CHECK(CausalSelfAttention(context, config_of(512, 8, false, 0.1f)).to_string() ==
        "CausalSelfAttention(\n"
        "  (c_attn): Linear(in_features=512, out_features=1536, bias=False)\n"
        "  (c_proj): Linear(in_features=512, out_features=512, bias=False)\n"
        "  (resid_dropout): Dropout(p=0.1, inplace=False)\n"
        ")");
  CausalSelfAttentionConfig config = config_of(8, 2, true, 0.1f);
  config.attention_dropout = 0.0f;
  CHECK(CausalSelfAttention(context, config).to_string().find("(attn_dropout): Dropout(p=0.0,") !=
        std::string::npos);

  CHECK_THROWS_WITH_AS(CausalSelfAttention(context, config_of(8, 3, false)),
                       "causal_self_attention: n_head: expected a divisor of n_embd = 8, got 3", Error);
  CHECK_THROWS_AS(CausalSelfAttention(context, config_of(0, 1, false)), Error);
  CHECK_THROWS_AS(CausalSelfAttention(context, config_of(514, 2, false)), Error);
  CHECK_THROWS_AS(CausalSelfAttention(context, config_of(8, 2, false, 1.0f)), Error);
  config.mask = MaskKind::boolean;
  CHECK_THROWS_AS(CausalSelfAttention(context, config), Error);

  CausalSelfAttention module(context, config_of(8, 2, false));
  Floats x(24, 1.0f), out(24);
  const std::vector<std::int32_t> cu{0, 3}, wrong{0, 2};
  CHECK_THROWS_AS(module.forward({view(x, 8), wrong}, view(out, 8)), Error);
  CHECK_THROWS_AS(module.forward({view(x, 6), cu}, view(out, 6)), Error);
  module.forward({view(x, 8), cu}, view(out, 8));
  CHECK_THROWS_WITH_AS(
      module.backward(view(out, 8), {}),
      "causal_self_attention: backward: expected a forward pass in training before, got none", Error);
}

}  // namespace inkling
