// inkling bench: tokens per second of a model, in the manner of llama-bench.
//
// ppN: one prefill of N random ids with the logits of the last. tgN: N decode steps of B sequences from an
// empty context, or "tgN @ dD" after D tokens; the next ids random, so that the forward alone is timed. Each
// is run once to warm up.
#include "apps/bench.h"

#include <algorithm>
#include <memory>
#include <random>

#include "apps/ceilings.h"
#include "apps/json_text.h"
#include "apps/model_options.h"
#include "apps/program.h"
#include "apps/signals.h"
#include "apps/timing.h"
#include "model/forward.h"

namespace inkling::app {
namespace {

struct BenchOptions {
  ModelOptions model;
  std::vector<std::int64_t> prompts{512}, tokens{128}, batches{1};
  std::int64_t depth = 0;
  int repeats = 5;
  Table table = Table::md;
  bool ceiling = false;
};

struct Row {
  std::string test;
  std::int64_t batch = 1;
  Spread rate;         // tokens a second
  double ceiling = 0;  // tokens a second that the machine's measured limits allow
};

struct Header {
  std::string model, dtype, quant, isa;
  int threads = 0;
  double rss_mb = 0, load_ms = 0;
};

class Bench {
 public:
  Bench(const BenchOptions& options, Workspace& workspace, const Console& console)
      : options_(options),
        console_(console),
        context_(workspace.context()),
        model_(workspace.model()),
        forward_(model_, context_),
        pool_(forward_.kv_shape(forward_.default_kv_dtype()), workspace.kv_max_bytes(),
              &forward_.context().backend()) {
    if (options.ceiling) ceilings_ = measure_ceilings(context_);
  }

  std::vector<Row> run() {
    std::vector<Row> rows;
    const std::size_t tests = options_.prompts.size() + options_.tokens.size() * options_.batches.size();
    Progress progress(console_, "measuring");
    const auto done = [&](Row row) {
      rows.push_back(std::move(row));
      progress.update(static_cast<double>(rows.size()) / static_cast<double>(tests));
    };
    for (const std::int64_t n : options_.prompts) {
      if (n > 0) done(measure("pp" + std::to_string(n), 1, prefill_ceiling(n), [&] { return prefill(n); }));
    }
    for (const std::int64_t n : options_.tokens) {
      const std::string name =
          "tg" + std::to_string(n) + (options_.depth == 0 ? "" : " @ d" + std::to_string(options_.depth));
      for (const std::int64_t b : options_.batches) {
        if (n > 0) done(measure(name, b, decode_ceiling(b), [&] { return decode(n, b); }));
      }
    }
    return rows;
  }

 private:
  template <class Once>
  Row measure(std::string test, std::int64_t batch, double ceiling, Once&& once) {
    once();
    std::vector<double> all(static_cast<std::size_t>(options_.repeats));
    for (double& value : all) value = once();
    return {std::move(test), batch, spread_of(std::move(all)), ceiling};
  }

  std::int32_t random_id() {
    return static_cast<std::int32_t>(random_() % static_cast<std::uint32_t>(model_.config().vocab_size));
  }

  double prefill(std::int64_t length) {
    const std::vector<std::int32_t> ids = random_ids(length);
    KvSequence sequence(pool_);
    const double start = now();
    run(sequence, ids, 1);
    (void)forward_.logits();
    context_.backend().synchronise();
    check_interrupt();
    return static_cast<double>(length) / (now() - start);
  }

  std::vector<std::int32_t> random_ids(std::int64_t count) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
    std::generate(ids.begin(), ids.end(), [&] { return random_id(); });
    return ids;
  }
  void run(KvSequence& sequence, std::span<const std::int32_t> ids, std::int64_t wanted) {
    sequence.reserve(static_cast<std::int64_t>(ids.size()));
    batch_.clear();
    batch_.add(sequence, ids, wanted);
    forward_.run(batch_);
  }

