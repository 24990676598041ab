// Runs of training against PyTorch and against themselves: 20 iterations, threads, processes, resuming.
#include <doctest/doctest.h>

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <thread>

#include "attention/sdpa.h"
#include "model/forward.h"
#include "model/score.h"
#include "model/train/activations.h"
#include "tests/model/run_model.h"
#include "tests/model/training_case.h"

namespace inkling {

using namespace test;

TEST_CASE("[golden] twenty iterations are those of PyTorch's AdamW") {
  for (std::size_t index = 0; index < golden()["cases"].size(); ++index) {
    const Case c(index);
    CAPTURE(c.data["name"].get<std::string>());
    ExecContext context({.threads = 2});
    Trainer trainer = Trainer::from_weights(context, c.source(), options_of(c.data));
    const std::vector<TrainingBatch> all = c.batches();
    for (std::size_t i = 0; i < c.data["curve"].size(); ++i) {
      CAPTURE(i);
      const std::vector<TrainingBatch> batches = {all[i % all.size()], all[(i + 1) % all.size()]};
      const Trainer::StepResult result = trainer.step(batches);
      CHECK(std::fabs(result.loss - c.data["curve"][i][0].get<double>()) <= 1e-4);
      CHECK(result.gradient_norm == doctest::Approx(c.data["curve"][i][1].get<double>()).epsilon(1e-3));
    }
    CHECK(trainer.iteration() == 20);
  }
}

TEST_CASE("training has the same bits on any threads") {
  const Case c(1);
  std::vector<float> first;
  for (const int threads : {1, 2, 3}) {
    ExecContext context({.threads = threads});
    Trainer trainer = Trainer::from_weights(context, c.source(), options_of(c.data));
    for (int i = 0; i < 3; ++i) trainer.step(c.batches());
    if (threads == 1) first = weights_of(trainer);
    CHECK(weights_of(trainer) == first);
  }
}

TEST_CASE("a run resumes from its checkpoint as if it had not stopped") {
  const Case c(1);
  const TemporaryFolder folder;
  ExecContext context({.threads = 2});
  Trainer through = Trainer::from_weights(context, c.source(), options_of(c.data));
  for (int i = 0; i < 3; ++i) through.step(c.batches());
  const auto path = folder.path() / "checkpoint.safetensors";
  through.save_checkpoint(path, {{"note", "kept"}}).value();
  CHECK(SafetensorsFile::open(path).value().metadata().back().second == "kept");

  Trainer resumed =
      Trainer::from_checkpoint(context, SafetensorsFile::open(path).value(), options_of(c.data)).value();
  CHECK(resumed.iteration() == 3);
  CHECK(resumed.config() == c.config);
  for (int i = 0; i < 3; ++i) CHECK(through.step(c.batches()).loss == resumed.step(c.batches()).loss);
  CHECK(weights_of(through) == weights_of(resumed));
}

TEST_CASE("the memory of a run is told before it is taken, to the byte") {
  ExecContext context({.threads = 1});
  for (std::size_t index = 0; index < 2; ++index) {
    const Case c(index);
    for (const float dropout : {0.0f, 0.1f}) {
      for (const WeightFormat compute : {WeightFormat::f32, WeightFormat::bf16}) {
        TrainOptions options = options_of(c.data);
        options.dropout = dropout;
        options.compute = compute;
        const TrainingBatch batch = c.batches().front();
        Trainer trainer = Trainer::from_weights(context, c.source(), options);
        trainer.loss(batch);
        const std::size_t evaluating = trainer.nbytes();
        trainer.step(std::span(&batch, 1));
        CHECK(trainer.nbytes() > evaluating);
        CHECK(Trainer::nbytes_of(context, c.config, options, batch.cu_seqlens) == trainer.nbytes());
      }
    }
  }
  // GPT-2 124M at 4 x 64: 4 x 498 MB, 12 layers of 64-byte rows, 64 MiB of logits; tests/bench has the peak.
  ModelConfig gpt2 = config_of(golden()["cases"][0]);
  gpt2.vocab_size = 50257, gpt2.n_positions = 1024, gpt2.n_embd = 768, gpt2.n_layer = gpt2.n_head = 12;
  const std::vector<std::int32_t> four = {0, 64, 128, 192, 256}, vast = {0, INT32_MAX};
  CHECK(Trainer::nbytes_of(context, gpt2, {}, four) == doctest::Approx(2.14e9).epsilon(0.01));
  gpt2.n_embd = kMaxEmbd, gpt2.n_layer = kMaxLayers;
  CHECK(Trainer::nbytes_of(context, gpt2, {}, vast) == SIZE_MAX);
}

TEST_CASE("what attention's dropout drew takes memory where it is read, and nowhere else") {
  ModelConfig config = config_of(golden()["cases"][0]);
  config.vocab_size = 50257, config.n_positions = 1024, config.n_embd = 768,
  config.n_layer = config.n_head = 12;
  const std::vector<std::int32_t> cu{0, 1024, 2048, 3072, 4096, 5120, 6144, 7168, 8192};
  const auto bytes = [&](DType half, Activations::Drawn drawn, float dropout,
                         Activations::Direction direction = Activations::Direction::both) {
    return Activations(config, 50304, Device::cuda, half, drawn).nbytes({cu, direction, dropout});
  };
  using Drawn = Activations::Drawn;
  const std::size_t of_a_layer = sdpa_drawn_bytes(12, cu, cu);
  CHECK(of_a_layer == 8 * 12 * 2 * 1024 * 1024 / 8);
  const std::size_t kept = bytes(DType::bf16, Drawn::kept, 0.1f),
                    again = bytes(DType::bf16, Drawn::again, 0.1f);
  CHECK(kept >= again + 12 * of_a_layer);
  CHECK(kept < again + 12 * (of_a_layer + 128));  // a row of the plan is an odd number of cache lines
  CHECK(bytes(DType::bf16, Drawn::kept, 0.0f) == bytes(DType::bf16, Drawn::again, 0.0f));
  CHECK(bytes(DType::bf16, Drawn::kept, 0.1f, Activations::Direction::forward) ==
        bytes(DType::bf16, Drawn::again, 0.1f, Activations::Direction::forward));
  ExecContext context({.device = Device::cpu, .threads = 1});
  CHECK(Activations(config, 50304, context, DType::f32).nbytes({cu, Activations::Direction::both, 0.1f}) ==
        Activations(config, 50304, Device::cpu, DType::f32, Drawn::again)
            .nbytes({cu, Activations::Direction::both, 0.1f}));
}

TEST_CASE("what is no checkpoint is refused") {
  const Case c(0);
  const TemporaryFolder folder;
  ExecContext context({.threads = 1});
  const TrainOptions options = options_of(c.data);
  const auto code_of = [&](const std::filesystem::path& path) {
    const Result<SafetensorsFile> file = SafetensorsFile::open(path);
    const Result<Trainer> result = file ? Trainer::from_checkpoint(context, *file, options) : file.error();
    return result ? std::string("none")
                  : std::to_string(static_cast<int>(result.error().code())) + ' ' + result.error().message();
  };
  CHECK(code_of(c.folder.path() / "model.safetensors").find("inkling_checkpoint") != std::string::npos);

  const auto path = folder.path() / "checkpoint.safetensors";
  Trainer::from_weights(context, c.source(), options).save_checkpoint(path).value();
  CHECK(code_of(path) == "none");
  // One thing wrong at a time, in the metadata and in the tensors.
  const SafetensorsFile good = SafetensorsFile::open(path).value();
  const auto broken = [&](std::string_view key, const std::string& value, const auto& change) {
    std::vector<NamedTensor> tensors(good.tensors().begin(), good.tensors().end());
    Metadata metadata = good.metadata();
    for (auto& [name, held] : metadata) {
      if (name == key) held = value;
    }
    change(tensors);
    const auto other = folder.path() / "broken.safetensors";
    write_safetensors(other, tensors, metadata).value();
    return code_of(other);
  };
  const auto nothing = [](std::vector<NamedTensor>&) {};
  CHECK(broken("", "", nothing) == "none");
  CHECK(broken("inkling_checkpoint", "2", nothing).find("inkling_checkpoint: expected 1") !=
        std::string::npos);
  for (const char* count : {"", "-1", "x", "3x", " 3", "1e3", "9007199254740992", "99999999999999999999"}) {
    CHECK(broken("iteration", count, nothing).find("iteration: expected a number below 2^53") !=
          std::string::npos);
  }
  CHECK(broken("config", "{}", nothing).starts_with("4 "));
  // A config that asks for more than any machine has is refused for the tensors, before memory is taken.
  ModelConfig vast = c.config;
  vast.vocab_size = kMaxVocab, vast.n_embd = kMaxEmbd, vast.n_head = kMaxEmbd / kMaxHeadSize;
  CHECK(broken("config", to_config_json(vast), nothing)
            .find("transformer.wte.weight: expected f32 [4194304, 131072]") != std::string::npos);
  for (const std::string prefix : {"", "adamw.m.", "adamw.v."}) {
    const std::string name = prefix + "transformer.ln_f.bias";
    const auto at = [&](std::vector<NamedTensor>& tensors) {
      return std::ranges::find(tensors, name, &NamedTensor::name);
    };
    const auto missing = [&](std::vector<NamedTensor>& tensors) { tensors.erase(at(tensors)); };
    const auto short_one = [&](std::vector<NamedTensor>& tensors) { at(tensors)->view.shape[0] -= 1; };
    const auto integers = [&](std::vector<NamedTensor>& tensors) { at(tensors)->view.dtype = DType::i32; };
    CHECK(broken("", "", missing).find(name + ": expected f32 [12], got nothing") != std::string::npos);
    CHECK(broken("", "", short_one).find(name + ": expected f32 [12], got f32 [11]") != std::string::npos);
    CHECK(broken("", "", integers).find(name + ": expected f32 [12], got i32 [12]") != std::string::npos);
  }
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 4);
  CHECK(code_of(path).starts_with("4 "));
}

