// The forward against transformers' figures, and its signature: a sequence's logits have the same bits alone,
// in any batch, on any number of threads, in any chunks, with the cache or without.
#include "model/forward.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "engine/ops.h"
#include "tests/data.h"
#include "tests/model/random_gpt2.h"

using namespace inkling;
using test::Random;

namespace {

using Ids = std::vector<std::int32_t>;

struct Format {
  WeightType dtype;
  Quantisation quant;
  const char* name;
};
constexpr Format kFormats[] = {{WeightType::f32, Quantisation::none, "f32"},
                               {WeightType::bf16, Quantisation::none, "bf16"},
                               {WeightType::f16, Quantisation::none, "f16"},
                               {WeightType::automatic, Quantisation::int8, "int8"},
                               {WeightType::automatic, Quantisation::int4, "int4"}};

Model load(const std::filesystem::path& path, ExecContext& context, const Format& format = kFormats[0]) {
  LoadOptions options;
  options.dtype = format.dtype;
  options.quant = format.quant;
  return Model::load(path, context, options).value();
}

/// Logits after each of `ids`, (T, V), computed in chunks of the given sizes (the last repeats).
std::vector<float> logits_of(Forward& forward, KvPool& pool, const Ids& ids,
                             std::vector<std::int64_t> chunks) {
  KvSequence sequence(pool);
  PackedBatch batch;
  std::vector<float> all;
  for (std::size_t at = 0, i = 0; at < ids.size(); ++i) {
    const auto step = static_cast<std::size_t>(chunks[std::min(i, chunks.size() - 1)]);
    const std::size_t count = std::min(step, ids.size() - at);
    sequence.reserve(static_cast<std::int64_t>(count));
    batch.clear();
    batch.add(sequence, std::span(ids).subspan(at, count), static_cast<std::int64_t>(count));
    forward.run(batch);
    const TensorView logits = forward.logits();
    for (std::int64_t r = 0; r < logits.shape[0]; ++r) {
      const float* row = logits.as<float>() + r * logits.stride[0];
      all.insert(all.end(), row, row + logits.shape[1]);
    }
    at += count;
  }
  return all;
}

std::vector<double> logprobs_of(std::vector<float> logits, const Ids& ids) {
  const std::size_t vocab = logits.size() / ids.size();
  std::vector<double> out;
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
    const auto row = std::span(logits).subspan(i * vocab, vocab);
    const double top = *std::max_element(row.begin(), row.end());
    double sum = 0.0;
    for (const float v : row) sum += std::exp(v - top);
    out.push_back(row[static_cast<std::size_t>(ids[i + 1])] - top - std::log(sum));
  }
  return out;
}

double perplexity(const std::vector<double>& logprobs) {
  return std::exp(-std::accumulate(logprobs.begin(), logprobs.end(), 0.0) /
                  static_cast<double>(logprobs.size()));
}

ModelConfig config_of(const nlohmann::json& c) {
  ModelConfig config;
  config.vocab_size = c["V"];
  config.n_positions = c["T"];
  config.n_embd = c["C"];
  config.n_layer = c["L"];
  config.n_head = c["H"];
  config.n_inner = c.value("inner", 0);
  const std::string activation = c.value("activation", "gelu_new");
  config.activation = activation == "gelu"   ? Activation::gelu_erf
                      : activation == "relu" ? Activation::relu
                                             : Activation::gelu_tanh;
  config.layer_norm_epsilon = c.value("epsilon", 1e-5f);
  config.bias = c.value("bias", true) ? Bias::present : Bias::absent;
  config.head = c.value("tied", true) ? Head::tied : Head::separate;
  return config;
}

ModelConfig small_config() {
  ModelConfig config;
  config.vocab_size = 211;
  config.n_positions = 150;
  config.n_embd = 40;
  config.n_layer = 2;
  config.n_head = 5;
  return config;
}

}  // namespace

