// inkling bench sdpa: attention by itself, one backend beside the other, and the tutorial's experiments.
//
// Flops count the scores that a mask lets be seen: a causal one half of a full one's. Bytes are q, k, v and
// out once.
#include <cmath>
#include <memory>

#include "apps/attention_case.h"
#include "apps/ceilings.h"
#include "apps/json_text.h"
#include "apps/model_options.h"
#include "apps/program.h"
#include "apps/timing.h"
#include "attention/causal_bias.h"
#include "attention/causal_self_attention.h"
#include "engine/profiler.h"

namespace inkling::app {

Options& add_bench_sdpa(Program& program, const Options& bench);

namespace {

enum class Table : std::uint8_t { md, csv, json };

struct SdpaOptions {
  ModelOptions model;  // device and threads
  std::vector<SdpaBackend> backends;
  AttentionCase shape{.mask = MaskKind::causal_lower_right};
  std::int64_t batch = 1, length = 1024, q_length = 0, k_length = 0, kv_heads = 0;
  std::vector<std::int64_t> varlen;
  std::uint64_t memory_limit = SdpaPolicy{}.memory_limit;
  std::string suite;
  float scale = 0.03125f;  // 1/32
  int repeats = 5;
  Table table = Table::md;
};

struct Row {
  std::string experiment, shape, what;
  Spread time;
  double flops = 0, bytes = 0;
  std::string note;  // why it was refused, or what the figures cannot say
};

class SdpaBench {
 public:
  SdpaBench(const SdpaOptions& options, const Console& console)
      : o_(options), console_(console), context_(exec()) {
    if (o_.table == Table::md) ceilings_ = measure_ceilings(context_);
    SdpaPolicy policy;
    policy.memory_limit = static_cast<std::size_t>(o_.memory_limit);
    limit_.emplace(context_, std::move(policy));
  }

  void explore() {
    const std::vector<SdpaBackend> all{SdpaBackend::flash, SdpaBackend::decode, SdpaBackend::math};
    const Row row{"explore", o_.shape.to_string(), "", {}, 0, 0, ""};
    compare(row, o_.shape, o_.backends.empty() ? all : o_.backends, o_.backends.empty());
  }

  // The experiments of PyTorch's SDPA tutorial, shapes first. `scale` cuts the batches.
  void tutorial() {
    backends();
    varlen();
    eager_or_planned();
    alignments();
  }

  void print() const { o_.table == Table::json ? print_json() : print_table(o_.table == Table::csv); }

 private:
  ExecOptions exec() {
    ExecOptions exec = exec_options(o_.model, console_);
    if (exec.profiler == nullptr) exec.profiler = &own_;  // it knows what the ops cost
    profiler_ = exec.profiler;
    return exec;
  }

  std::int64_t scaled(std::int64_t batch) const {
    return std::max<std::int64_t>(1,
                                  std::llround(static_cast<double>(batch) * static_cast<double>(o_.scale)));
  }

  // Flops and bytes of one call, from the ops' own accounts.
  template <class Call>
  void add(Row row, Call&& call) {
    console_.note("inkling: " + row.experiment + ": " + row.shape + ", " + row.what);
    const auto sum = [&] {
      Row total;
      for (const Profiler::Row& r : profiler_->rows()) total.flops += r.flops, total.bytes += r.bytes;
      return total;
    };
    const Row before = sum();
    call();
    const Row after = sum();
    row.flops = after.flops - before.flops;
    row.bytes = after.bytes - before.bytes;
    row.time = time_calls(o_.repeats, call);
    rows_.push_back(std::move(row));
  }

