// inkling bench train: iterations of training on random tokens.
#include <memory>
#include <vector>

#include "apps/bench.h"
#include "apps/ceilings.h"
#include "apps/json_text.h"
#include "apps/model_options.h"
#include "apps/program.h"
#include "apps/timing.h"
#include "engine/philox.h"
#include "model/train/trainer.h"

namespace inkling::app {
namespace {

enum class Shape : std::uint8_t { gpt2, shakespeare_char_cpu };
enum class Form : std::uint8_t { md, json };

struct TrainBench {
  ModelOptions device;
  Shape shape = Shape::gpt2;
  std::int64_t batch = 4, block = 64;
  float dropout = 0.0f;
  WeightFormat compute = WeightFormat::f32;
  int repeats = 5;
  Form form = Form::md;
};

ModelConfig config_of(const TrainBench& o) {
  ModelConfig config;
  config.n_positions = 1024;
  if (o.shape == Shape::gpt2) {
    config.vocab_size = 50257;
    config.n_embd = 768;
    config.n_layer = config.n_head = 12;
  } else {
    config.vocab_size = 65;
    config.n_embd = 128;
    config.n_layer = config.n_head = 4;
    config.bias = Bias::absent;
    config.activation = Activation::gelu_erf;
  }
  config.n_positions = std::max(config.n_positions, o.block);
  return config;
}

// Any tokens take the same time.
TrainingBatch random_batch(const TrainBench& o, std::int64_t vocab) {
  TrainingBatch batch;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(o.block) + 1);
  for (std::int64_t b = 0; b < o.batch; ++b) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const PhiloxWords words =
          philox({static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(b), 0, 0}, 1);
      ids[i] = static_cast<std::int32_t>(words[0] % static_cast<std::uint32_t>(vocab));
    }
    batch.add(std::span(ids).first(ids.size() - 1), std::span(ids).subspan(1));
  }
  return batch;
}

void bench_train(const TrainBench& o, const Console& console) {
  ExecContext context(exec_options(o.device, console));
  const ModelConfig config = config_of(o);
  TrainOptions options;
  options.dropout = o.dropout;
  options.compute = o.compute;
  Trainer trainer = Trainer::from_scratch(context, config, options);
  const TrainingBatch batch = random_batch(o, config.vocab_size);
  console.note("inkling: " + context.backend().description() + ", " +
               std::to_string(config.parameter_count()) + " parameters");
  const Spread s = time_calls(o.repeats, [&] { trainer.step(std::span(&batch, 1)); });
  const auto tokens = static_cast<double>(o.batch * o.block);
  if (o.form == Form::md) {
    Console::write("| batch | ms | tok/s | min | max | peak MB |\n|---|--:|--:|--:|--:|--:|\n| " +
                   std::to_string(o.batch) + " x " + std::to_string(o.block) +
                   format(" | %.2f", s.median * 1e3) + format(" | %.0f", tokens / s.median) +
                   format(" | %.0f", tokens / s.max) + format(" | %.0f", tokens / s.min) +
                   format(" | %.0f |\n", peak_rss_mb()));
    return;
  }
  JsonRows out(JsonRows::Shape::array);
  out.write("{\"batch\":" + std::to_string(o.batch) + ",\"block\":" + std::to_string(o.block) +
            ",\"parameters\":" + std::to_string(config.parameter_count()) +
            ",\"compute\":" + json_string(weight_format_name(o.compute)) + ",\"threads\":" +
            std::to_string(context.pool().size()) + ",\"isa\":" + json_string(arithmetic_name(context)) +
            ",\"ms\":{\"median\":" + format("%.6g", s.median * 1e3) +
            ",\"min\":" + format("%.6g", s.min * 1e3) + ",\"max\":" + format("%.6g", s.max * 1e3) +
            "},\"tok_per_s\":" + format("%.6g", tokens / s.median) +
            ",\"rss_mb\":" + format("%.6g", peak_rss_mb()) + "}");
  out.finish();
}

}  // namespace

void add_bench_train(Program& program, const Options& bench) {
  auto o = std::make_shared<TrainBench>();
  Options& options = program.command(
      "train", "iterations of training on random tokens",
      [o](const Console& console) { bench_train(*o, console); }, &bench);
  options.group("What and how", Options::Layers::command_line);
  options.add("--shape", "NAME", "gpt2 (124M) or shakespeare-char-cpu [gpt2]",
              choice<Shape>(o->shape,
                            {{"gpt2", Shape::gpt2}, {"shakespeare-char-cpu", Shape::shakespeare_char_cpu}}));
  options.add("-b,--batch-size", "N", "sequences [4]", whole<std::int64_t>(o->batch, 1, 1 << 16));
  options.add("--block-size", "N", "tokens of each [64]", whole<std::int64_t>(o->block, 1, 1 << 16));
  options.add("--dropout", "P", "of embeddings, attention and residuals [0]",
              fraction(o->dropout, 0.0f, 1.0f, "a rate in [0, 1)"));
  options.add("--compute", "TYPE", "f32, or bf16: factors of products [f32]",
              choice<WeightFormat>(o->compute, {{"f32", WeightFormat::f32}, {"bf16", WeightFormat::bf16}}));
  options.add("-r,--repeats", "N", "samples, at least 10 ms long [5]", whole(o->repeats, 1, 10'000));
  options.add("--output", "FORM", "md or json [md]",
              choice<Form>(o->form, {{"md", Form::md}, {"json", Form::json}}));
  add_device_options(options, o->device);
}

}  // namespace inkling::app
