// Against PyTorch in f64 (tests/golden/make_attention_golden.py), gradients included.
#include <doctest/doctest.h>

#include <fstream>
#include <string>
#include <vector>

#include "attention/sdpa_backward.h"
#include "tests/attention/problem.h"
#include "tests/data.h"

namespace inkling {
namespace {

using test::Data;
using test::make_context;
using test::Problem;
using test::Random;

std::vector<float> read_numbers(std::istream& file) {
  std::size_t count = 0;
  file >> count;
  std::vector<float> values(count);
  for (float& value : values) file >> value;
  return values;
}

void assign(Data& data, const std::vector<float>& values) {
  REQUIRE(static_cast<std::int64_t>(values.size()) == data.size());
  for (std::int64_t i = 0; i < data.size(); ++i) data.set(i, values[static_cast<std::size_t>(i)]);
}

double difference(const Data& got, const std::vector<float>& want) {
  REQUIRE(static_cast<std::int64_t>(want.size()) == got.size());
  double worst = 0;
  for (std::int64_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::fabs(double{got.get(i)} - double{want[static_cast<std::size_t>(i)]}));
  }
  return worst;
}

MaskKind mask_of(const std::string& name) {
  for (const MaskKind kind : test::kMasks) {
    if (mask_kind_name(kind) == name) return kind;
  }
  FAIL("unknown mask " << name);
  return MaskKind::none;
}

TEST_CASE("[golden] attention and its gradients are PyTorch's") {
  std::ifstream file(test::source_dir() / "tests/golden/attention.txt");
  std::string name, mask;
  std::int64_t heads = 0, kv_heads = 0, dim = 0, tq = 0, tk = 0;
  float scale = 0;
  int cases = 0;
  while (file >> name >> mask >> heads >> kv_heads >> dim >> tq >> tk >> scale) {
    ++cases;
    Random random(1);
    Problem problem(random, DType::f32, heads, kv_heads, dim, {{tq, tk}});
    problem.set_mask(random, mask_of(mask), false);
    problem.args.scale = scale;
    Data dout(DType::f32, {tq, heads, dim});
    assign(problem.q, read_numbers(file));
    assign(problem.k, read_numbers(file));
    assign(problem.v, read_numbers(file));
    assign(dout, read_numbers(file));
    const std::vector<float> bias = read_numbers(file);
    if (!bias.empty()) assign(problem.bias, bias);
    const auto out = read_numbers(file), lse = read_numbers(file);
    const auto dq = read_numbers(file), dk = read_numbers(file), dv = read_numbers(file);
    for (const Isa isa : supported_isas()) {
      ExecContext context = make_context(isa, 2);
      for (const SdpaBackend backend : {SdpaBackend::math, SdpaBackend::flash, SdpaBackend::decode}) {
        INFO(name, " ", isa_name(isa), " ", sdpa_backend_name(backend));
        SdpaScope scope(context, {backend, SdpaBackend::flash});
        sdpa(context, problem.args);
        CHECK(difference(problem.out, out) < 2e-6);
        CHECK(difference(problem.lse, lse) < 4e-6);
        Data got_q(DType::f32, {tq, heads, dim}), got_k(DType::f32, {tk, kv_heads, dim});
        Data got_v(DType::f32, {tk, kv_heads, dim});
        SdpaBackwardArgs args;
        args.forward = problem.args;
        args.dout = dout.view();
        args.dq = got_q.view();
        args.dk = got_k.view();
        args.dv = got_v.view();
        sdpa_backward(context, args);
        CHECK(difference(got_q, dq) < 1e-5);
        CHECK(difference(got_k, dk) < 1e-5);
        CHECK(difference(got_v, dv) < 1e-5);
      }
    }
  }
  CHECK(cases == 6);
}

}  // namespace
}  // namespace inkling