TEST_CASE("[golden] log-probabilities equal transformers' on every shape and instruction set") {
  std::ifstream file(test::source_dir() / "tests/golden/model_logprobs.json");
  const auto cases = nlohmann::json::parse(file);
  REQUIRE(cases.size() == 8);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const auto& c = cases[i];
    CAPTURE(c["name"].get<std::string>());
    const ModelConfig config = config_of(c);
    const test::TemporaryFolder folder;
    test::RandomGpt2(config, i + 1,
                     config.bias == Bias::absent ? test::Naming::nanogpt : test::Naming::hugging_face)
        .save(folder.path());
    const Ids ids = c["ids"];
    const std::vector<double> expected = c["logprobs"];
    for (const Isa isa : supported_isas()) {
      CAPTURE(isa_name(isa));
      ExecContext context({.threads = 2, .isa = isa});
      const Model model = load(folder.path(), context);
      Forward forward(model, context);
      KvPool pool(forward.kv_shape(DType::f32));
      const auto logits = logits_of(forward, pool, ids, {static_cast<std::int64_t>(ids.size())});
      const auto got = logprobs_of(logits, ids);
      double worst = 0.0;
      for (std::size_t t = 0; t < got.size(); ++t) worst = std::max(worst, std::fabs(got[t] - expected[t]));
      CHECK(worst <= 1e-4);
      CHECK(perplexity(got) == doctest::Approx(perplexity(expected)).epsilon(1e-3));
      for (std::size_t v = 0; v < 8; ++v) {
        CHECK(logits[logits.size() - static_cast<std::size_t>(config.vocab_size) + v] ==
              doctest::Approx(c["last_logits"][v].get<double>()).epsilon(1e-4));
      }
      // 16-bit weights move the perplexity by less than 1 %.
      for (const Format& format : {kFormats[1], kFormats[2]}) {
        const Model narrow = load(folder.path(), context, format);
        Forward narrow_forward(narrow, context);
        KvPool narrow_pool(narrow_forward.kv_shape(narrow_forward.default_kv_dtype()));
        const auto narrow_logits =
            logits_of(narrow_forward, narrow_pool, ids, {static_cast<std::int64_t>(ids.size())});
        CHECK(perplexity(logprobs_of(narrow_logits, ids)) ==
              doctest::Approx(perplexity(expected)).epsilon(0.01));
      }
    }
  }
}

TEST_CASE("[golden] tiny-random-gpt2 gives the published logits") {
  if (!test::have_data("models/tiny-random-gpt2/model.safetensors")) return;
  ExecContext context({.threads = 2});
  const Model model = load(test::data_dir() / "models/tiny-random-gpt2", context);
  Forward forward(model, context);
  KvPool pool(forward.kv_shape(DType::f32));
  const auto logits = logits_of(forward, pool, {0, 0, 0, 52}, {4});
  const double expected[] = {-0.12675379, -0.04443946, 0.14492269, 0.03021223, -0.03212897};
  const float* last = logits.data() + 3 * model.config().vocab_size;
  for (std::size_t i = 0; i < 5; ++i) CHECK(last[200 * i] == doctest::Approx(expected[i]).epsilon(1e-4));
}

TEST_CASE("[golden] gpt-nano-sort sorts all 729 inputs and gives its published logits") {
  const std::string folder = "models/gpt-nano-sort/";
  if (!test::have_data(folder + "gpt-nano-sort.safetensors")) return;
  ModelConfig config;
  config.n_head = 3;
  config.activation = Activation::gelu_tanh;
  LoadOptions options;
  options.config = config;
  ExecContext context({.threads = 2});
  const Model model =
      Model::load(test::data_dir() / folder / "gpt-nano-sort.safetensors", context, options).value();
  CHECK(model.config().head == Head::separate);
  Forward forward(model, context);
  KvPool pool(forward.kv_shape(DType::f32));
  int sorted = 0;
  for (int n = 0; n < 729; ++n) {
    Ids digits;
    for (int i = 0, rest = n; i < 6; ++i, rest /= 3) digits.push_back(rest % 3);
    Ids expected = digits, answer;
    std::sort(expected.begin(), expected.end());
    KvSequence sequence(pool);
    PackedBatch batch;
    Ids next = digits;
    for (int i = 0; i < 6; ++i) {
      sequence.reserve(static_cast<std::int64_t>(next.size()));
      batch.clear();
      batch.add(sequence, next, 1);
      forward.run(batch);
      const float* row = forward.logits().as<float>();
      answer.push_back(static_cast<std::int32_t>(std::max_element(row, row + 3) - row));
      next = {answer.back()};
    }
    sorted += answer == expected ? 1 : 0;
  }
  CHECK(sorted == 729);
}

