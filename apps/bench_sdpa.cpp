// inkling bench sdpa: attention by itself, one backend beside the other, and the tutorial's experiments.
//
// Flops count the scores that a mask lets be seen (attention/sdpa_problem.h): a causal one half of a full
// one's. Bytes are q, k, v and out once. On a GPU calls are recorded and repeated, over more data than its
// cache holds: each finds its inputs in memory, as in a model.
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "apps/attention_case.h"
#include "apps/bench_sdpa_options.h"
#include "apps/bench_sdpa_table.h"
#include "apps/ceilings.h"
#include "apps/device_timing.h"
#include "apps/program.h"
#include "attention/causal_bias.h"
#include "attention/causal_self_attention.h"
#include "engine/profiler.h"

namespace inkling::app {
namespace {

constexpr int kChain = 24;  // calls recorded as one

class SdpaBench {
 public:
  SdpaBench(const SdpaOptions& options, const Console& console)
      : o_(options),
        console_(console),
        context_(exec_options(options.model, console)),
        gpu_(context_.device() == Device::cuda) {
    SdpaPolicy policy;
    policy.memory_limit = o_.limit();
    limit_.emplace(context_, std::move(policy));
    table_.threads = context_.pool().size();
    table_.arithmetic = arithmetic_name(context_);
  }

  // A backend that was asked for by name is refused before anything else is measured.
  void explore() {
    const AttentionData none(o_.shape, nullptr);
    for (const SdpaBackend backend : o_.backends) {
      if (const std::string reason = refusal(backend, none, o_.shape.backward); !reason.empty()) {
        throw Error(Code::usage, "--backend: " + std::string(sdpa_backend_name(backend)) + " cannot run " +
                                     o_.shape.to_string() + ": " + reason);
      }
    }
    if (!gpu_) table_.peak = measure_gflop_s(context_);
    const std::vector<SdpaBackend> all{SdpaBackend::flash, SdpaBackend::decode, SdpaBackend::math};
    const SdpaRow row{"explore", o_.shape.to_string(), ""};
    compare(row, o_.shape, o_.backends.empty() ? all : o_.backends);
  }

  // The experiments of PyTorch's SDPA tutorial, shapes first. `scale` cuts the batches.
  void tutorial() {
    if (!gpu_) table_.peak = measure_gflop_s(context_);
    backends();
    varlen();
    eager_or_planned();
    alignments();
  }

  const SdpaTable& table() const noexcept { return table_; }

 private:
  std::int64_t scaled(std::int64_t batch) const {
    return std::max<std::int64_t>(1,
                                  std::llround(static_cast<double>(batch) * static_cast<double>(o_.scale)));
  }

  /// How calls follow each other on a GPU: repeated from a recording, or each begun and waited for.
  enum class Follow : std::uint8_t { recorded, apart };

  // Flops and bytes are those of one call, from the ops' own accounts, which are not drawn up while it is
  // timed. call(i): on the data of turn i.
  template <class Call>
  void add(SdpaRow row, Call&& call, Follow follow, int turns = 1) {
    console_.note("inkling: " + row.experiment + ": " + row.shape + ", " + row.what);
    Profiler account(0);
    Profiler* const given = context_.record_into(&account);
    call(0);
    context_.record_into(given);
    for (const Profiler::Row& op : account.rows()) row.flops += op.flops, row.bytes += op.bytes;
    check_interrupt();
    if (gpu_ && follow == Follow::recorded) {
      row.time = time_recorded(context_, o_.samples(), std::max(turns, kChain), call);
    } else {
      const auto one = [&] {
        call(0);
        context_.backend().synchronise();
      };
      row.time = time_calls(o_.samples(), one, WarmUp::done);
    }
    table_.rows.push_back(std::move(row));
  }

  // Why `backend` cannot run a case; empty if it can.
  std::string refusal(SdpaBackend backend, const AttentionData& data, bool backward) {
    const SdpaScope scope(context_, {backend});
    SdpaChoice choice = choose(context_, data.forward());
    if (choice.backend && backward) choice = choose_backward(context_, data.backward());
    return choice.backend ? "" : choice.refused.front().reason;
  }

  /// A case's data; on a GPU several times, so much that none is left in its cache when it comes again.
  std::vector<std::unique_ptr<AttentionData>> data_of(const AttentionCase& shape) {
    constexpr std::size_t kEnough = std::size_t{256} << 20;  // five times the cache of an H200
    std::vector<std::unique_ptr<AttentionData>> sets;
    std::size_t bytes = 0;
    do {
      sets.push_back(std::make_unique<AttentionData>(shape, &context_.backend()));
      bytes += sets.back()->nbytes();
    } while (gpu_ && (sets.size() < 2 || bytes < kEnough) && sets.size() < kChain);
    return sets;
  }