  double decode(std::int64_t steps, std::int64_t count) {
    std::vector<KvSequence> sequences;
    for (std::int64_t i = 0; i < count; ++i) sequences.emplace_back(pool_);
    if (options_.depth > 0) {
      for (KvSequence& sequence : sequences) run(sequence, random_ids(options_.depth), 0);
    }
    context_.backend().synchronise();
    const double start = now();
    for (std::int64_t step = 0; step < steps; ++step) {
      batch_.clear();
      for (KvSequence& sequence : sequences) {
        const std::int32_t id = random_id();
        sequence.reserve(1);
        batch_.add(sequence, std::span(&id, 1), 1);
      }
      forward_.run(batch_);
      (void)forward_.logits();
      context_.backend().synchronise();
      check_interrupt();
    }
    return static_cast<double>(steps * count) / (now() - start);
  }

  // Bytes of weights that a step reads: all but the positions, and the embedding when the head is another
  // matrix.
  double step_bytes() const {
    const bool tied = &model_.head() == &model_.embedding();
    return static_cast<double>(model_.nbytes() - model_.positions().nbytes() -
                               (tied ? 0 : model_.embedding().bytes));
  }
  double layer_flops() const {
    double flops = 0;
    for (const LayerWeights& l : model_.layers()) {
      for (const auto* w : {&l.qkv, &l.proj, &l.fc, &l.fcproj}) {
        flops += 2.0 * static_cast<double>(w->weight.k) * static_cast<double>(w->weight.n);
      }
    }
    return flops;
  }
  double head_flops() const {
    return 2.0 * static_cast<double>(model_.head().k) * static_cast<double>(model_.head().n);
  }
  double decode_ceiling(std::int64_t batch) const {
    if (!options_.ceiling) return 0;
    const auto b = static_cast<double>(batch);
    const double read = step_bytes() / (ceilings_.read_gb_s * 1e9);
    const double compute =
        ceilings_.gflop_s > 0 ? b * (layer_flops() + head_flops()) / (ceilings_.gflop_s * 1e9) : 0;
    return b / std::max(read, compute);
  }
  double prefill_ceiling(std::int64_t length) const {
    if (!options_.ceiling || ceilings_.gflop_s <= 0) return 0;
    const auto n = static_cast<double>(length);
    return n / ((n * layer_flops() + head_flops()) / (ceilings_.gflop_s * 1e9));
  }

  const BenchOptions& options_;
  const Console& console_;
  ExecContext& context_;
  const Model& model_;
  Forward forward_;
  KvPool pool_;
  PackedBatch batch_;
  Ceilings ceilings_;
  std::mt19937 random_{1};
};

std::string dtype_of_weights(const BenchOptions& o, const std::filesystem::path& path) {
  if (o.model.dtype != WeightType::automatic) {
    constexpr const char* kNames[] = {"auto", "f32", "f16", "bf16"};
    return kNames[static_cast<std::size_t>(o.model.dtype)];
  }
  return std::string(dtype_name(Gpt2Source::open(path).value().tensors().wte.dtype));
}

void print_json(const std::vector<Row>& rows, const Header& h) {
  JsonRows out(JsonRows::Shape::array);
  for (const Row& row : rows) {
    out.write("{\"model\":" + json_string(h.model) + ",\"dtype\":" + json_string(h.dtype) +
              ",\"quant\":" + json_string(h.quant) + ",\"threads\":" + std::to_string(h.threads) +
              ",\"isa\":" + json_string(h.isa) + ",\"test\":" + json_string(row.test) + ",\"batch\":" +
              std::to_string(row.batch) + ",\"tok_per_s\":{\"median\":" + format("%.6g", row.rate.median) +
              ",\"min\":" + format("%.6g", row.rate.min) + ",\"max\":" + format("%.6g", row.rate.max) +
              "},\"rss_mb\":" + format("%.6g", h.rss_mb) + ",\"load_ms\":" + format("%.6g", h.load_ms) + "}");
  }
  out.finish();
}

void print_table(const std::vector<Row>& rows, const Header& h, bool csv, bool ceiling) {
  const std::string between = csv ? "," : " | ", edge = csv ? "" : "|";
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string text = csv ? "" : "| ";
    for (std::size_t i = 0; i < cells.size(); ++i) text += (i == 0 ? "" : between) + cells[i];
    Console::write(text + (csv ? "\n" : " |\n"));
  };
  std::vector<std::string> head{"model", "dtype", "quant", "threads", "isa",    "test",
                                "batch", "tok/s", "min",   "max",     "rss MB", "load ms"};
  if (ceiling) head.push_back("of ceiling");
  line(head);
  if (!csv)
    Console::write("|---|---|---|--:|---|---|--:|--:|--:|--:|--:|--:|" +
                   std::string(ceiling ? "--:|\n" : "\n"));
  for (const Row& row : rows) {
    std::vector<std::string> cells{h.model,
                                   h.dtype,
                                   h.quant,
                                   std::to_string(h.threads),
                                   h.isa,
                                   row.test,
                                   std::to_string(row.batch),
                                   format("%.1f", row.rate.median),
                                   format("%.1f", row.rate.min),
                                   format("%.1f", row.rate.max),
                                   format("%.0f", h.rss_mb),
                                   format("%.0f", h.load_ms)};
    if (ceiling)
      cells.push_back(row.ceiling > 0 ? format("%.0f%%", 100 * row.rate.median / row.ceiling) : "");
    line(cells);
  }
}

