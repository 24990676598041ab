// The model on a GPU against the model on the CPU. Where no GPU can be used each case says so and checks
// nothing.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "attention/sdpa.h"
#include "model/fused_layers.h"
#include "model/fused_products.h"
#include "tests/gpu.h"
#include "tests/model/run_model.h"
#include "tests/model/small_world.h"
#include "tests/worse.h"

using namespace inkling;
using namespace inkling::test;

namespace {

/// A model on one device, with a cache.
struct Running {
  ExecContext context;
  Model model;
  Forward forward;
  KvPool pool;
  Running(const std::filesystem::path& path, Device device, const Format& format)
      : context({.device = device, .threads = 1}),
        model(load(path, context, format)),
        forward(model, context),
        pool(forward.kv_shape(forward.default_kv_dtype()), 0, &context.backend()) {}
  std::vector<float> logits(const Ids& ids, std::vector<std::int64_t> chunks) {
    return logits_of(forward, pool, ids, std::move(chunks));
  }
};

ModelConfig config_of(std::int64_t width, std::int64_t heads) {
  ModelConfig config;
  config.vocab_size = 211;
  config.n_positions = 200;
  config.n_embd = width;
  config.n_layer = 3;
  config.n_head = heads;
  return config;
}

Ids random_ids(std::size_t length, std::uint64_t seed) {
  Random random(seed);
  Ids ids(length);
  for (auto& id : ids) id = static_cast<std::int32_t>(random.range(0, 210));
  return ids;
}

struct Shape {
  std::int64_t width, heads;
};
constexpr Shape kShapes[] = {{40, 2}, {128, 2}, {96, 3}, {256, 2}};

}  // namespace

TEST_CASE("[cuda] logits are the CPU's: f32 within 1e-3, 16 bits and integers to their rounding") {
  if (!have_gpu()) return;
  for (const Shape shape : kShapes) {
    const Ids ids = random_ids(150, 1);
    for (const Format& format : kFormats) {
      CAPTURE(shape.width);
      CAPTURE(format.name);
      // Integers are held to an f32 model of what they stand for: on the CPU they would meet quantised
      // activations.
      const TemporaryFolder folder, oracle_folder;
      RandomGpt2 random(config_of(shape.width, shape.heads), 9);
      random.save(folder.path());
      ExecContext host({.device = Device::cpu, .threads = 1});
      if (format.quant != Quantisation::none) {
        random.quantise(host, format.quant == Quantisation::int8 ? WeightFormat::int8 : WeightFormat::int4);
      }
      random.save(oracle_folder.path());
      Running cpu(oracle_folder.path(), Device::cpu, kFormats[0]);
      const auto expected = cpu.logits(ids, {150});
      const double oracle = perplexity(logprobs_of(expected, ids));
      Running gpu(folder.path(), Device::cuda, format);
      for (const std::vector<std::int64_t>& chunks :
           {std::vector<std::int64_t>{150}, {1}, {70, 3, 1, 1, 40}}) {
        const auto got = gpu.logits(ids, chunks);
        REQUIRE(got.size() == expected.size());
        double worst = 0;
        for (std::size_t i = 0; i < got.size(); ++i)
          worst = test::worse(worst, std::fabs(double{got[i]} - expected[i]));
        if (format.dtype == WeightType::f32) CHECK(worst <= 1e-3);
        CHECK(perplexity(logprobs_of(got, ids)) ==
              doctest::Approx(oracle).epsilon(format.dtype == WeightType::f32 ? 1e-4 : 5e-3));
      }
    }
  }
}

TEST_CASE("[cuda] a sequence's bits do not depend on its batch, with flash alone not on chunks either") {
  if (!have_gpu()) return;
  for (const Shape shape : kShapes) {
    const TemporaryFolder folder;
    RandomGpt2(config_of(shape.width, shape.heads), 9).save(folder.path());
    for (const Format& format : {kFormats[0], kFormats[1], kFormats[3], kFormats[4]}) {
      CAPTURE(shape.width);
      CAPTURE(format.name);
      Running gpu(folder.path(), Device::cuda, format);
      std::vector<Ids> prompts;
      for (const std::size_t length : {1u, 130u, 7u, 64u, 20u, 65u})
        prompts.push_back(random_ids(length, length));
      std::vector<std::vector<float>> alone;
      for (const Ids& ids : prompts)
        alone.push_back(gpu.logits(ids, {static_cast<std::int64_t>(ids.size())}));

      std::vector<KvSequence> sequences;
      for (std::size_t i = 0; i < prompts.size(); ++i) sequences.emplace_back(gpu.pool);
      PackedBatch batch;
      for (std::size_t i = 0; i < prompts.size(); ++i) {
        sequences[i].reserve(static_cast<std::int64_t>(prompts[i].size()));
        batch.add(sequences[i], prompts[i], static_cast<std::int64_t>(prompts[i].size()));
      }
      gpu.forward.run(batch);
      const TensorView logits = gpu.forward.on_host(gpu.forward.logits());
      std::size_t row = 0;
      for (std::size_t i = 0; i < prompts.size(); ++i) {
        CAPTURE(prompts[i].size());
        const std::size_t vocab = alone[i].size() / prompts[i].size();
        std::size_t different = 0;
        for (std::size_t t = 0; t < prompts[i].size(); ++t, ++row) {
          different += std::memcmp(logits.as<float>() + static_cast<std::int64_t>(row) * logits.stride[0],
                                   alone[i].data() + t * vocab, vocab * sizeof(float)) != 0;
        }
        CHECK(different == 0);
      }

      const SdpaScope scope(gpu.context, {SdpaBackend::flash});
      const Ids& ids = prompts[1];
      const auto whole = gpu.logits(ids, {130});
      for (const std::vector<std::int64_t>& chunks : {std::vector<std::int64_t>{1}, {70, 3, 1, 1, 40}}) {
        const auto got = gpu.logits(ids, chunks);
        CHECK(std::memcmp(got.data(), whole.data(), whole.size() * sizeof(float)) == 0);
      }
    }
  }
}

