// Attention over the cache: against f64, against itself in other chunks and batches, and its bookkeeping.
// Longer than 400 lines: the cache, steps and oracle above the cases serve every one of them.
#include "attention/cached_attention.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "attention/sdpa.h"
#include "engine/exec_context.h"
#include "tests/random.h"
#include "tests/worse.h"

namespace inkling {
namespace {

using test::Random;

ExecContext make_context(Isa isa, int threads) {
  ExecOptions options;
  options.device = Device::cpu;
  options.threads = threads;
  options.isa = isa;
  return ExecContext(options);
}

struct Shape {
  int heads = 2, kv_heads = 2, dim = 16;
};

/// The q, k and v of a whole sequence, laid out as a QKV projection leaves them: (T, (H + 2 Hkv) · D).
struct Tokens {
  Shape shape;
  std::int64_t length = 0;
  std::vector<float> qkv;
  std::int64_t width() const { return (shape.heads + 2 * shape.kv_heads) * shape.dim; }
  Tokens(Random& random, Shape s, std::int64_t t, float q_scale = 1.0f) : shape(s), length(t) {
    qkv = random.normals(t * width());
    for (std::int64_t i = 0; i < t; ++i) {
      for (int c = 0; c < s.heads * s.dim; ++c) qkv[static_cast<std::size_t>(i * width() + c)] *= q_scale;
    }
  }
  float q(std::int64_t t, int h, int d) const { return at(t, h * shape.dim + d); }
  float k(std::int64_t t, int h, int d) const { return at(t, (shape.heads + h) * shape.dim + d); }
  float v(std::int64_t t, int h, int d) const {
    return at(t, (shape.heads + shape.kv_heads + h) * shape.dim + d);
  }
  float at(std::int64_t t, int c) const { return qkv[static_cast<std::size_t>(t * width() + c)]; }
};

/// `value` as a cache of `dtype` holds it.
float rounded(float value, DType dtype) {
  if (dtype == DType::bf16) return static_cast<float>(bf16(value));
  if (dtype == DType::f16) return static_cast<float>(f16(value));
  return value;
}

/// Naive attention in f64 of query t over tokens 0 … t.
std::vector<double> oracle(const Tokens& x, std::int64_t t, DType dtype, double scale) {
  const Shape s = x.shape;
  std::vector<double> out(static_cast<std::size_t>(s.heads * s.dim));
  for (int h = 0; h < s.heads; ++h) {
    const int g = h / (s.heads / s.kv_heads);
    std::vector<double> p(static_cast<std::size_t>(t + 1));
    for (std::int64_t j = 0; j <= t; ++j) {
      double dot = 0;
      for (int d = 0; d < s.dim; ++d) dot += double{x.q(t, h, d)} * double{rounded(x.k(j, g, d), dtype)};
      p[static_cast<std::size_t>(j)] = dot * scale;
    }
    const double top = *std::max_element(p.begin(), p.end());
    double sum = 0;
    for (double& w : p) sum += w = std::exp(w - top);
    for (std::int64_t j = 0; j <= t; ++j) {
      for (int d = 0; d < s.dim; ++d) {
        out[static_cast<std::size_t>(h * s.dim + d)] +=
            p[static_cast<std::size_t>(j)] / sum * double{rounded(x.v(j, g, d), dtype)};
      }
    }
  }
  return out;
}

TensorView strided(float* data, std::int64_t rows, std::int64_t heads, std::int64_t dim,
                   std::int64_t row_stride) {
  TensorView view(data, DType::f32, {rows, heads, dim});
  view.stride = {row_stride, dim, 1, 0};
  return view;
}

/// One step: `take[b]` new tokens of sequence b, of which the last `want[b]` are queries.
struct StepOf {
  const Tokens* tokens;
  KvSequence* sequence;
  std::int64_t take, want;
};

std::vector<float> run_step(ExecContext& context, int layer, std::vector<StepOf> parts, float scale) {
  const Shape s = parts[0].tokens->shape;
  const std::int64_t width = parts[0].tokens->width();
  std::vector<float> packed;
  std::vector<std::int32_t> cu_new{0}, cu_q{0};
  std::vector<KvSequence*> sequences;
  for (const StepOf& p : parts) {
    const auto begin = p.tokens->qkv.begin() + p.sequence->length() * width;
    packed.insert(packed.end(), begin, begin + p.take * width);
    cu_new.push_back(cu_new.back() + static_cast<std::int32_t>(p.take));
    cu_q.push_back(cu_q.back() + static_cast<std::int32_t>(p.want));
    p.sequence->reserve(p.take);
    sequences.push_back(p.sequence);
  }
  packed.resize(packed.size() + 1);  // so that data() is never null
  std::vector<float> out(static_cast<std::size_t>(cu_q.back() * s.heads * s.dim) + 1, NAN);
  CachedAttentionArgs args;
  args.layer = layer;
  args.q = strided(packed.data(), cu_new.back(), s.heads, s.dim, width);
  args.k = strided(packed.data() + s.heads * s.dim, cu_new.back(), s.kv_heads, s.dim, width);
  args.v = strided(packed.data() + (s.heads + s.kv_heads) * s.dim, cu_new.back(), s.kv_heads, s.dim, width);
  args.cu_new = cu_new;
  args.cu_q = cu_q;
  args.sequences = sequences;
  args.scale = scale;
  args.out = TensorView(out.data(), DType::f32, {cu_q.back(), s.heads * s.dim});
  cached_attention(context, args);
  for (const StepOf& p : parts) p.sequence->advance(p.take);
  out.pop_back();
  return out;
}

KvShape kv_shape(Shape s, DType dtype) {
  return {2, s.kv_heads, s.dim, dtype};
}

/// A pool whose free pages are full of NaN.
struct Cache {
  KvPool pool;
  Cache(Shape s, DType dtype, std::int64_t tokens) : pool(kv_shape(s, dtype)) {
    KvSequence sequence(pool);
    sequence.reserve(tokens);
    sequence.truncate(0);
    pool.scribble_free_pages(std::byte{0xff});
  }
};

double worst(const std::vector<float>& got, const Tokens& x, std::int64_t first, std::int64_t count,
             DType dtype, float scale, double tolerance) {
  const auto width = static_cast<std::size_t>(x.shape.heads * x.shape.dim);
  double error = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto want = oracle(x, first + i, dtype, double{scale});
    for (std::size_t c = 0; c < width; ++c) {
      const double g = double{got[static_cast<std::size_t>(i) * width + c]};
      if (!(std::fabs(g - want[c]) <= tolerance)) return INFINITY;
      error = test::worse(error, std::fabs(g - want[c]));
    }
  }
  return error;
}

TEST_CASE("prefill and decode agree with the f64 oracle for every ISA, dtype, head size and length") {
  for (const Isa isa : supported_isas()) {
    ExecContext context = make_context(isa, 2);
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      for (const int dim : {1, 8, 16, 20, 32, 40, 64, 80, 96, 128, 256}) {
        Random random(static_cast<std::uint64_t>(dim));
        const Shape shape{2, 2, dim};
        const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
        for (const std::int64_t length : {1, 63, 64, 65, 130}) {
          INFO(isa_name(isa), " ", dtype_name(dtype), " D=", dim, " T=", length);
          const Tokens x(random, shape, length + 1);
          Cache cache(shape, dtype, length + 65);
          KvSequence sequence(cache.pool);
          const auto prefill = run_step(context, 1, {{&x, &sequence, length, length}}, scale);
          CHECK(worst(prefill, x, 0, length, dtype, scale, 2e-5) < 2e-5);
          const auto decode = run_step(context, 1, {{&x, &sequence, 1, 1}}, scale);
          CHECK(worst(decode, x, length, 1, dtype, scale, 2e-5) < 2e-5);
        }
      }
    }
  }
}