TEST_CASE("fresh weights are GPT-2's: deviations, zeros and ones") {
  ModelConfig config = config_of(golden()["cases"][0]);
  config.n_embd = 64;
  config.vocab_size = 500;
  config.n_layer = 3;
  ExecContext context({.threads = 1});
  const Trainer trainer = Trainer::from_scratch(context, config, {});
  for (const NamedTensor& t : trainer.parameters()) {
    CAPTURE(t.name);
    const std::span values(static_cast<const float*>(t.view.data), static_cast<std::size_t>(t.view.numel()));
    const auto count = static_cast<double>(values.size());
    if (t.view.rank == 2) {
      const double wanted = t.name.ends_with("c_proj.weight") ? 0.02 / std::sqrt(6.0) : 0.02;
      // The deviation of a sample's deviation is 1/√(2n) of it; five of them.
      CHECK(norm(values) / std::sqrt(count) == doctest::Approx(wanted).epsilon(5 / std::sqrt(2 * count)));
    } else {
      const float wanted = t.name.ends_with(".bias") ? 0.0f : 1.0f;
      CHECK(std::ranges::all_of(values, [&](float v) { return v == wanted; }));
    }
  }
  CHECK(weights_of(trainer) == weights_of(Trainer::from_scratch(context, config, {})));
  TrainOptions other;
  other.seed = 7;
  CHECK(weights_of(trainer) != weights_of(Trainer::from_scratch(context, config, other)));
}