void bench(const BenchOptions& o, const Console& console) {
  if (o.ceiling && o.table == Table::json) {
    throw Error(Code::usage, "--ceiling: expected --output md or csv beside it, got json");
  }
  Workspace workspace(o.model, ReadTokenizer::when_needed, console);
  const std::int64_t most = workspace.positions();
  for (const auto* lengths : {&o.prompts, &o.tokens}) {
    for (const std::int64_t n : *lengths) {
      const std::int64_t before = lengths == &o.tokens ? o.depth : 0;
      if (n == 0 || n + before <= most) continue;
      throw Error(Code::input, std::string(lengths == &o.prompts ? "--prompt" : "--tokens") +
                                   ": expected at most the model's " + std::to_string(most) +
                                   " positions, got " + std::to_string(n) +
                                   (before == 0 ? "" : " after " + std::to_string(before)));
    }
  }
  const std::vector<Row> rows = Bench(o, workspace, console).run();
  constexpr const char* kQuants[] = {"none", "int8", "int4"};
  const Header header{workspace.name(),
                      dtype_of_weights(o, workspace.path()),
                      kQuants[static_cast<std::size_t>(o.model.quant)],
                      std::string(arithmetic_name(workspace.context())),
                      workspace.context().pool().size(),
                      peak_rss_mb(),
                      workspace.load_ms()};
  if (o.table == Table::json) return print_json(rows, header);
  print_table(rows, header, o.table == Table::csv, o.ceiling);
}

}  // namespace

Setter table_form(Table& target) {
  return choice<Table>(target, {{"md", Table::md}, {"csv", Table::csv}, {"json", Table::json}});
}

std::string_view arithmetic_name(const ExecContext& context) {
  return context.device() == Device::cpu ? isa_name(context.isa()) : device_name(context.device());
}

void add_bench(Program& program) {
  auto o = std::make_shared<BenchOptions>();
  Options& options = program.command("bench", "tokens per second; below it gemm, sdpa and train",
                                     [o](const Console& console) { bench(*o, console); });
  options.group("What and how", Options::Layers::command_line);
  options.add("-p,--prompt", "N,..", "lengths of prefills: tests ppN; 0: none [512]",
              numbers(o->prompts, 0, kMaxPositions));
  options.add("-n,--tokens", "N,..", "steps of decoding: tests tgN; 0: none [128]",
              numbers(o->tokens, 0, kMaxPositions));
  options.add("-d,--depth", "N", "tokens in the context before decoding [0]",
              whole<std::int64_t>(o->depth, 0, kMaxPositions));
  options.add("-b,--batch", "N,..", "sequences decoded together [1]", numbers(o->batches, 1, 1 << 16));
  options.add("-r,--repeats", "N", "measurements of each, after one to warm up [5]",
              whole(o->repeats, 1, 10'000));
  options.add("--output", "FORM", "md, csv or json [md]", table_form(o->table));
  options.flag("--ceiling", "measure the machine's limits, and show the share reached (md, csv)", o->ceiling);
  add_weight_options(options, o->model);
  add_bench_gemm(program, options);
  add_bench_sdpa(program, options);
  add_bench_train(program, options);
}

}  // namespace inkling::app
