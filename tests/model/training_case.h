// What the tests of training share: the golden cases, and a pass with its weights and gradients.
#pragma once

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "model/train/parameters.h"
#include "model/train/trainer.h"
#include "model/train/training_pass.h"
#include "tests/data.h"
#include "tests/model/random_gpt2.h"

namespace inkling::test {

using nlohmann::json;
using Ids = std::vector<std::int32_t>;

inline const json& golden() {
  static const json data = json::parse(std::ifstream(source_dir() / "tests/golden/trainer.json"));
  return data;
}

inline ModelConfig config_of(const json& c) {
  ModelConfig config;
  config.vocab_size = c["V"];
  config.n_positions = c["T"];
  config.n_embd = c["C"];
  config.n_layer = c["L"];
  config.n_head = c["H"];
  config.activation = c.value("activation", "") == "gelu" ? Activation::gelu_erf : Activation::gelu_tanh;
  config.bias = c.value("bias", true) ? Bias::present : Bias::absent;
  config.head = c.value("tied", true) ? Head::tied : Head::separate;
  return config;
}

inline TrainOptions options_of(const json& c) {
  const json& o = golden()["options"];
  TrainOptions options;
  options.learning_rate = o["learning_rate"];
  options.min_lr = o["min_lr"];
  options.warmup_iters = o["warmup_iters"];
  options.lr_decay_iters = o["lr_decay_iters"];
  options.beta1 = o["beta1"];
  options.beta2 = o["beta2"];
  options.weight_decay = o["weight_decay"];
  options.grad_clip = o["grad_clip"];
  options.seed = o["seed"];
  options.dropout = c["dropout"];
  return options;
}

inline TrainingBatch batch_of(const json& sequences) {
  TrainingBatch batch;
  for (const json& s : sequences) batch.add(s[0].get<Ids>(), s[1].get<Ids>());
  return batch;
}

/// A random GPT-2 on disk, as the golden script makes case `index`.
struct Case {
  const json& data;
  ModelConfig config;
  TemporaryFolder folder;
  explicit Case(std::size_t index) : data(golden()["cases"][index]), config(config_of(data)) {
    RandomGpt2(config, index + 1).save(folder.path());
  }
  Gpt2Source source() const { return Gpt2Source::open(folder.path()).value(); }
  std::vector<TrainingBatch> batches() const {
    std::vector<TrainingBatch> all;
    for (const json& b : data["batches"]) all.push_back(batch_of(b));
    return all;
  }
};

/// Weights, gradients and the pass between them.
struct Bench {
  ParameterLayout layout;
  Buffer weights, gradients;
  TrainingPass pass;
  Bench(ExecContext& context, const Case& c, WeightFormat compute = WeightFormat::f32)
      : layout(c.config),
        weights(bytes()),
        gradients(bytes()),
        pass(context, c.config, layout.tensors(floats(weights)), layout.tensors(floats(gradients)), compute) {
    copy_parameters(c.source(), layout, floats(weights));
    std::memset(gradients.data(), 0, gradients.size());
  }
  std::size_t bytes() const { return static_cast<std::size_t>(layout.size()) * sizeof(float); }
  static float* floats(const Buffer& buffer) { return reinterpret_cast<float*>(buffer.data()); }
  std::vector<float> gradient() const { return {floats(gradients), floats(gradients) + layout.size()}; }
};

inline double norm(std::span<const float> x) {
  double sum = 0;
  for (const float v : x) sum += double{v} * double{v};
  return std::sqrt(sum);
}

inline double distance(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    sum += (double{a[i]} - double{b[i]}) * (double{a[i]} - double{b[i]});
  return std::sqrt(sum);
}

inline std::vector<float> weights_of(const Trainer& trainer) {
  std::vector<float> all;
  for (const NamedTensor& t : trainer.parameters()) {
    const auto* data = static_cast<const float*>(t.view.data);
    all.insert(all.end(), data, data + t.view.numel());
  }
  return all;
}

}  // namespace inkling::test