  void compare(Row row, const AttentionCase& shape, const std::vector<SdpaBackend>& backends, bool refusals) {
    const AttentionData data(shape, AttentionData::Memory::random);
    for (const SdpaBackend backend : backends) {
      const SdpaScope scope(context_, {backend});
      row.what = std::string(sdpa_backend_name(backend));
      const SdpaChoice choice = choose(context_, data.forward());
      const SdpaChoice back =
          shape.backward && choice.backend ? choose_backward(context_, data.backward()) : choice;
      if (refusals && !(choice.backend && back.backend)) {
        row.note = "refused: " + (choice.backend ? back : choice).refused.front().reason;
        rows_.push_back(row);
        row.note.clear();
        continue;
      }
      add(row, [&] { sdpa(context_, data.forward()); });
      if (!shape.backward) continue;
      Row backward = row;
      backward.what += " backward";
      add(std::move(backward), [&] { sdpa_backward(context_, data.backward()); });
    }
  }

  void backends() {
    AttentionCase shape;
    shape.heads = shape.kv_heads = 32;
    shape.dim = 32;
    shape.dtype = o_.shape.dtype;
    shape.q_lengths.assign(static_cast<std::size_t>(scaled(32)), o_.length);
    shape.k_lengths = shape.q_lengths;
    for (const MaskKind mask : {MaskKind::none, MaskKind::causal_upper_left}) {
      shape.mask = mask;
      compare({"backend comparison", shape.to_string(), "", {}, 0, 0, ""}, shape,
              {SdpaBackend::flash, SdpaBackend::math, SdpaBackend::decode}, true);
    }
  }

  struct Module {
    CausalSelfAttention attention;
    std::vector<float> x, out;
    std::vector<std::int32_t> cu{0};
    std::string shape;

    Module(ExecContext& context, const std::vector<std::int64_t>& lengths)
        : attention(context,
                    {.n_embd = 512, .n_head = 8, .attention_dropout = 0.1f, .residual_dropout = 0.1f}) {
      for (const std::int64_t length : lengths) cu.push_back(cu.back() + static_cast<std::int32_t>(length));
      x.resize(static_cast<std::size_t>(cu.back()) * 512);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 251) / 125.0f - 1.0f;
      out.resize(x.size());
      shape = "module C=512 H=8, " + std::to_string(lengths.size()) + " sequences, " +
              std::to_string(cu.back()) + " tokens";
    }
    void run() {
      const std::int64_t tokens = cu.back();
      attention.forward({TensorView(x.data(), DType::f32, {tokens, 512}), cu},
                        TensorView(out.data(), DType::f32, {tokens, 512}));
    }
  };

  // The same sequences padded to the longest place and packed back to back: half of the padded rows are none.
  void varlen() {
    const std::int64_t batch = std::max<std::int64_t>(4, scaled(32));
    std::vector<std::int64_t> packed;
    for (std::int64_t b = 0; b < batch; ++b) packed.push_back(512 * (2 * b + 1) / (2 * batch));
    Module dense(context_, std::vector<std::int64_t>(static_cast<std::size_t>(batch), 512));
    Module varlen(context_, packed);
    add({"varlen vs dense, 50% padding", dense.shape, "padded", {}, 0, 0, ""}, [&] { dense.run(); });
    add({"varlen vs dense, 50% padding", varlen.shape, "packed", {}, 0, 0, ""}, [&] { varlen.run(); });
  }

  void eager_or_planned() {
    Module module(context_, std::vector<std::int64_t>(
                                static_cast<std::size_t>(std::max<std::int64_t>(2, scaled(32))), 256));
    add({"module eager vs planned", module.shape, "eager: fresh memory each call", {}, 0, 0, ""}, [&] {
      module.attention.release();
      module.run();
    });
    add({"module eager vs planned", module.shape, "planned: one arena", {}, 0, 0, ""}, [&] { module.run(); });
    console_.note(module.attention.to_string());
  }

