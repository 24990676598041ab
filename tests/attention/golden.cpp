// Against PyTorch in f64 (tests/golden/make_attention_golden.py), gradients included.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/attention/gradients.h"
#include "tests/attention/on_gpu.h"
#include "tests/data.h"

namespace inkling {
namespace {

using test::Data;
using test::differentiate;
using test::Gradients;
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
    worst = test::worse(worst, std::fabs(double{got.get(i)} - double{want[static_cast<std::size_t>(i)]}));
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

DType dtype_of_name(const std::string& name) {
  for (const DType dtype : test::kDtypes) {
    if (dtype_name(dtype) == name) return dtype;
  }
  FAIL("unknown dtype " << name);
  return DType::f32;
}

/// A case of the file: a problem, and PyTorch's answer.
struct Case {
  std::string name;
  std::unique_ptr<Problem> problem;
  Data dout;
  std::vector<float> out, lse, dq, dk, dv, dbias;
};

/// False at the end of the file.
bool read_case(std::istream& file, Case& c) {
  std::string mask_name, dtype_text;
  std::int64_t heads = 0, kv_heads = 0, dim = 0, tq = 0, tk = 0, left = 0, right = 0;
  float scale = 0;
  if (!(file >> c.name >> mask_name >> dtype_text >> heads >> kv_heads >> dim >> tq >> tk >> scale >> left >>
        right))
    return false;
  const DType dtype = dtype_of_name(dtype_text);
  Random random(1);
  c.problem = std::make_unique<Problem>(random, dtype, heads, kv_heads, dim,
                                        std::vector<std::pair<std::int64_t, std::int64_t>>{{tq, tk}});
  Problem& p = *c.problem;
  p.set_mask(random, mask_of(mask_name), false);
  p.args.mask.left = left < 0 ? kUnlimited : left;
  p.args.mask.right = right < 0 ? kUnlimited : right;
  p.args.scale = scale;
  c.dout = Data(dtype, {tq, heads, dim});
  assign(p.q, read_numbers(file));
  assign(p.k, read_numbers(file));
  assign(p.v, read_numbers(file));
  assign(c.dout, read_numbers(file));
  const std::vector<float> bias = read_numbers(file);
  if (p.args.mask.kind == MaskKind::additive_bias) assign(p.bias, bias);
  if (p.args.mask.kind == MaskKind::boolean) {
    REQUIRE(static_cast<std::int64_t>(bias.size()) == p.visible.numel());
    std::ranges::transform(bias, static_cast<std::uint8_t*>(p.visible.view().data),
                           [](float seen) { return static_cast<std::uint8_t>(seen); });
  }
  for (std::vector<std::int32_t>* documents : {&p.document_q, &p.document_k}) {
    const std::vector<float> numbers = read_numbers(file);
    REQUIRE(numbers.size() == documents->size());
    std::ranges::transform(numbers, documents->begin(),
                           [](float document) { return static_cast<std::int32_t>(document); });
  }
  for (std::vector<float>* answer : {&c.out, &c.lse, &c.dq, &c.dk, &c.dv, &c.dbias}) {
    *answer = read_numbers(file);
  }
  return static_cast<bool>(file);
}

TEST_CASE("[golden] attention and its gradients are PyTorch's") {
  std::ifstream file(test::source_dir() / "tests/golden/attention.txt");
  int cases = 0;
  for (Case c; read_case(file, c); ++cases) {
    Problem& p = *c.problem;
    for (const Isa isa : supported_isas()) {
      ExecContext context = make_context(isa, 2);
      for (const SdpaBackend backend : {SdpaBackend::math, SdpaBackend::flash, SdpaBackend::decode}) {
        INFO(c.name, " ", isa_name(isa), " ", sdpa_backend_name(backend));
        SdpaScope scope(context, {backend, SdpaBackend::flash});
        if (p.dtype != DType::f32) {  // rounded once more
          p.give_out_in(p.dtype);
          sdpa(context, p.args);
          const double most =
              std::fabs(double{*std::ranges::max_element(c.out, {}, [](float x) { return std::fabs(x); })});
          CHECK(difference(p.out, c.out) < 2e-6 + (p.dtype == DType::f16 ? 0x1p-11 : 0x1p-8) * most);
          p.give_out_in(DType::f32);
        }
        sdpa(context, p.args);
        CHECK(difference(p.out, c.out) < 2e-6);
        CHECK(difference(p.lse, c.lse) < 4e-6);
        const SdpaBackend backward = backend == SdpaBackend::math ? backend : SdpaBackend::flash;
        const Gradients g = differentiate(context, p, c.dout, backward);
        CHECK(difference(g.dq, c.dq) < 1e-5);
        CHECK(difference(g.dk, c.dk) < 1e-5);
        CHECK(difference(g.dv, c.dv) < 1e-5);
        if (p.args.mask.kind == MaskKind::additive_bias) CHECK(difference(g.dbias, c.dbias) < 1e-5);
      }
    }
  }
  CHECK(file.eof());
  CHECK(cases == 11);
}

TEST_CASE("[cuda] attention and its gradients are PyTorch's") {
  if (!test::have_gpu()) return;
  ExecContext gpu = test::make_gpu_context();
  std::ifstream file(test::source_dir() / "tests/golden/attention.txt");
  int cases = 0;
  for (Case c; read_case(file, c); ++cases) {
    Problem& p = *c.problem;
    p.give_out_in(DType::f32);
    for (const SdpaBackend backend : {SdpaBackend::math, SdpaBackend::flash, SdpaBackend::decode}) {
      INFO(c.name, " ", sdpa_backend_name(backend));
      const bool exact = backend == SdpaBackend::math;
      test::GpuProblem there(gpu, p);
      there.run(backend);
      const auto [out, lse] = test::bounds(p);
      CHECK(difference(p.out, c.out) < (exact ? 2e-6 : out + 2e-6));
      CHECK(difference(p.lse, c.lse) < (exact ? 4e-6 : lse + 4e-6));
      // The cases' bias is of all heads, whose gradient is math's alone.
      if (backend == SdpaBackend::decode || (!exact && p.args.mask.kind == MaskKind::additive_bias)) continue;
      Gradients g(p);
      there.differentiate(c.dout, g, backend);
      const double unit = exact ? 2e-6 : p.dtype == DType::f32 ? 1e-5 : 4 * test::unit(p.dtype);
      CHECK(difference(g.dq, c.dq) < unit);
      CHECK(difference(g.dk, c.dk) < unit);
      CHECK(difference(g.dv, c.dv) < unit);
      if (p.args.mask.kind == MaskKind::additive_bias) CHECK(difference(g.dbias, c.dbias) < unit);
    }
  }
  CHECK(cases == 11);
}

}  // namespace
}  // namespace inkling
