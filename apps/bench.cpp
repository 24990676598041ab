// inkling bench: tokens per second of a model; inkling bench gemm: the products by themselves.
#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>

#include "apps/machine.h"
#include "apps/session.h"
#include "apps/terminal.h"
#include "engine/ops.h"
#include "model/forward.h"

namespace inkling::app {
namespace {

using nlohmann::ordered_json;

struct Bench {
  ModelFlags model;
  std::vector<std::int64_t> prompts{512}, tokens{128}, batches{1};
  int repeats = 5;
  std::string output = "md";
};

struct Row {
  std::string test;
  std::int64_t batch = 1;
  double median = 0, min = 0, max = 0;
};

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<std::int32_t> random_ids(std::int64_t count, std::int64_t vocab) {
  std::mt19937 engine(1);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
  for (auto& id : ids) id = static_cast<std::int32_t>(engine() % static_cast<std::uint32_t>(vocab));
  return ids;
}

/// One prompt of `length` tokens, logits of the last.
double prefill(Forward& forward, KvPool& pool, std::int64_t length) {
  const auto ids = random_ids(length, forward.model().config().vocab_size);
  KvSequence sequence(pool);
  PackedBatch batch;
  const double start = seconds();
  sequence.reserve(length);
  batch.add(sequence, ids, 1);
  forward.run(batch);
  (void)forward.logits();
  return static_cast<double>(length) / (seconds() - start);
}

/// `steps` tokens of `count` sequences that start empty; the next token is the likeliest.
double decode(Forward& forward, KvPool& pool, std::int64_t steps, std::int64_t count) {
  const std::int64_t vocab = forward.model().config().vocab_size;
  std::vector<KvSequence> sequences;
  std::vector<std::int32_t> ids = random_ids(count, vocab);
  for (std::int64_t i = 0; i < count; ++i) sequences.emplace_back(pool);
  PackedBatch batch;
  const double start = seconds();
  for (std::int64_t step = 0; step < steps; ++step) {
    batch.clear();
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      sequences[i].reserve(1);
      batch.add(sequences[i], std::span(&ids[i], 1), 1);
    }
    forward.run(batch);
    const TensorView logits = forward.logits();
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const float* row = logits.as<float>() + static_cast<std::int64_t>(i) * logits.stride[0];
      ids[i] = static_cast<std::int32_t>(std::max_element(row, row + vocab) - row);
    }
  }
  return static_cast<double>(steps * count) / (seconds() - start);
}

template <class Measure>
Row measure(std::string test, std::int64_t batch, int repeats, Measure&& once) {
  once();  // warm
  std::vector<double> all;
  for (int i = 0; i < repeats; ++i) all.push_back(once());
  std::sort(all.begin(), all.end());
  return {std::move(test), batch, all[all.size() / 2], all.front(), all.back()};
}

void print(const Bench& flags, const std::vector<Row>& rows, const ordered_json& common) {
  Output out;
  if (flags.output == "json") {
    auto all = ordered_json::array();
    for (const Row& row : rows) {
      ordered_json entry = common;
      entry.erase("rss_mb"), entry.erase("load_ms");
      entry["test"] = row.test;
      entry["batch"] = row.batch;
      entry["tok_per_s"] = {{"median", row.median}, {"min", row.min}, {"max", row.max}};
      entry["rss_mb"] = common["rss_mb"];
      entry["load_ms"] = common["load_ms"];
      all.push_back(entry);
    }
    return out.line(all.dump());
  }
  const bool csv = flags.output == "csv";
  out.write(csv ? "model,dtype,quant,threads,isa,test,batch,median,min,max,rss_mb,load_ms\n"
                : "| dtype | quant | threads | isa | test | batch | tok/s | min | max "
                  "|\n|---|---|--:|---|---|--:|--:|--:|--:|\n");
  for (const Row& row : rows) {
    char text[512];
    std::snprintf(text, sizeof text,
                  csv ? "%s,%s,%s,%d,%s,%s,%lld,%.6g,%.6g,%.6g,%.6g,%.6g\n"
                      : "%.0s| %s | %s | %d | %s | %s | %lld | %.1f | %.1f | %.1f |\n",
                  common["model"].get<std::string>().c_str(), common["dtype"].get<std::string>().c_str(),
                  common["quant"].get<std::string>().c_str(), common["threads"].get<int>(),
                  common["isa"].get<std::string>().c_str(), row.test.c_str(),
                  static_cast<long long>(row.batch), row.median, row.min, row.max,
                  common["rss_mb"].get<double>(), common["load_ms"].get<double>());
    out.write(text);
  }
}