TEST_CASE("long sequences cross splits of 512 keys") {
  for (const Isa isa : supported_isas()) {
    ExecContext context = make_context(isa, 2);
    Random random(5);
    const Shape shape{2, 1, 24};
    for (const std::int64_t length : {511, 512, 513, 1100}) {
      INFO(isa_name(isa), " T=", length);
      const Tokens x(random, shape, length);
      Cache cache(shape, DType::f32, length);
      KvSequence sequence(cache.pool);
      const auto got = run_step(context, 0, {{&x, &sequence, length, 40}}, 0.3f);
      CHECK(worst(got, x, length - 40, 40, DType::f32, 0.3f, 2e-5) < 2e-5);
    }
  }
}

TEST_CASE("bits do not depend on chunking, batch, threads, wanted rows or recomputation") {
  for (const Isa isa : supported_isas()) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      INFO(isa_name(isa), " ", dtype_name(dtype));
      Random random(static_cast<std::uint64_t>(isa) * 7 + static_cast<std::uint64_t>(dtype));
      for (int round = 0; round < 3; ++round) {
        const Shape shape{round == 1 ? 6 : 2, 2, round == 2 ? 20 : 64};
        constexpr float kScale = 0.125f;
        std::vector<Tokens> all;
        for (int b = 0; b < 3; ++b)
          all.emplace_back(random, shape, random.range(1, b == 0 ? 700 : 200), 3.0f);
        // Alone, in one step, by one thread.
        ExecContext alone = make_context(isa, 1);
        std::vector<std::vector<float>> want;
        for (const Tokens& x : all) {
          Cache cache(shape, dtype, x.length);
          KvSequence sequence(cache.pool);
          want.push_back(run_step(alone, 0, {{&x, &sequence, x.length, x.length}}, kScale));
        }
        // Together, in random chunks, with random suffixes of wanted rows.
        ExecContext context = make_context(isa, round + 1);
        Cache cache(shape, dtype, 3 * 768);
        std::vector<KvSequence> sequences;
        for (std::size_t b = 0; b < all.size(); ++b) sequences.emplace_back(cache.pool);
        std::int64_t differing = 0;
        for (int step = 0; step < 1000; ++step) {
          std::vector<StepOf> parts;
          std::vector<std::size_t> who;
          for (std::size_t b = 0; b < all.size(); ++b) {
            const std::int64_t left = all[b].length - sequences[b].length();
            if (left == 0) continue;
            const std::int64_t most = step % 3 == 0 ? 1 : step % 3 == 1 ? 20 : 90;
            const std::int64_t take = random.range(0, std::min(left, most));
            parts.push_back({&all[b], &sequences[b], take, random.range(take / 2, take)});
            who.push_back(b);
          }
          if (parts.empty()) break;
          std::vector<std::int64_t> ends;
          for (std::size_t p = 0; p < parts.size(); ++p)
            ends.push_back(sequences[who[p]].length() + parts[p].take);
          const auto got = run_step(context, 0, parts, kScale);
          const auto width = static_cast<std::size_t>(shape.heads * shape.dim);
          std::size_t row = 0;
          for (std::size_t p = 0; p < parts.size(); ++p) {
            const auto count = static_cast<std::size_t>(parts[p].want);
            const float* reference =
                want[who[p]].data() + static_cast<std::size_t>(ends[p]) * width - count * width;
            differing += std::memcmp(got.data() + row * width, reference, count * width * sizeof(float)) != 0;
            row += count;
          }
        }
        CHECK(differing == 0);
      }
    }
  }
}