TEST_CASE("a saved model is the model that was trained") {
  const Case c(1);
  const TemporaryFolder folder;
  ExecContext context({.threads = 2});
  Trainer trainer = Trainer::from_weights(context, c.source(), options_of(c.data));
  trainer.step(c.batches());
  trainer.save_model(folder.path()).value();

  TrainingBatch batch;
  Ids ids = c.batches()[1].ids, targets(ids.begin() + 1, ids.end());
  targets.push_back(kNoTarget);
  batch.add(ids, targets);
  const Model model = test::load(folder.path(), context);
  Forward forward(model, context);
  KvPool pool(forward.kv_shape(DType::f32));
  const std::vector<double> logprobs =
      test::logprobs_of(test::logits_of(forward, pool, ids, {static_cast<std::int64_t>(ids.size())}), ids);
  double sum = 0;
  for (const double l : logprobs) sum -= l;
  CHECK(trainer.loss(batch) == doctest::Approx(sum / static_cast<double>(logprobs.size())).epsilon(1e-5));
}

TEST_CASE("a model is saved in f32 or rounded to bf16, and in nothing else") {
  const Case c(1);
  const TemporaryFolder folder;
  ExecContext context({.threads = 1});
  const Trainer trainer = Trainer::from_weights(context, c.source(), options_of(c.data));
  trainer.save_model(folder.path(), DType::bf16).value();
  const auto file = SafetensorsFile::open(folder.path() / "model.safetensors").value();
  for (const NamedTensor& tensor : trainer.parameters()) {
    CAPTURE(tensor.name);
    REQUIRE(file.find(tensor.name) != nullptr);
    const TensorView saved = file.find(tensor.name)->view;
    REQUIRE(saved.dtype == DType::bf16);
    REQUIRE(saved.shape == tensor.view.shape);
    for (std::int64_t i = 0; i < saved.numel(); ++i) {
      CHECK(static_cast<float>(saved.as<bf16>()[i]) == static_cast<float>(bf16(tensor.view.as<float>()[i])));
    }
  }
  CHECK_THROWS_WITH_AS((void)trainer.save_model(folder.path(), DType::f16),
                       "trainer: save_model: expected f32 or bf16, got f16", Error);
}