void bench(const Bench& flags) {
  ExecContext context(exec_options(flags.model));
  const double start = seconds();
  const Model model = load_model(flags.model, context);
  const double load_ms = (seconds() - start) * 1e3;
  Forward forward(model, context);
  KvPool pool(forward.kv_shape(forward.default_kv_dtype()));
  const std::int64_t most = model.config().n_positions;
  for (const auto* lengths : {&flags.prompts, &flags.tokens}) {
    for (const std::int64_t n : *lengths) {
      require(n >= 0 && n <= most, Code::input, [&] {
        return "bench: the model has " + std::to_string(most) + " positions, got a length of " +
               std::to_string(n);
      });
    }
  }
  Progress progress("measuring", !flags.model.quiet);
  std::vector<Row> rows;
  for (const std::int64_t n : flags.prompts) {
    if (n > 0)
      rows.push_back(
          measure("pp" + std::to_string(n), 1, flags.repeats, [&] { return prefill(forward, pool, n); }));
    progress.show(0.3);
  }
  for (const std::int64_t n : flags.tokens) {
    for (const std::int64_t b : flags.batches) {
      if (n > 0)
        rows.push_back(
            measure("tg" + std::to_string(n), b, flags.repeats, [&] { return decode(forward, pool, n, b); }));
      progress.show(0.6);
    }
  }
  const bool quantised = flags.model.quant != "none";
  const ordered_json common{{"model", model_path(flags.model).filename().string()},
                            {"dtype", quantised ? "auto" : std::string(weight_format_name(model.format()))},
                            {"quant", flags.model.quant},
                            {"threads", context.pool().size()},
                            {"isa", std::string(isa_name(context.isa()))},
                            {"rss_mb", peak_rss_mib()},
                            {"load_ms", load_ms}};
  print(flags, rows, common);
}

struct Gemm {
  ModelFlags model;
  int repeats = 10;
};

/// GPT-2's four products per layer, over the rows of decode, batched decode and prefill.
void bench_gemm(const Gemm& flags) {
  ExecContext context(exec_options(flags.model));
  const Ceilings ceilings = measure_ceilings(context);
  Output out;
  out.write(
      "| K | N | format | M | µs | GFLOP/s | GB/s of weights | share of f32 peak | share of read bandwidth "
      "|\n"
      "|--:|--:|---|--:|--:|--:|--:|--:|--:|\n");
  const std::pair<std::int64_t, std::int64_t> shapes[] = {{768, 2304}, {768, 768}, {768, 3072}, {3072, 768}};
  for (const auto& [k, n] : shapes) {
    std::vector<float> w(static_cast<std::size_t>(k * n));
    std::mt19937 engine(1);
    for (float& v : w) v = static_cast<float>(engine()) * 0x1p-32f - 0.5f;
    for (const WeightFormat format :
         {WeightFormat::f32, WeightFormat::bf16, WeightFormat::f16, WeightFormat::int8, WeightFormat::int4}) {
      const PackedMatrix packed = pack(context, {w.data(), DType::f32, k, n, n, 1}, format);
      for (const std::int64_t m : {1, 8, 32, 512}) {
        std::vector<float> x(static_cast<std::size_t>(m * k), 0.5f), y(static_cast<std::size_t>(m * n));
        LinearArgs args;
        args.x = TensorView(x.data(), DType::f32, {m, k});
        args.weight = &packed;
        args.out = TensorView(y.data(), DType::f32, {m, n});
        double best = 1e30;
        for (int i = 0; i <= flags.repeats; ++i) {
          const double start = seconds();
          linear(context, args);
          best = std::min(best, seconds() - start);
        }
        const double gflops = 2.0 * static_cast<double>(m * k * n) / best / 1e9;
        const double gbs = static_cast<double>(packed.bytes) / best / 1e9;
        char text[256];
        std::snprintf(text, sizeof text, "| %lld | %lld | %s | %lld | %.1f | %.1f | %.1f | %.2f | %.2f |\n",
                      static_cast<long long>(k), static_cast<long long>(n), weight_format_name(format).data(),
                      static_cast<long long>(m), best * 1e6, gflops, gbs, gflops / ceilings.fma_gflop_s,
                      gbs / ceilings.read_gb_s);
        out.write(text);
      }
    }
  }
}

}  // namespace

void add_bench(CLI::App& app, int&) {
  auto flags = std::make_shared<Bench>();
  CLI::App* command = app.add_subcommand("bench", "tokens per second");
  add_model_flags(*command, flags->model);
  const auto list = [&](const char* names, std::vector<std::int64_t>& values, const char* help) {
    command->add_option(names, values, help)
        ->delimiter(',')
        ->check(CLI::Range(0, 1 << 24))
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  };
  list("-p,--prompt", flags->prompts, "prompt lengths to prefill [512]");
  list("-n,--tokens", flags->tokens, "tokens to decode [128]");
  list("-b,--batch", flags->batches, "sequences to decode together [1]");
  command->add_option("-r,--repeats", flags->repeats, "measurements of each [5]")->check(CLI::Range(1, 1000));
  command->add_option("--output", flags->output, "md, csv or json")
      ->check(CLI::IsMember({"md", "csv", "json"}));

  auto gemm = std::make_shared<Gemm>();
  CLI::App* products = command->add_subcommand("gemm", "the matrix products by themselves");
  products->add_option("-t,--threads", gemm->model.threads, "threads [all CPUs]")->check(CLI::Range(0, 1024));
  products->add_option("-r,--repeats", gemm->repeats, "measurements of each; the best counts [10]")
      ->check(CLI::Range(1, 1000));
  products->callback([gemm] { bench_gemm(*gemm); });
  command->callback([flags, command] {
    if (command->get_subcommands().empty()) bench(*flags);
  });
}

}  // namespace inkling::app