namespace {

/// Sequences of one model in company: their prompts, and then a token each a step.
class Company {
 public:
  Company(Running& running, const std::vector<std::size_t>& lengths) : running_(running) {
    for (const std::size_t length : lengths) {
      KvSequence& sequence = sequences_.emplace_back(running.pool);
      sequence.reserve(static_cast<std::int64_t>(length));
      PackedBatch prompt;
      prompt.add(sequence, random_ids(length, length), 0);
      running.forward.run(prompt);
    }
  }
  /// In even steps ids that the device alone knows.
  const PackedBatch& next(std::uint64_t step) {
    batch_.clear();
    Backend& backend = running_.context.backend();
    if (ids_.empty()) ids_ = backend.allocate(sequences_.size() * sizeof(std::int32_t));
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      sequences_[i].reserve(1);
      const Ids id = random_ids(1, 1000 * step + i);
      if (step % 2 != 0) {
        batch_.add(sequences_[i], id, 1);
      } else {
        auto* const at = reinterpret_cast<std::int32_t*>(ids_.data()) + i;
        backend.copy_in(at, id.data(), sizeof(std::int32_t));
        batch_.add_drawn(sequences_[i], at);
      }
    }
    return batch_;
  }
  std::vector<float> logits(std::uint64_t step) {
    running_.forward.run(next(step));
    const TensorView rows = running_.forward.on_host(running_.forward.logits());
    std::vector<float> all;
    for (std::int64_t r = 0; r < rows.shape[0]; ++r) {
      const float* const row = rows.as<float>() + r * rows.stride[0];
      all.insert(all.end(), row, row + rows.shape[1]);
    }
    return all;
  }
  std::string_view refusal() { return fused_layers_refusal(running_.context, {running_.model, next(0), {}}); }

 private:
  Running& running_;
  std::vector<KvSequence> sequences_;
  PackedBatch batch_;
  Buffer ids_;
};

/// For an MLP of width `inner`, batches of one or two sequences of given lengths.
void check_fused(std::int64_t inner, const std::vector<std::vector<std::size_t>>& batches) {
  CAPTURE(inner);
  ModelConfig config = config_of(768, 12);
  config.n_positions = 1100;
  config.n_inner = inner;
  const TemporaryFolder folder;
  RandomGpt2(config, 9).save(folder.path());
  for (const Format& format : {kFormats[1], kFormats[2]}) {
    CAPTURE(format.name);
    Running fused(folder.path(), Device::cuda, format), plain(folder.path(), Device::cuda, format);
    plain.forward.observe([](std::string_view, std::int64_t, const TensorView&) {});
    for (const std::vector<std::size_t>& lengths : batches) {
      CAPTURE(lengths[0]);
      CAPTURE(lengths.size());
      Company one(fused, lengths), other(plain, lengths);
      if (const auto reason = one.refusal(); reason == "no kernels of compute capability 9.0") {
        MESSAGE("SKIPPED: " << reason);
        return;
      }
      REQUIRE(one.refusal() == "");
      // Run, recorded, repeated; keys cross into a new chunk meanwhile.
      for (std::uint64_t step = 1; step <= 6; ++step) {
        const auto got = one.logits(step), expected = other.logits(step);
        REQUIRE(got.size() == expected.size());
        CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
        // The last row by itself.
        const std::size_t row = got.size() / lengths.size();
        const TensorView last =
            fused.forward.on_host(fused.forward.logits(static_cast<std::int64_t>(lengths.size()) - 1, 1));
        CHECK(last.shape[0] == 1);
        CHECK(std::memcmp(last.data, got.data() + (got.size() - row), row * sizeof(float)) == 0);
      }
    }
    // The first of nine, by two kernels a layer, beside itself alone.
    Company alone(fused, {130}), nine(fused, {130, 1, 7, 64, 1, 65, 2, 3, 4});
    for (std::uint64_t step = 1; step <= 3; ++step) {
      const auto got = alone.logits(step), all = nine.logits(step);
      CHECK(std::memcmp(got.data(), all.data(), got.size() * sizeof(float)) == 0);
    }
    CHECK(Company(fused, {1, 1, 1}).refusal() == "more than 2 sequences");
  }
}

}  // namespace