TEST_CASE("products of bf16 train too") {
  const Case c(0);
  ExecContext context({.threads = 2});
  TrainOptions options = options_of(c.data);
  options.compute = WeightFormat::bf16;
  Trainer trainer = Trainer::from_weights(context, c.source(), options);
  const std::vector<TrainingBatch> all = c.batches();
  for (std::size_t i = 0; i < 20; ++i) {
    const std::vector<TrainingBatch> batches = {all[i % all.size()], all[(i + 1) % all.size()]};
    const double loss = trainer.step(batches).loss;
    // Factors carry 2^-9 each; the losses start at 3.6 and end at 0.7.
    CHECK(loss == doctest::Approx(c.data["curve"][i][0].get<double>()).epsilon(0.05));
  }
}

namespace {

/// Threads in the place of processes.
class ThreadCommunicator final : public Communicator {
 public:
  struct Shared {
    explicit Shared(int n) : size(n), sync(n) {}
    int size;
    std::barrier<> sync;
    std::vector<double> sums;
  };
  ThreadCommunicator(Shared& shared, int rank) : shared_(shared), rank_(rank) {}
  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return shared_.size; }
  void sum(std::span<float> values) override { add(values); }
  void sum(std::span<double> values) override { add(values); }

 private:
  template <class T>
  void add(std::span<T> values) {
    if (rank_ == 0) shared_.sums.assign(values.size(), 0.0);
    for (int turn = 0; turn < shared_.size; ++turn) {
      shared_.sync.arrive_and_wait();
      for (std::size_t i = 0; turn == rank_ && i < values.size(); ++i) shared_.sums[i] += double{values[i]};
    }
    shared_.sync.arrive_and_wait();
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<T>(shared_.sums[i]);
    shared_.sync.arrive_and_wait();
  }
  Shared& shared_;
  int rank_;
};

}  // namespace

TEST_CASE("two processes train as one with twice the batches") {
  for (const std::size_t index : {0, 1}) {  // without and with dropout
    const Case c(index);
    const std::vector<TrainingBatch> all = c.batches();
    const std::vector<TrainingBatch> both = {all[0], all[1]};
    std::vector<double> losses[2], alone;
    ThreadCommunicator::Shared shared(2);
    const auto work = [&](int rank) {
      ExecContext context({.threads = 1});
      ThreadCommunicator communicator(shared, rank);
      Trainer trainer = Trainer::from_weights(context, c.source(), options_of(c.data), &communicator);
      for (int i = 0; i < 5; ++i) {
        losses[rank].push_back(trainer.step(std::span(both).subspan(static_cast<std::size_t>(rank), 1)).loss);
      }
    };
    std::thread other(work, 1);
    work(0);
    other.join();
    ExecContext context({.threads = 1});
    Trainer trainer = Trainer::from_weights(context, c.source(), options_of(c.data));
    for (int i = 0; i < 5; ++i) alone.push_back(trainer.step(both).loss);
    CHECK(losses[0] == losses[1]);
    for (std::size_t i = 0; i < alone.size(); ++i) CHECK(std::fabs(losses[0][i] - alone[i]) <= 1e-6);
  }
}

