// Attention over the cache on a GPU, step after step in one context. Where no GPU can be used each case says
// so and checks nothing.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/cached_attention.h"
#include "attention/heads.h"
#include "attention/sdpa.h"
#include "tests/engine/on_device.h"
#include "tests/gpu.h"
#include "tests/random.h"
#include "tests/worse.h"

namespace inkling {
namespace {

constexpr std::int64_t kTokens = 70, kDim = 64, kKvHeads = 2;

/// What H heads of queries see of the tokens, which are the sequence's first.
std::vector<float> attended(ExecContext& gpu, KvSequence& sequence, std::int64_t heads) {
  test::Random random(4);
  const std::int64_t width = (heads + 2 * kKvHeads) * kDim;
  const test::OnDevice qkv(gpu, random.normals(kTokens * width), kTokens, width, DType::bf16);
  test::OnDevice out(gpu, std::vector<float>(static_cast<std::size_t>(kTokens * heads * kDim)), kTokens,
                     heads * kDim, DType::bf16);
  const std::int32_t cu[] = {0, kTokens};
  KvSequence* const sequences[] = {&sequence};
  cached_attention(
      gpu, {0, heads_of(qkv.view(), 0, heads, kDim), heads_of(qkv.view(), heads * kDim, kKvHeads, kDim),
            heads_of(qkv.view(), (heads + kKvHeads) * kDim, kKvHeads, kDim), cu, cu, sequences, 0.125f,
            out.view()});
  return out.values();
}

/// Sequences of the same heads, each with its queries, keys and values: (T, (H + 2 Hkv) · D) in `dtype`.
struct World {
  std::int64_t heads, dim;
  DType dtype;
  std::vector<std::vector<float>> tokens;

  std::int64_t width() const { return (heads + 2 * kKvHeads) * dim; }
  float rounded(float x) const {
    return dtype == DType::bf16  ? static_cast<float>(bf16(x))
           : dtype == DType::f16 ? static_cast<float>(f16(x))
                                 : x;
  }
  float at(std::size_t b, std::int64_t t, std::int64_t column) const {
    return rounded(tokens[b][static_cast<std::size_t>(t * width() + column)]);
  }
  /// In f64, what head h of query t of sequence b sees of tokens 0 … t.
  std::vector<double> oracle(std::size_t b, std::int64_t t, std::int64_t h, double scale) const {
    const std::int64_t kv = h / (heads / kKvHeads), k = (heads + kv) * dim, v = k + kKvHeads * dim;
    std::vector<double> weights, out(static_cast<std::size_t>(dim));
    for (std::int64_t j = 0; j <= t; ++j) {
      double dot = 0;
      for (std::int64_t d = 0; d < dim; ++d) dot += double{at(b, t, h * dim + d)} * double{at(b, j, k + d)};
      weights.push_back(dot * scale);
    }
    const double top = *std::ranges::max_element(weights);
    double sum = 0;
    for (double& weight : weights) sum += weight = std::exp(weight - top);
    for (std::int64_t j = 0; j <= t; ++j) {
      for (std::int64_t d = 0; d < dim; ++d) {
        out[static_cast<std::size_t>(d)] +=
            weights[static_cast<std::size_t>(j)] / sum * double{at(b, j, v + d)};
      }
    }
    return out;
  }
};

/// Appends take[b] tokens to sequence b and attends to them all; the largest error of those that are wanted,
/// the last want[b].
double step(ExecContext& gpu, const World& world, std::vector<KvSequence>& sequences,
            const std::vector<std::int64_t>& take, const std::vector<std::int64_t>& want, int layer) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(world.dim));
  std::vector<float> rows;
  std::vector<std::int32_t> cu_new{0}, cu_q{0};
  std::vector<KvSequence*> all;
  for (std::size_t b = 0; b < sequences.size(); ++b) {
    const auto begin = world.tokens[b].begin() + sequences[b].length() * world.width();
    rows.insert(rows.end(), begin, begin + take[b] * world.width());
    cu_new.push_back(cu_new.back() + static_cast<std::int32_t>(take[b]));
    cu_q.push_back(cu_q.back() + static_cast<std::int32_t>(want[b]));
    sequences[b].reserve(take[b]);
    all.push_back(&sequences[b]);
  }
  const test::OnDevice qkv(gpu, rows, cu_new.back(), world.width(), world.dtype);
  std::vector<float> queries;  // the wanted rows, one after another
  for (std::size_t b = 0; b < sequences.size(); ++b) {
    const auto end = rows.begin() + cu_new[b + 1] * world.width();
    queries.insert(queries.end(), end - want[b] * world.width(), end);
  }
  const test::OnDevice q(gpu, queries, cu_q.back(), world.width(), world.dtype);
  const std::vector<float> poison(static_cast<std::size_t>(cu_q.back() * world.heads * world.dim), NAN);
  test::OnDevice out(gpu, poison, cu_q.back(), world.heads * world.dim, world.dtype);
  cached_attention(gpu, {layer, heads_of(q.view(), 0, world.heads, world.dim),
                         heads_of(qkv.view(), world.heads * world.dim, kKvHeads, world.dim),
                         heads_of(qkv.view(), (world.heads + kKvHeads) * world.dim, kKvHeads, world.dim),
                         cu_new, cu_q, all, scale, out.view()});
  const std::vector<float> got = out.values();
  double worst = 0;
  for (std::size_t b = 0; b < sequences.size(); ++b) {
    sequences[b].advance(take[b]);
    for (std::int64_t i = 0; i < want[b]; ++i) {
      for (std::int64_t h = 0; h < world.heads; ++h) {
        const auto expected = world.oracle(b, sequences[b].length() - want[b] + i, h, double{scale});
        const float* const row = got.data() + ((cu_q[b] + i) * world.heads + h) * world.dim;
        for (std::size_t d = 0; d < expected.size(); ++d) {
          worst = test::worse(worst, std::fabs(double{row[d]} - expected[d]));
        }
      }
    }
  }
  return worst;
}

}  // namespace

