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
#include "tests/allocations.h"
#include "tests/data.h"
#include "tests/model/random_gpt2.h"
#include "tests/model/run_model.h"
#include "tests/worse.h"

using namespace inkling;
using namespace inkling::test;

namespace {

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

ModelConfig small_config(std::int64_t width = 40) {
  ModelConfig config;
  config.vocab_size = 211;
  config.n_positions = 150;
  config.n_embd = width;
  config.n_layer = 2;
  config.n_head = width % 5 == 0 ? 5 : 4;
  return config;
}

}  // namespace

TEST_CASE("[golden] log-probabilities equal transformers' on every shape and instruction set") {
  std::ifstream file(source_dir() / "tests/golden/model_logprobs.json");
  const auto cases = nlohmann::json::parse(file);
  REQUIRE(cases.size() == 8);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const auto& c = cases[i];
    CAPTURE(c["name"].get<std::string>());
    const ModelConfig config = config_of(c);
    const TemporaryFolder folder;
    RandomGpt2(config, i + 1, config.bias == Bias::absent ? Naming::nanogpt : Naming::hugging_face)
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
      for (std::size_t t = 0; t < got.size(); ++t)
        worst = test::worse(worst, std::fabs(got[t] - expected[t]));
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
  if (!have_data("models/tiny-random-gpt2/model.safetensors")) return;
  ExecContext context({.threads = 2});
  const Model model = load(data_dir() / "models/tiny-random-gpt2", context);
  Forward forward(model, context);
  KvPool pool(forward.kv_shape(DType::f32));
  const auto logits = logits_of(forward, pool, {0, 0, 0, 52}, {4});
  const double expected[] = {-0.12675379, -0.04443946, 0.14492269, 0.03021223, -0.03212897};
  const float* last = logits.data() + 3 * model.config().vocab_size;
  for (std::size_t i = 0; i < 5; ++i) CHECK(last[200 * i] == doctest::Approx(expected[i]).epsilon(1e-4));
}

namespace {

bool same_bits(std::span<const float> got, std::span<const float> expected) {
  return got.size() == expected.size() && std::memcmp(got.data(), expected.data(), got.size_bytes()) == 0;
}

/// Some of the tokens to come of each prompt, in `order`; appends (prompt, token) of every wanted row, which
/// are the last few of each prompt's.
void fill_at_random(PackedBatch& batch, const std::vector<Ids>& prompts, std::span<const std::size_t> order,
                    std::vector<KvSequence>& sequences, Random& random,
                    std::vector<std::pair<std::size_t, std::size_t>>& rows) {
  for (const std::size_t p : order) {
    const auto at = static_cast<std::size_t>(sequences[p].length());
    const auto count = std::min(prompts[p].size() - at, static_cast<std::size_t>(random.range(0, 40)));
    if (count == 0) continue;
    const auto wanted = static_cast<std::size_t>(random.range(0, static_cast<std::int64_t>(count)));
    sequences[p].reserve(static_cast<std::int64_t>(count));
    batch.add(sequences[p], std::span(prompts[p]).subspan(at, count), static_cast<std::int64_t>(wanted));
    for (std::size_t i = at + count - wanted; i < at + count; ++i) rows.emplace_back(p, i);
  }
}

/// Runs all prompts in random packed steps; every wanted row must have the bits of `alone`, (T,V) of each
/// prompt.
void check_packed_steps(Forward& forward, KvPool& pool, const std::vector<Ids>& prompts,
                        const std::vector<std::vector<float>>& alone, Random& random) {
  const auto vocab = static_cast<std::size_t>(forward.model().config().vocab_size);
  std::vector<std::size_t> order(prompts.size());
  std::iota(order.begin(), order.end(), 0u);
  for (std::size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1],
              order[static_cast<std::size_t>(random.range(0, static_cast<std::int64_t>(i) - 1))]);
  }
  std::vector<KvSequence> sequences;
  for (std::size_t i = 0; i < prompts.size(); ++i) sequences.emplace_back(pool);
  const auto over = [&] {
    return std::ranges::equal(sequences, prompts, {}, &KvSequence::length,
                              [](const Ids& ids) { return static_cast<std::int64_t>(ids.size()); });
  };
  PackedBatch batch;
  while (!over()) {
    batch.clear();
    std::vector<std::pair<std::size_t, std::size_t>> rows;
    fill_at_random(batch, prompts, order, sequences, random, rows);
    forward.run(batch);
    const TensorView logits = forward.logits();
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const auto [p, t] = rows[r];
      const float* got = logits.as<float>() + static_cast<std::int64_t>(r) * logits.stride[0];
      REQUIRE(same_bits({got, vocab}, std::span(alone[p]).subspan(t * vocab, vocab)));
    }
  }
}

}  // namespace

