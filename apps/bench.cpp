// inkling bench: tokens per second of a model, in the manner of llama-bench.
//
// ppN: one prefill of N random ids with the logits of the last. tgN: N decode steps of B sequences from an
// empty context, or "tgN @ dD" after D tokens; the next ids random, so that the forward alone is timed. Each
// is run once to warm up.
#include "apps/bench.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <random>

#include "apps/bench_report.h"
#include "apps/model_ceiling.h"
#include "apps/model_options.h"
#include "apps/program.h"
#include "apps/signals.h"
#include "apps/timing.h"
#include "model/forward.h"

namespace inkling::app {
namespace {

struct BenchOptions {
  ModelOptions model;
  std::vector<std::int64_t> prompts, tokens, batches{1};
  std::int64_t depth = 0;
  int repeats = 5;
  Table table = Table::md;
  CeilingColumn ceiling = CeilingColumn::hidden;
};

/// Lengths above 0 that fit the context.
struct Tests {
  std::vector<std::int64_t> prompts, tokens;
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
    if (options.ceiling == CeilingColumn::shown) ceiling_.emplace(model_, measure_ceilings(context_));
  }

  std::vector<BenchRow> run(const Tests& tests) {
    std::vector<BenchRow> rows;
    const std::size_t count = tests.prompts.size() + tests.tokens.size() * options_.batches.size();
    Progress progress(console_, "measuring");
    const auto done = [&](BenchRow row) {
      rows.push_back(std::move(row));
      progress.update(static_cast<double>(rows.size()) / static_cast<double>(count));
    };
    for (const std::int64_t n : tests.prompts) {
      const double ceiling = ceiling_ ? ceiling_->prefill(n) : 0;
      done(measure("pp" + std::to_string(n), 1, ceiling, [&] { return prefill(n); }));
    }
    for (const std::int64_t n : tests.tokens) {
      const std::string name =
          "tg" + std::to_string(n) + (options_.depth == 0 ? "" : " @ d" + std::to_string(options_.depth));
      for (const std::int64_t b : options_.batches) {
        const double ceiling = ceiling_ ? ceiling_->decode(b) : 0;
        done(measure(name, b, ceiling, [&] { return decode(n, b); }));
      }
    }
    return rows;
  }

 private:
  template <class Once>
  BenchRow measure(std::string test, std::int64_t batch, double ceiling, Once&& once) {
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

  const BenchOptions& options_;
  const Console& console_;
  ExecContext& context_;
  const Model& model_;
  Forward forward_;
  KvPool pool_;
  PackedBatch batch_;
  std::optional<ModelCeiling> ceiling_;
  std::mt19937 random_{1};
};

std::string dtype_of_weights(const BenchOptions& o, const std::filesystem::path& path) {
  if (o.model.dtype != WeightType::automatic) return std::string(weight_type_name(o.model.dtype));
  return std::string(dtype_name(Gpt2Source::open(path).value().tensors().wte.dtype));
}

/// The lengths given, each within `room`; where none are, the standard one or what room there is.
std::vector<std::int64_t> lengths(const std::vector<std::int64_t>& given, std::int64_t standard,
                                  std::int64_t room, const char* flag, std::int64_t depth) {
  if (given.empty()) return {std::min(standard, room)};
  for (const std::int64_t n : given) {
    if (n <= room) continue;
    throw Error(Code::input, std::string(flag) + ": expected at most the context's " +
                                 std::to_string(room + depth) + " positions, got " + std::to_string(n) +
                                 (depth == 0 ? "" : " after " + std::to_string(depth)));
  }
  return given;
}

Tests tests_of(const BenchOptions& o, std::int64_t positions) {
  if (o.depth >= positions) {
    throw Error(Code::input, "--depth: expected room for a token in the context's " +
                                 std::to_string(positions) + " positions, got " + std::to_string(o.depth));
  }
  Tests tests{lengths(o.prompts, 512, positions, "--prompt", 0),
              lengths(o.tokens, 128, positions - o.depth, "--tokens", o.depth)};
  std::erase(tests.prompts, 0);
  std::erase(tests.tokens, 0);
  if (tests.prompts.empty() && tests.tokens.empty())
    throw Error(Code::usage, "expected --prompt or --tokens above 0, got 0 for both");
  return tests;
}

void bench(const BenchOptions& o, const Console& console) {
  if (o.ceiling == CeilingColumn::shown && o.table == Table::json) {
    throw Error(Code::usage, "--ceiling: expected --output md or csv beside it, got json");
  }
  Workspace workspace(o.model, ReadTokenizer::when_needed, console);
  const Tests tests = tests_of(o, workspace.positions());
  const std::vector<BenchRow> rows =
      workspace.within_memory([&] { return Bench(o, workspace, console).run(tests); });
  const BenchRun run{workspace.name(),
                     dtype_of_weights(o, workspace.path()),
                     std::string(quantisation_name(o.model.quant)),
                     std::string(arithmetic_name(workspace.context())),
                     workspace.context().pool().size(),
                     peak_rss_mb(),
                     workspace.load_ms()};
  print_bench(rows, run, o.table, o.ceiling);
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
  options.add("-p,--prompt", "N,..", "lengths of prefills: tests ppN; 0: none [512, or what fits]",
              numbers(o->prompts, 0, kMaxPositions));
  options.add("-n,--tokens", "N,..", "steps of decoding: tests tgN; 0: none [128, or what fits]",
              numbers(o->tokens, 0, kMaxPositions));
  options.add("-d,--depth", "N", "tokens in the context before decoding [0]",
              whole<std::int64_t>(o->depth, 0, kMaxPositions));
  options.add("-b,--batch", "N,..", "sequences decoded together [1]", numbers(o->batches, 1, 1 << 16));
  options.add("-r,--repeats", "N", "measurements of each, after one to warm up [5]",
              whole(o->repeats, 1, 10'000));
  options.add("--output", "FORM", "md, csv or json [md]", table_form(o->table));
  options.flag(
      "--ceiling", "measure the machine's limits, and show the share reached (md, csv)",
      choice<CeilingColumn>(o->ceiling, {{"true", CeilingColumn::shown}, {"false", CeilingColumn::hidden}}));
  add_weight_options(options, o->model);
  add_bench_gemm(program, options);
  add_bench_sdpa(program, options);
  add_bench_train(program, options);
}

}  // namespace inkling::app