TEST_CASE("[cuda] a cache attended in chunks, forked and truncated, is f64's by every backend") {
  if (!test::have_gpu()) return;
  using enum SdpaBackend;
  std::uint64_t seed = 40;
  for (const auto& order :
       std::vector<std::vector<SdpaBackend>>{{decode, flash, math}, {flash}, {math}, {decode, math}}) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      for (const auto& [heads, dim] : {std::pair<std::int64_t, std::int64_t>{2, 64}, {6, 40}}) {
        ExecContext gpu({.device = Device::cuda, .threads = 1});
        const SdpaScope scope(gpu, SdpaPolicy{order});
        test::Random random(++seed);
        World world{heads, dim, dtype, {}};
        for (int b = 0; b < 3; ++b) world.tokens.push_back(random.normals(300 * world.width()));
        KvPool pool({2, static_cast<int>(kKvHeads), static_cast<int>(dim), dtype}, 0, &gpu.backend());
        std::vector<KvSequence> sequences;
        for (int b = 0; b < 3; ++b) sequences.emplace_back(pool);
        // Weights and the result are rounded to the dtype, each off by half a unit of at most the largest
        // value.
        const double unit = dtype == DType::bf16 ? 0x1p-8 : dtype == DType::f16 ? 0x1p-11 : 1e-6;
        const double allowed = 5 * unit + 1e-5;
        INFO(sdpa_backend_name(order[0]), " of ", order.size(), ", ", dtype_name(dtype), " D=", dim);
        CHECK(step(gpu, world, sequences, {130, 1, 64}, {130, 1, 3}, 1) <= allowed);
        CHECK(step(gpu, world, sequences, {1, 1, 1}, {1, 1, 1}, 1) <= allowed);
        CHECK(step(gpu, world, sequences, {20, 70, 0}, {1, 70, 0}, 1) <= allowed);
        sequences[2] = sequences[0].fork();
        world.tokens[2] = world.tokens[0];
        for (std::size_t i = static_cast<std::size_t>(151 * world.width()); i < world.tokens[2].size(); ++i) {
          world.tokens[2][i] = -world.tokens[2][i];
        }
        CHECK(step(gpu, world, sequences, {1, 3, 1}, {1, 3, 1}, 1) <= allowed);
        sequences[0].truncate(100);
        CHECK(step(gpu, world, sequences, {1, 1, 2}, {1, 1, 2}, 1) <= allowed);
      }
    }
  }
}

TEST_CASE("[cuda] the same sequences with other heads are another step") {
  if (!test::have_gpu()) return;
  ExecContext one({.device = Device::cuda, .threads = 1}), other({.device = Device::cuda, .threads = 1});
  const KvShape shape{1, static_cast<int>(kKvHeads), static_cast<int>(kDim), DType::bf16};
  KvPool pool(shape, 0, &one.backend()), fresh_pool(shape, 0, &other.backend());
  KvSequence sequence(pool), fresh(fresh_pool);
  sequence.reserve(kTokens);
  fresh.reserve(kTokens);
  attended(one, sequence, 2);
  CHECK(attended(one, sequence, 4) == attended(other, fresh, 4));
}

}  // namespace inkling