TEST_CASE("rising maxima, huge scores and later NaN do no harm") {
  for (const Isa isa : supported_isas()) {
    CAPTURE(isa_name(isa));
    ExecContext context = make_context(isa, 2);
    Random random(11);
    const Shape shape{1, 1, 16};
    Tokens rising(random, shape, 200);
    for (std::int64_t t = 0; t < 200; ++t) {
      for (int d = 0; d < 16; ++d) {
        rising.qkv[static_cast<std::size_t>(t * rising.width() + d)] = 1.0f;
        rising.qkv[static_cast<std::size_t>(t * rising.width() + 16 + d)] = 0.05f * static_cast<float>(t);
      }
    }
    const Tokens huge(random, shape, 200, 2500.0f);
    for (const Tokens* x : {static_cast<const Tokens*>(&rising), &huge}) {
      Cache cache(shape, DType::f32, 200);
      KvSequence sequence(cache.pool);
      const auto got = run_step(context, 0, {{x, &sequence, 200, 200}}, 1.0f);
      // Scores of 1e4 carry an absolute rounding error of 1e-3 before the exponential.
      CHECK(worst(got, *x, 0, 200, DType::f32, 1.0f, 2e-2) < 2e-2);
    }
    // A token that is NaN or infinite spoils itself and its successors, never its predecessors.
    Tokens spoiled(random, shape, 100);
    const Tokens clean = spoiled;
    for (int c = 0; c < 48; ++c) {
      spoiled.qkv[static_cast<std::size_t>(70 * spoiled.width() + c)] = c % 2 == 0 ? INFINITY : NAN;
    }
    Cache cache(shape, DType::f32, 300);
    KvSequence a(cache.pool), b(cache.pool);
    const auto got = run_step(context, 0, {{&spoiled, &a, 100, 100}}, 0.25f);
    const auto want = run_step(context, 0, {{&clean, &b, 100, 100}}, 0.25f);
    CHECK(std::memcmp(got.data(), want.data(), 70 * 16 * sizeof(float)) == 0);
    CHECK(std::ranges::all_of(got.begin() + 70 * 16, got.end(), [](float x) { return std::isnan(x); }));
  }
}