  void compare(SdpaRow row, const AttentionCase& shape, const std::vector<SdpaBackend>& backends) {
    const auto sets = data_of(shape);
    const auto data = [&](int i) -> const AttentionData& {
      return *sets[static_cast<std::size_t>(i) % sets.size()];
    };
    const int turns = static_cast<int>(sets.size());
    for (const SdpaBackend backend : backends) {
      row.what = std::string(sdpa_backend_name(backend));
      row.note = refusal(backend, data(0), shape.backward);
      if (!row.note.empty()) {
        row.note.insert(0, "refused: ");
        table_.rows.push_back(row);
        continue;
      }
      if (gpu_ && shape.mask == MaskKind::boolean) row.note = "flops count hidden scores too";
      const SdpaScope scope(context_, {backend});
      add(
          row, [&](int i) { sdpa(context_, data(i).forward()); }, Follow::recorded, turns);
      if (!shape.backward) continue;
      SdpaRow backward = row;
      backward.what += " backward";
      add(
          std::move(backward), [&](int i) { sdpa_backward(context_, data(i).backward()); }, Follow::recorded,
          turns);
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
      compare({"backend comparison", shape.to_string(), ""}, shape,
              {SdpaBackend::flash, SdpaBackend::math, SdpaBackend::decode});
    }
  }

  struct Module {
    CausalSelfAttention attention;
    std::vector<std::int32_t> cu{0};
    Tensor x, out;
    std::string shape;

    Module(ExecContext& context, const std::vector<std::int64_t>& lengths)
        : attention(context,
                    {.n_embd = 512, .n_head = 8, .attention_dropout = 0.1f, .residual_dropout = 0.1f}) {
      for (const std::int64_t length : lengths) cu.push_back(cu.back() + static_cast<std::int32_t>(length));
      std::vector<float> values(static_cast<std::size_t>(cu.back()) * 512);
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 251) / 125.0f - 1.0f;
      const std::array<std::int64_t, 2> extents{cu.back(), 512};
      const std::size_t bytes = values.size() * sizeof(float);
      x = Tensor(context.backend().allocate(bytes), DType::f32, extents);
      out = Tensor(context.backend().allocate(bytes), DType::f32, extents);
      context.backend().copy_in(x.view().data, values.data(), bytes);
      shape = "module C=512 H=8, " + std::to_string(lengths.size()) + " sequences, " +
              std::to_string(cu.back()) + " tokens";
    }
    void run() { attention.forward({x.view(), cu}, out.view()); }
  };

  // The same sequences padded to the longest place and packed back to back: half of the padded rows are none.
  void varlen() {
    const std::int64_t batch = std::max<std::int64_t>(4, scaled(32));
    std::vector<std::int64_t> packed;
    for (std::int64_t b = 0; b < batch; ++b) packed.push_back(512 * (2 * b + 1) / (2 * batch));
    Module dense(context_, std::vector<std::int64_t>(static_cast<std::size_t>(batch), 512));
    Module varlen(context_, packed);
    add(
        {"varlen vs dense, 50% padding", dense.shape, "padded"}, [&](int) { dense.run(); }, Follow::recorded);
    add(
        {"varlen vs dense, 50% padding", varlen.shape, "packed"}, [&](int) { varlen.run(); },
        Follow::recorded);
  }

  void eager_or_planned() {
    Module module(context_, std::vector<std::int64_t>(
                                static_cast<std::size_t>(std::max<std::int64_t>(2, scaled(32))), 256));
    const auto eager = [&](int) {
      module.attention.release();
      module.run();
    };
    add({"module eager vs planned", module.shape, "eager: fresh memory each call"}, eager, Follow::apart);
    add(
        {"module eager vs planned", module.shape, "planned: one arena"}, [&](int) { module.run(); },
        Follow::recorded);
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
        const AttentionData data(shape, &context_.backend());
        if (queries == 2)
          console_.note(std::string(mask_kind_name(bias.kind())) + "(2, 10):\n" + bias.to_string());
        add(
            {"upper-left vs lower-right", shape.to_string(), "automatic"},
            [&](int) { sdpa(context_, data.forward()); }, Follow::recorded);
        const TensorView& out = data.forward().out;
        auto& values = outs.emplace_back(static_cast<std::size_t>(out.numel()));
        context_.backend().copy_out(values.data(), out.as<float>(), out.nbytes());
      }
      table_.rows.back().note = outs[0] == outs[1] ? "equal to upper-left" : "differs from upper-left";
    }
  }

  const SdpaOptions& o_;
  const Console& console_;
  ExecContext context_;
  bool gpu_;
  std::optional<SdpaScope> limit_;
  SdpaTable table_;
};

void bench_sdpa(SdpaOptions& o, const Console& console) {
  settle(o);
  SdpaBench bench(o, console);
  o.tutorial() ? bench.tutorial() : bench.explore();
  write(bench.table(), o.table);
}

}  // namespace

void add_bench_sdpa(Program& program, const Options& bench) {
  auto o = std::make_shared<SdpaOptions>();
  Options& options = program.command(
      "sdpa", "attention by itself: backends side by side, medians",
      [o](const Console& console) { bench_sdpa(*o, console); }, &bench);
  add_sdpa_options(options, o);
  add_device_options(options, o->model);
}

}  // namespace inkling::app