TEST_CASE("[cuda] all layers of a decode step in one kernel: the bits of the layers one by one") {
  if (!have_gpu()) return;
  check_fused(3072, {{130}, {1}, {64}, {1000}, {63, 500}, {1000, 7}});
}

// As wide as the stream its second product has the shape of attention's; 64 is the least. Small enough for
// compute-sanitizer.
TEST_CASE("[cuda] all layers of a decode step in one kernel, beside a narrow MLP") {
  if (!have_gpu()) return;
  for (const std::int64_t inner : {768, 64}) check_fused(inner, {{130}, {63, 7}});
}

TEST_CASE("[cuda] the products between two attentions in one kernel: the bits of the products one by one") {
  if (!have_gpu()) return;
  ModelConfig config = config_of(768, 12);
  config.n_positions = 1100;
  const TemporaryFolder folder;
  RandomGpt2(config, 9).save(folder.path());
  for (const Format& format : {kFormats[1], kFormats[2]}) {
    CAPTURE(format.name);
    Running fused(folder.path(), Device::cuda, format), plain(folder.path(), Device::cuda, format);
    if (const auto reason = fused_products_refusal(fused.context, fused.model, 16);
        reason == "no kernels of compute capability 9.0") {
      MESSAGE("SKIPPED: " << reason);
      return;
    }
    plain.forward.observe([](std::string_view, std::int64_t, const TensorView&) {});
    for (const std::size_t count : {3u, 8u, 9u, 15u, 16u}) {
      CAPTURE(count);
      REQUIRE(fused_products_refusal(fused.context, fused.model, static_cast<std::int64_t>(count)) == "");
      std::vector<std::size_t> lengths(count);
      for (std::size_t i = 0; i < count; ++i) lengths[i] = 1 + i * 37 % 131;
      Company one(fused, lengths), other(plain, lengths);
      for (std::uint64_t step = 1; step <= 6; ++step) {  // run, recorded, repeated
        const auto got = one.logits(step), expected = other.logits(step);
        REQUIRE(got.size() == expected.size());
        CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
      }
    }
    CHECK(fused_products_refusal(fused.context, fused.model, 17) == "more than 16 tokens");
  }
}

TEST_CASE("[cuda] the generator writes the CPU's text, forks and all") {
  if (!have_gpu()) return;
  const World world;
  // With one draw from a whole row the rows come to the host, else the likeliest tokens alone.
  for (const bool whole_rows : {false, true}) {
    CAPTURE(whole_rows);
    std::vector<std::vector<Answer>> answers;
    for (const Device device : {Device::cpu, Device::cuda}) {
      Running run(world.folder.path(), device, kFormats[0]);
      GeneratorOptions options;
      options.max_batch = 8;
      Generator generator(run.model, run.context, options);
      auto& all = answers.emplace_back(5);
      for (std::size_t i = 0; i < all.size(); ++i) {
        Ids prompt(3 + 7 * i, static_cast<std::int32_t>(11 + i));
        GenerationRequest one = request(prompt, 20, 100 + i, all[i]);
        one.config.top_k = i == 4 && whole_rows ? 0 : static_cast<std::int64_t>(2 + 9 * i);
        if (i == 1) one.config.temperature = 0.0;
        if (i == 2) one.config.top_p = 0.8;
        if (i == 3) one.samples = 3;  // their tokens in turn: forks that part in the middle of a shared page
        generator.submit(std::move(one));
      }
      while (generator.step()) {
      }
    }
    CHECK(answers[0][3].ids.size() == 60);
    for (std::size_t i = 0; i < answers[0].size(); ++i) CHECK(answers[0][i].ids == answers[1][i].ids);
  }
}

TEST_CASE("[cuda] what has no form on a GPU is refused, and so is a cache in the CPU's memory") {
  if (!have_gpu()) return;
  const World world;
  Running gpu(world.folder.path(), Device::cuda, kFormats[0]);
  const auto refused = [&](auto&& body) {
    try {
      body();
      return false;
    } catch (const Error& error) {
      return error.code() == Code::device || error.code() == Code::usage;
    }
  };
  KvPool host(gpu.forward.kv_shape(DType::f32));
  CHECK(refused([&] { logits_of(gpu.forward, host, {1, 2, 3}, {3}); }));
  CHECK(gpu.logits({1, 2, 3}, {3}).size() == 3 * 120);  // and the context works on

  // A step that comes back is a recording, which looks at nothing.
  const auto good = gpu.logits({1, 2, 3, 4}, {1});
  KvPool narrower(gpu.forward.kv_shape(DType::bf16), 0, &gpu.context.backend());
  CHECK(refused([&] { logits_of(gpu.forward, narrower, {1, 2, 3, 4}, {1}); }));
  CHECK(gpu.logits({1, 2, 3, 4}, {1}) == good);
}