// Width 40 is not a whole number of panels, 64 is: then the last layer's queries are computed apart.
TEST_CASE("a sequence's bits do not depend on batch, order, threads, chunks or the cache") {
  std::int64_t width = 0;
  SUBCASE("width 40") {
    width = 40;
  }
  SUBCASE("width 64") {
    width = 64;
  }
  const TemporaryFolder folder;
  RandomGpt2(small_config(width), 77).save(folder.path());
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
        if (threads == 1) {
          for (const Ids& ids : prompts) alone.push_back(logits_of(forward, pool, ids, {1000}));
        }
        for (std::size_t p = 0; p < prompts.size(); ++p) {  // token by token, and in uneven chunks
          REQUIRE(same_bits(logits_of(forward, pool, prompts[p], {1}), alone[p]));
          REQUIRE(same_bits(logits_of(forward, pool, prompts[p], {3, 60, 2, 64}), alone[p]));
        }
        for (int round = 0; round < 3; ++round) check_packed_steps(forward, pool, prompts, alone, random);
      }
    }
  }
}

TEST_CASE("a step that throws leaves the logits before it or none, whichever allocation fails") {
  const TemporaryFolder folder;
  RandomGpt2(small_config(), 3).save(folder.path());
  ExecContext context({.threads = 2});
  const Model model = load(folder.path(), context);
  std::int64_t failures = 0, none = 0;
  for (bool ran = false; !ran; ++failures) {
    CAPTURE(failures);
    Forward forward(model, context);
    KvPool pool(forward.kv_shape(DType::f32));
    KvSequence sequence(pool);
    sequence.reserve(150);
    PackedBatch batch;
    batch.add(sequence, Ids{1}, 1);
    forward.run(batch);
    const auto first_row = [&] {
      const TensorView row = forward.logits(0, 1);
      return std::vector<float>(row.as<float>(), row.as<float>() + row.shape[1]);
    };
    const std::vector<float> before = first_row();
    batch.clear();
    batch.add(sequence, Ids(100, 2), 100);  // far more activations than there is memory for
    {
      const FailingAllocation failing(failures);
      try {
        forward.run(batch);
        ran = true;
      } catch (const std::exception&) {
      }
    }
    if (ran) break;
    REQUIRE(sequence.length() == 1);
    try {
      const std::vector<float> after = first_row();
      REQUIRE(after == before);
    } catch (const Error& error) {
      REQUIRE(error.code() == Code::usage);
      ++none;
    }
  }
  CHECK(none > 0);
}

TEST_CASE("a step that does not fit the model is refused by figure") {
  const TemporaryFolder folder;
  RandomGpt2(small_config(), 3).save(folder.path());
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
  batch.clear();
  batch.add(sequence, Ids{1, 2}, 3);
  CHECK_THROWS_WITH_AS(forward.run(batch),
                       "forward: sequence 0: expected a sequence and 0 to 2 wanted rows, got 3", Error);
  batch.clear();
  batch.add(sequence, Ids{1, 2}, 1);
  batch.positions[1] = 5;
  CHECK_THROWS_WITH_AS(forward.run(batch), "forward: positions: expected 1 in sequence 0, got 5", Error);
  batch.clear();
  batch.add(sequence, Ids{1, 2}, 1);
  batch.cu_seqlens.push_back(2);
  CHECK_THROWS_AS(forward.run(batch), Error);
  KvSequence second(pool);
  second.reserve(2);
  for (const std::int32_t middle : {-1, 3, 100}) {  // offsets that fall, or leave the lists on the way
    batch.clear();
    batch.add(sequence, Ids{1}, 1);
    batch.add(second, Ids{2}, 1);
    batch.cu_seqlens[1] = middle;
    CHECK_THROWS_WITH_AS(forward.run(batch),
                         ("forward: cu_seqlens: expected offsets rising to 2, got 0 and " +
                          std::to_string(middle) + " for sequence 0")
                             .c_str(),
                         Error);
  }
  batch.clear();
  for (KvSequence* each : {&second, &sequence, &second}) batch.add(*each, Ids{1}, 1);
  CHECK_THROWS_WITH_AS(forward.run(batch), "forward: sequences: expected each once, got one as 0 and as 2",
                       Error);
  KvSequence full(pool);
  batch.clear();
  batch.add(full, Ids{1, 2}, 1);
  CHECK_THROWS_WITH_AS(forward.run(batch),
                       "forward: sequence 0: expected room for 2 tokens, got 0; reserve() first", Error);
  CHECK(sequence.length() == 0);
  LoadOptions tight;
  tight.max_memory = 1000;
  CHECK(Model::load(folder.path(), context, tight).error().code() == Code::out_of_memory);
  tight.max_memory = model.nbytes();
  CHECK(Model::load(folder.path(), context, tight));
  --tight.max_memory;
  CHECK(Model::load(folder.path(), context, tight).error().code() == Code::out_of_memory);
}