TEST_CASE("a sequence's bits do not depend on batch, order, threads, chunks or the cache") {
  const test::TemporaryFolder folder;
  test::RandomGpt2(small_config(), 77).save(folder.path());
  Random random(1);
  std::vector<Ids> prompts;
  for (const std::size_t length : {1u, 2u, 7u, 63u, 64u, 65u, 130u, 20u}) {
    Ids ids(length);
    for (auto& id : ids) id = static_cast<std::int32_t>(random.range(0, 210));
    prompts.push_back(ids);
  }
  for (const Isa isa : supported_isas()) {
    for (const Format& format : kFormats) {
      CAPTURE(isa_name(isa));
      CAPTURE(format.name);
      std::vector<std::vector<float>> alone;
      for (const int threads : {1, 2, 3}) {
        ExecContext context({.threads = threads, .isa = isa});
        const Model model = load(folder.path(), context, format);
        Forward forward(model, context);
        KvPool pool(forward.kv_shape(forward.default_kv_dtype()));
        const auto vocab = static_cast<std::size_t>(model.config().vocab_size);
        const auto same = [&](std::span<const float> got, std::span<const float> expected) {
          return got.size() == expected.size() &&
                 std::memcmp(got.data(), expected.data(), got.size_bytes()) == 0;
        };
        if (threads == 1) {
          for (const Ids& ids : prompts) alone.push_back(logits_of(forward, pool, ids, {1000}));
        }
        for (std::size_t p = 0; p < prompts.size(); ++p) {  // token by token, and in uneven chunks
          REQUIRE(same(logits_of(forward, pool, prompts[p], {1}), alone[p]));
          REQUIRE(same(logits_of(forward, pool, prompts[p], {3, 60, 2, 64}), alone[p]));
        }
        for (int round = 0; round < 3; ++round) {  // random packed steps, a suffix of the rows wanted
          std::vector<std::size_t> order(prompts.size()), at(prompts.size(), 0);
          std::iota(order.begin(), order.end(), 0u);
          for (std::size_t i = order.size(); i > 1; --i) {
            std::swap(order[i - 1],
                      order[static_cast<std::size_t>(random.range(0, static_cast<std::int64_t>(i) - 1))]);
          }
          std::vector<KvSequence> sequences;
          for (std::size_t i = 0; i < prompts.size(); ++i) sequences.emplace_back(pool);
          PackedBatch batch;
          while (true) {
            batch.clear();
            std::vector<std::pair<std::size_t, std::size_t>> rows;  // (prompt, token) of every wanted row
            for (const std::size_t p : order) {
              const std::size_t left = prompts[p].size() - at[p];
              const auto count = std::min(left, static_cast<std::size_t>(random.range(0, 40)));
              if (count == 0) continue;
              const auto wanted = static_cast<std::size_t>(random.range(0, static_cast<std::int64_t>(count)));
              sequences[p].reserve(static_cast<std::int64_t>(count));
              batch.add(sequences[p], std::span(prompts[p]).subspan(at[p], count),
                        static_cast<std::int64_t>(wanted));
              at[p] += count;
              for (std::size_t i = at[p] - wanted; i < at[p]; ++i) rows.emplace_back(p, i);
            }
            if (batch.tokens() == 0 &&
                std::equal(at.begin(), at.end(), prompts.begin(),
                           [](std::size_t a, const Ids& ids) { return a == ids.size(); })) {
              break;
            }
            forward.run(batch);
            const TensorView logits = forward.logits();
            for (std::size_t r = 0; r < rows.size(); ++r) {
              const auto [p, t] = rows[r];
              const float* got = logits.as<float>() + static_cast<std::int64_t>(r) * logits.stride[0];
              REQUIRE(same({got, vocab}, std::span(alone[p]).subspan(t * vocab, vocab)));
            }
          }
        }
      }
    }
  }
}