TEST_CASE("the learning rate warms up, falls along a cosine and stays") {
  TrainOptions o;
  o.learning_rate = 1.0;
  o.min_lr = 0.1;
  o.warmup_iters = 10;
  o.lr_decay_iters = 110;
  CHECK(learning_rate_at(o, 0) == doctest::Approx(1.0 / 11));
  CHECK(learning_rate_at(o, 9) == doctest::Approx(10.0 / 11));
  CHECK(learning_rate_at(o, 10) == 1.0);
  CHECK(learning_rate_at(o, 60) == doctest::Approx(0.55));
  CHECK(learning_rate_at(o, 110) == doctest::Approx(0.1));
  CHECK(learning_rate_at(o, 111) == 0.1);
  o.lr_decay_iters = 0;
  CHECK(learning_rate_at(o, 1000) == 1.0);
}

TEST_CASE("a loss that is no number changes nothing") {
  const Case c(0);
  ExecContext context({.threads = 1});
  TrainOptions options = options_of(c.data);
  Trainer trainer = Trainer::from_weights(context, c.source(), options);
  trainer.step(c.batches());
  for (const NamedTensor& t : trainer.parameters()) {
    if (t.name == "transformer.ln_f.weight") {
      *static_cast<float*>(t.view.data) = std::numeric_limits<float>::infinity();
    }
  }
  const std::vector<float> before = weights_of(trainer);
  try {
    trainer.step(c.batches());
    FAIL("no error");
  } catch (const Error& error) {
    CHECK(error.code() == Code::gate);
    CHECK(error.message().find("iteration 1") != std::string::npos);
  }
  CHECK(weights_of(trainer) == before);
  CHECK(trainer.iteration() == 1);
}

TEST_CASE("options and batches out of range are refused by name") {
  const Case c(0);
  ExecContext context({.threads = 1});
  const auto message_of = [&](auto&& change) {
    TrainOptions options = options_of(c.data);
    change(options);
    try {
      Trainer::from_scratch(context, c.config, options);
    } catch (const Error& error) {
      CHECK(error.code() == Code::usage);
      return error.message();
    }
    return std::string("no error");
  };
  using O = TrainOptions;
  CHECK(message_of([](O& o) { o.learning_rate = -1; }).find("learning_rate") != std::string::npos);
  CHECK(message_of([](O& o) { o.min_lr = 1; }).find("min_lr") != std::string::npos);
  CHECK(message_of([](O& o) { o.warmup_iters = -1; }).find("warmup_iters") != std::string::npos);
  CHECK(message_of([](O& o) { o.lr_decay_iters = 2; }).find("lr_decay_iters") != std::string::npos);
  CHECK(message_of([](O& o) { o.beta2 = 1; }).find("beta2") != std::string::npos);
  CHECK(message_of([](O& o) { o.weight_decay = -1; }).find("weight_decay") != std::string::npos);
  CHECK(message_of([](O& o) { o.grad_clip = -1; }).find("grad_clip") != std::string::npos);
  CHECK(message_of([](O& o) { o.dropout = 1; }).find("dropout") != std::string::npos);
  CHECK(message_of([](O& o) { o.compute = WeightFormat::int8; }).find("compute") != std::string::npos);

  Trainer trainer = Trainer::from_weights(context, c.source(), options_of(c.data));
  const auto refusal_of = [&](auto&& change) {
    TrainingBatch batch = c.batches()[0];
    change(batch);
    try {
      trainer.step(std::span(&batch, 1));
    } catch (const Error& error) {
      CHECK(error.code() == Code::usage);
      return error.message();
    }
    return std::string("no error");
  };
  using B = TrainingBatch;
  CHECK(refusal_of([](B& b) { b.ids[0] = 23; }).find("ids") != std::string::npos);
  CHECK(refusal_of([](B& b) { b.targets[0] = -2; }).find("targets") != std::string::npos);
  CHECK(refusal_of([](B& b) { b.positions[0] = 16; }).find("positions") != std::string::npos);
  CHECK(refusal_of([](B& b) { b.cu_seqlens.back() = 3; }).find("cu_seqlens") != std::string::npos);
  CHECK(refusal_of([](B& b) { b.targets.pop_back(); }).find("targets") != std::string::npos);
  CHECK(refusal_of([](B& b) { b.targets.assign(b.targets.size(), kNoTarget); }).find("none") !=
        std::string::npos);
}

}  // namespace inkling