  // Two queries, ten keys, as the tutorial has them; then a square, where both say the same.
  void alignments() {
    for (const std::int64_t queries : {2, 10}) {
      std::vector<std::vector<float>> outs;
      AttentionCase shape;
      shape.heads = shape.kv_heads = 8;
      shape.q_lengths = {queries};
      shape.k_lengths = {10};
      for (const CausalBias& bias : {causal_upper_left(queries, 10), causal_lower_right(queries, 10)}) {
        shape.mask = bias.kind();
        const AttentionData data(shape, AttentionData::Memory::random);
        if (queries == 2)
          console_.note(std::string(mask_kind_name(bias.kind())) + "(2, 10):\n" + bias.to_string());
        add({"upper-left vs lower-right", shape.to_string(), "automatic", {}, 0, 0, ""},
            [&] { sdpa(context_, data.forward()); });
        const TensorView& out = data.forward().out;
        outs.emplace_back(out.as<float>(), out.as<float>() + out.numel());
      }
      rows_.back().note = outs[0] == outs[1] ? "equal to upper-left" : "differs from upper-left";
    }
  }

  void print_json() const {
    JsonRows out(JsonRows::Shape::array);
    for (const Row& r : rows_) {
      const bool refused = r.time.median == 0;
      const auto number = [&](double value) { return refused ? std::string("null") : json_number(value); };
      out.write("{\"experiment\":" + json_string(r.experiment) + ",\"shape\":" + json_string(r.shape) +
                ",\"what\":" + json_string(r.what) + ",\"threads\":" +
                std::to_string(context_.pool().size()) + ",\"isa\":" + json_string(isa_name(context_.isa())) +
                ",\"us\":{\"median\":" + number(r.time.median * 1e6) +
                ",\"min\":" + number(r.time.min * 1e6) + ",\"max\":" + number(r.time.max * 1e6) +
                "},\"gflop_per_s\":" + number(r.flops / r.time.median / 1e9) + ",\"gb_per_s\":" +
                number(r.bytes / r.time.median / 1e9) + ",\"note\":" + json_string(r.note) + "}");
    }
    out.finish();
  }

  void print_table(bool csv) const {
    Console::write(csv ? "experiment,shape,what,us,min,max,gflop_per_s,gb_per_s,note\n"
                       : "| experiment | shape | what | µs | min–max | GFLOP/s | of f32 peak | GB/s | |\n"
                         "|---|---|---|--:|--:|--:|--:|--:|---|\n");
    for (const Row& r : rows_) {
      const double gflops = r.flops / r.time.median / 1e9, gb = r.bytes / r.time.median / 1e9;
      const bool refused = r.time.median == 0;
      if (csv) {
        const auto figure = [&](double value) { return refused ? std::string(",") : format(",%.6g", value); };
        Console::write('"' + r.experiment + "\",\"" + r.shape + "\",\"" + r.what + '"' +
                       figure(r.time.median * 1e6) + figure(r.time.min * 1e6) + figure(r.time.max * 1e6) +
                       figure(gflops) + figure(gb) + ",\"" + r.note + "\"\n");
      } else if (refused) {
        Console::write("| " + r.experiment + " | " + r.shape + " | " + r.what + " | | | | | | " + r.note +
                       " |\n");
      } else {
        const double peak = ceilings_.gflop_s > 0 ? gflops / ceilings_.gflop_s : 0;
        Console::write("| " + r.experiment + " | " + r.shape + " | " + r.what +
                       format(" | %.1f", r.time.median * 1e6) + format(" | %.1f", r.time.min * 1e6) +
                       format("–%.1f", r.time.max * 1e6) + format(" | %.1f", gflops) +
                       format(" | %.2f", peak) + format(" | %.1f", gb) + " | " + r.note + " |\n");
      }
    }
  }