TEST_CASE("[golden] the sample model keeps its perplexity in every format") {
  const auto folder = test::source_dir() / "weights/sample";
  std::ifstream file(folder / "golden.json");
  const auto golden = nlohmann::json::parse(file);
  const Ids prompt = golden["prompt_ids"], expected = golden["greedy_ids"];
  ExecContext context({.threads = 2});
  const Model model = load(folder, context);
  Forward forward(model, context);
  KvPool pool(forward.kv_shape(DType::f32));
  KvSequence sequence(pool);
  PackedBatch batch;
  Ids next = prompt, answer;
  while (answer.size() < expected.size()) {
    sequence.reserve(static_cast<std::int64_t>(next.size()));
    batch.clear();
    batch.add(sequence, next, 1);
    forward.run(batch);
    const float* row = forward.logits().as<float>();
    answer.push_back(static_cast<std::int32_t>(std::max_element(row, row + model.config().vocab_size) - row));
    next = {answer.back()};
  }
  CHECK(answer == expected);

  // Perplexity of the model's own kind of text: its greedy text and what follows from other openings is too
  // easy, so the figure is taken over pseudo-random continuations drawn from the f32 model itself.
  Random random(4);
  Ids text = prompt;
  KvSequence draw(pool);
  next = prompt;
  while (text.size() < 250) {
    draw.reserve(static_cast<std::int64_t>(next.size()));
    batch.clear();
    batch.add(draw, next, 1);
    forward.run(batch);
    TensorView logits = forward.logits();
    softmax(context, logits);
    const float* p = logits.as<float>();
    double u = random.uniform();
    std::int32_t id = 0;
    while (id + 1 < model.config().vocab_size && (u -= p[id]) > 0) ++id;
    text.push_back(id);
    next = {id};
  }
  const auto ppl = [&](const Format& format) {
    const Model m = load(folder, context, format);
    Forward f(m, context);
    KvPool kv(f.kv_shape(f.default_kv_dtype()));
    return perplexity(logprobs_of(logits_of(f, kv, text, {1000}), text));
  };
  const double base = ppl(kFormats[0]);
  MESSAGE("sample model, perplexity of its own text: f32 " << base << ", bf16 " << ppl(kFormats[1])
                                                           << ", int8 " << ppl(kFormats[3]) << ", int4 "
                                                           << ppl(kFormats[4]));
  CHECK(ppl(kFormats[1]) == doctest::Approx(base).epsilon(0.01));
  CHECK(ppl(kFormats[2]) == doctest::Approx(base).epsilon(0.01));
  CHECK(ppl(kFormats[3]) == doctest::Approx(base).epsilon(0.01));
  CHECK(ppl(kFormats[4]) == doctest::Approx(base).epsilon(0.05));
}

TEST_CASE("a step that does not fit the model is refused by figure") {
  const test::TemporaryFolder folder;
  test::RandomGpt2(small_config(), 3).save(folder.path());
  ExecContext context({.threads = 1});
  const Model model = load(folder.path(), context);
  Forward forward(model, context);
  KvPool pool(forward.kv_shape(DType::f32));
  KvSequence sequence(pool);
  sequence.reserve(200);
  PackedBatch batch;
  batch.add(sequence, Ids{211}, 1);
  CHECK_THROWS_WITH_AS(forward.run(batch), "forward: ids: expected ids below 211, got 211", Error);
  batch.clear();
  batch.add(sequence, Ids(151, 1), 1);
  CHECK_THROWS_WITH_AS(forward.run(batch),
                       "forward: positions: the model has 150 positions, got a token at position 150", Error);
  CHECK(sequence.length() == 0);
  LoadOptions tight;
  tight.max_memory = 1000;
  CHECK(Model::load(folder.path(), context, tight).error().code() == Code::out_of_memory);
}