TEST_CASE("fork, truncate and append again give the bits of a fresh sequence") {
  for (const Isa isa : supported_isas()) {
    ExecContext context = make_context(isa, 2);
    Random random(3);
    const Shape shape{2, 2, 32};
    const Tokens x(random, shape, 150);
    Tokens y = x;
    for (std::int64_t t = 90; t < 150; ++t) {
      for (std::int64_t c = 0; c < y.width(); ++c) y.qkv[static_cast<std::size_t>(t * y.width() + c)] += 1.0f;
    }
    Cache cache(shape, DType::bf16, 600);
    KvSequence a(cache.pool), fresh_x(cache.pool), fresh_y(cache.pool);
    const auto want_x = run_step(context, 0, {{&x, &fresh_x, 150, 60}}, 0.2f);
    const auto want_y = run_step(context, 0, {{&y, &fresh_y, 150, 60}}, 0.2f);
    run_step(context, 0, {{&x, &a, 120, 1}}, 0.2f);
    KvSequence b = a.fork();
    b.truncate(90);
    a.truncate(90);
    const auto got = run_step(context, 0, {{&x, &a, 60, 60}, {&y, &b, 60, 60}}, 0.2f);
    CHECK(std::memcmp(got.data(), want_x.data(), want_x.size() * sizeof(float)) == 0);
    CHECK(std::memcmp(got.data() + want_x.size(), want_y.data(), want_y.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("a policy goes on to the next backend where one refuses, and gives every reason at its end") {
  ExecContext context = make_context(supported_isas().back(), 2);
  Random random(6);
  const Shape shape{4, 2, 16};
  const Tokens x(random, shape, 40);
  Cache cache(shape, DType::f32, 256);
  // The prompt and one token more: under math 2 threads hold weights of 30 · 30 and of 1 · 31 keys.
  const auto both = [&](const SdpaPolicy& policy) {
    const SdpaScope scope(context, policy);
    KvSequence sequence(cache.pool);
    std::vector<float> out = run_step(context, 0, {{&x, &sequence, 30, 30}}, 0.3f);
    const std::vector<float> more = run_step(context, 0, {{&x, &sequence, 1, 1}}, 0.3f);
    out.insert(out.end(), more.begin(), more.end());
    return out;
  };
  constexpr std::size_t kPrompt = 2 * 30 * 30 * sizeof(double), kToken = 2 * 31 * sizeof(double);
  using enum SdpaBackend;
  const auto by_flash = both({{flash}, 0}), by_math = both({{math}, kPrompt});
  CHECK(by_flash != by_math);
  CHECK(worst(by_math, x, 0, 31, DType::f32, 0.3f, 1e-6) < 1e-6);  // f64 within, f32 without
  CHECK(both({{math, flash}, kPrompt}) == by_math);
  CHECK(both({{math, flash}, 0}) == by_flash);
  auto mixed = by_flash;  // the prompt is too much for math, the token is not
  std::copy(by_math.end() - 64, by_math.end(), mixed.end() - 64);
  CHECK(both({{decode, math, flash}, kToken}) == by_flash);
  CHECK(both({{math, decode, flash}, kToken}) == mixed);
  std::string message;
  try {
    both({{decode, math}, kPrompt - 1});
  } catch (const Error& error) {
    CHECK(error.code() == Code::usage);
    message = error.what();
  }
  CHECK(message.find("decode: Tq · H/Hkv = 30 · 2 = 60 query rows, at most 16") != std::string::npos);
  CHECK(message.find("math: the weights of Tq=30 Tk=30 take 14400 bytes, memory_limit is 14399 bytes") !=
        std::string::npos);
}

TEST_CASE("a decode step is one synchronisation point") {
  ExecContext context = make_context(supported_isas().back(), 2);
  Random random(4);
  const Shape shape{2, 2, 16};
  const Tokens x(random, shape, 101);
  Cache cache(shape, DType::f32, 256);
  KvSequence a(cache.pool), b(cache.pool);
  run_step(context, 0, {{&x, &a, 100, 1}, {&x, &b, 7, 0}}, 1.0f);
  const std::uint64_t before = context.pool().jobs();
  run_step(context, 0, {{&x, &a, 1, 1}, {&x, &b, 1, 1}}, 1.0f);
  CHECK(context.pool().jobs() - before == 1);
}

TEST_CASE("misuse is refused with the argument's name") {
  ExecContext context = make_context(Isa::portable, 1);
  KvPool pool({1, 2, 8, DType::f32});
  KvSequence sequence(pool);
  KvSequence* one[] = {&sequence};
  std::vector<float> qkv(24 * 2 * 3), out(24 * 2);
  const std::int32_t cu[] = {0, 3};
  CachedAttentionArgs good;
  good.q = strided(qkv.data(), 3, 2, 8, 48);
  good.k = strided(qkv.data() + 16, 3, 2, 8, 48);
  good.v = strided(qkv.data() + 32, 3, 2, 8, 48);
  good.cu_new = good.cu_q = cu;
  good.sequences = one;
  good.out = TensorView(out.data(), DType::f32, {3, 16});
  const auto refusal = [&](CachedAttentionArgs args) -> std::string {
    try {
      cached_attention(context, args);
    } catch (const Error& error) {
      CHECK(error.code() == Code::usage);
      return error.what();
    }
    return "";
  };
  CHECK(refusal(good).find("room") != std::string::npos);
  sequence.reserve(3);
  CHECK(refusal(good).empty());
  CachedAttentionArgs bad = good;
  bad.layer = 1;
  CHECK(refusal(bad).find("layer") != std::string::npos);
  bad = good;
  bad.q.shape[1] = 3;
  CHECK(refusal(bad).find("q:") != std::string::npos);
  bad = good;
  bad.k.dtype = DType::bf16;
  CHECK(refusal(bad).find("k:") != std::string::npos);
  bad = good;
  const std::int32_t wrong[] = {0, 4};
  bad.cu_q = wrong;
  CHECK(refusal(bad).find("q") != std::string::npos);
  bad = good;
  bad.out.shape[1] = 8;
  CHECK(refusal(bad).find("out") != std::string::npos);
  bad = good;
  bad.scale = NAN;
  CHECK(refusal(bad).find("scale: expected a finite one") != std::string::npos);
  for (TensorView CachedAttentionArgs::*tensor : {&CachedAttentionArgs::q, &CachedAttentionArgs::k,
                                                  &CachedAttentionArgs::v, &CachedAttentionArgs::out}) {
    bad = good;
    (bad.*tensor).data = nullptr;
    CHECK(refusal(bad).find("got a null address") != std::string::npos);
  }
}

/// Memory that says it is a GPU's.
class Elsewhere : public Memory {
 public:
  Device device() const noexcept override { return Device::cuda; }
};

TEST_CASE("a step is refused at its beginning for a cache that its layers would refuse") {
  ExecContext context = make_context(Isa::portable, 1);
  const KvShape shape{2, 3, 8, DType::bf16};
  Elsewhere elsewhere;
  KvPool pool(shape), other(shape), away(shape, 0, &elsewhere);
  KvSequence a(pool), b(pool), stranger(other), far(away);
  const std::int32_t cu[] = {0, 1, 2};
  const auto refusal = [&](KvSequence& first, KvSequence& second, std::int64_t heads, const KvShape& cache) {
    KvSequence* sequences[] = {&first, &second};
    try {
      begin_cached_step(context, {heads, cache, cu, cu, sequences});
    } catch (const Error& error) {
      CHECK(error.code() == Code::usage);
      return error.message();
    }
    return std::string();
  };
  CHECK(refusal(a, b, 6, shape).empty());
  CHECK(refusal(a, b, 6, {1, 3, 8, DType::f32}).empty());  // fewer layers; on the CPU any dtype serves
  CHECK(refusal(a, stranger, 6, shape) ==
        "begin_cached_step: sequences: expected those of one pool, got sequence 1 of another");
  CHECK(refusal(far, far, 6, shape) ==
        "begin_cached_step: sequences: expected a cache in the memory of cpu, got cuda");
  CHECK(refusal(a, b, 4, shape) == "begin_cached_step: heads: expected a multiple of 3, got 4");
  for (const KvShape& wanted : {KvShape{3, 3, 8}, KvShape{2, 1, 8}, KvShape{2, 3, 16}}) {
    CHECK(refusal(a, b, 6, wanted).find("got one of 2 layers of 3 heads of 8 in bf16") != std::string::npos);
  }
}

}  // namespace
}  // namespace inkling