  const SdpaOptions& o_;
  const Console& console_;
  Profiler own_{0};
  Profiler* profiler_ = nullptr;
  ExecContext context_;
  Ceilings ceilings_;
  std::optional<SdpaScope> limit_;
  std::vector<Row> rows_;
};

void set_lengths(SdpaOptions& o) {
  AttentionCase& s = o.shape;
  s.kv_heads = o.kv_heads != 0 ? o.kv_heads : s.heads;
  const auto batch = static_cast<std::size_t>(o.batch);
  s.q_lengths.assign(batch, o.q_length != 0 ? o.q_length : o.length);
  s.k_lengths.assign(batch, o.k_length != 0 ? o.k_length : o.length);
  if (!o.varlen.empty()) s.q_lengths = s.k_lengths = o.varlen;
}

void bench_sdpa(SdpaOptions& o, const Console& console) {
  set_lengths(o);
  SdpaBench bench(o, console);
  o.suite.empty() ? bench.explore() : bench.tutorial();
  bench.print();
}

Setter fraction(float& target, float least, float most, const std::string& expected) {
  return [&target, least, most, expected](const std::string& value) {
    float parsed = 0;
    if (!parse_number(value, parsed) || !(parsed >= least && parsed < most)) refuse(expected, value);
    target = parsed;
  };
}

}  // namespace

Options& add_bench_sdpa(Program& program, const Options& bench) {
  auto o = std::make_shared<SdpaOptions>();
  Options& options = program.command(
      "sdpa", "attention by itself: backends side by side, medians",
      [o](const Console& console) { bench_sdpa(*o, console); }, &bench);
  options.group("What", Options::Layers::command_line);
  options.add("--suite", "NAME", "tutorial: the experiments of PyTorch's SDPA tutorial",
              choice<std::string>(o->suite, {{"tutorial", "tutorial"}}));
  options.add("--scale", "X", "share of the tutorial's batch of 32 [0.03125]",
              fraction(o->scale, 0.001f, 1.001f, "a share from 0.001 to 1"));
  options.add("--backend", "NAME,..", "all, or some of flash, decode and math [all]",
              [o](const std::string& value) { backends(o->backends)(value == "all" ? "auto" : value); });
  options.add("-b,--batch", "N", "sequences [1]", whole<std::int64_t>(o->batch, 1, 1 << 16));
  options.add("--heads", "N", "query heads [12]", whole<std::int64_t>(o->shape.heads, 1, 1 << 12));
  options.add("--kv-heads", "N", "heads of keys and values [as many]",
              whole<std::int64_t>(o->kv_heads, 1, 1 << 12));
  options.add("--length", "T", "queries and keys of a sequence [1024]",
              whole<std::int64_t>(o->length, 1, 1 << 20));
  options.add("--q-length", "T", "queries, if not as many", whole<std::int64_t>(o->q_length, 1, 1 << 20));
  options.add("--k-length", "T", "keys, if not as many", whole<std::int64_t>(o->k_length, 1, 1 << 20));
  options.add("--varlen", "T,..", "lengths of packed sequences, instead", numbers(o->varlen, 1, 1 << 20));
  options.add("--head-dim", "D", "[64]", whole<std::int64_t>(o->shape.dim, 1, 256));
  options.add("--dtype", "TYPE", "f32, bf16 or f16 [f32]",
              [o](const std::string& value) { o->shape.dtype = parse_attention_dtype(value); });
  options.add("--mask", "KIND",
              "none, causal_upper_left, causal_lower_right, sliding_window, .. [lower right]",
              [o](const std::string& value) { o->shape.mask = parse_mask_kind(value); });
  options.add("--window", "N", "keys under sliding_window [256]",
              whole<std::int64_t>(o->shape.window, 1, 1 << 20));
  options.add("--dropout", "P", "[0]", fraction(o->shape.dropout, 0.0f, 1.0f, "a rate in [0, 1)"));
  options.flag("--backward", "gradients too", o->shape.backward);
  options.group("How", Options::Layers::command_line);
  options.add("-r,--repeats", "N", "samples of each, at least 10 ms long [5]", whole(o->repeats, 1, 10'000));
  options.add("--memory-limit", "SIZE", "most bytes that grow with Tq x Tk [64M]", bytes(o->memory_limit));
  options.add("--output", "FORM", "md, csv or json [md]",
              choice<Table>(o->table, {{"md", Table::md}, {"csv", Table::csv}, {"json", Table::json}}));
  add_device_options(options, o->model);
  return options;
}

}  // namespace inkling::app
