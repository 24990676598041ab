#include "attention/cached_attention.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>

#include "attention/checks.h"
#include "attention/cpu/kernels.h"
#include "attention/cuda/cuda_attention.h"
#include "attention/in_order.h"
#include "attention/sdpa_problem.h"
#include "engine/exec_context.h"
#include "engine/profiler.h"

namespace inkling {
namespace {

using cpu::kQueryRows;

// A sequence that brings no more tokens than this is appended and attended by the same task.
constexpr std::int64_t kFewTokens = 64;

constexpr ArgumentChecks check{"cached_attention"};

void check_rows(const TensorView& view, DType dtype, const char* name, std::int64_t heads, std::int64_t dim) {
  check(view.dtype == dtype, name, [&] {
    return "expected " + std::string(dtype_name(dtype)) + ", got " + std::string(dtype_name(view.dtype));
  });
  check.heads(view, name, heads, dim);
  check.memory(view, name);
}

/// Sequences of one pool, in the memory of the context's device.
void check_sequences(const ArgumentChecks& checks, const ExecContext& context,
                     std::span<KvSequence* const> sequences) {
  checks(!sequences.empty(), "sequences", "expected at least one, got none");
  const KvPool& pool = sequences[0]->pool();
  checks(pool.device() == context.device(), "sequences", [&] {
    return "expected a cache in the memory of " + std::string(device_name(context.device())) + ", got " +
           std::string(device_name(pool.device()));
  });
  for (std::size_t b = 0; b < sequences.size(); ++b) {
    checks(&sequences[b]->pool() == &pool, "sequences",
           [&] { return "expected those of one pool, got sequence " + std::to_string(b) + " of another"; });
  }
}

std::string cache_string(const KvShape& shape) {
  return std::to_string(shape.layers) + " layers of " + std::to_string(shape.heads) + " heads of " +
         std::to_string(shape.head_dim) + " in " + std::string(dtype_name(shape.dtype));
}

void check_step(const ExecContext& context, const CachedStepArgs& args) {
  constexpr ArgumentChecks checks{"begin_cached_step"};
  check_sequences(checks, context, args.sequences);
  const KvShape& shape = args.sequences[0]->pool().shape();
  checks(shape.layers >= args.cache.layers && shape.heads == args.cache.heads &&
             shape.head_dim == args.cache.head_dim &&
             (shape.dtype == args.cache.dtype || context.device() == Device::cpu),
         "sequences", [&] {
           return "expected a cache of " + cache_string(args.cache) + ", got one of " + cache_string(shape);
         });
  checks(args.heads > 0 && args.heads % shape.heads == 0, "heads", [&] {
    return "expected a multiple of " + std::to_string(shape.heads) + ", got " + std::to_string(args.heads);
  });
}

// The CPU computes in f32 whatever the cache holds; a GPU in the dtype of the cache.
void check_arguments(const ExecContext& context, const CachedAttentionArgs& args) {
  check_sequences(check, context, args.sequences);
  const std::size_t batch = args.sequences.size();
  const KvShape& shape = args.sequences[0]->pool().shape();
  check(args.layer >= 0 && args.layer < shape.layers, "layer", [&] {
    return "expected 0 to " + std::to_string(shape.layers - 1) + ", got " + std::to_string(args.layer);
  });
  check(args.q.rank == 3 && args.q.shape[1] > 0 && args.q.shape[1] % shape.heads == 0, "q", [&] {
    return "expected (rows, H, D) with H a multiple of " + std::to_string(shape.heads) + ", got " +
           args.q.shape_string();
  });
  const DType dtype = context.device() == Device::cpu ? DType::f32 : shape.dtype;
  check_rows(args.q, dtype, "q", args.q.shape[1], shape.head_dim);
  check_rows(args.k, dtype, "k", shape.heads, shape.head_dim);
  check_rows(args.v, dtype, "v", shape.heads, shape.head_dim);
  check.offsets(args.cu_new, "cu_new", std::ssize(args.sequences));
  check.offsets(args.cu_q, "cu_q", std::ssize(args.sequences));
  const std::int64_t rows = args.cu_new.back(), queries = args.cu_q.back();
  check(args.k.shape[0] == rows && args.v.shape[0] == rows, "k, v", [&] {
    return "expected " + std::to_string(rows) + " rows, got " + std::to_string(args.k.shape[0]) + " and " +
           std::to_string(args.v.shape[0]);
  });
  check(args.q.shape[0] == rows || args.q.shape[0] == queries, "q", [&] {
    return "expected " + std::to_string(rows) + " or " + std::to_string(queries) + " rows, got " +
           args.q.shape_string();
  });
  check(args.out.rank == 2 && args.out.dtype == dtype && args.out.shape[0] == queries &&
            args.out.shape[1] == args.q.shape[1] * shape.head_dim && args.out.stride[1] == 1,
        "out", [&] {
          return "expected (ΣTq, H·D) in " + std::string(dtype_name(dtype)) + ", got " +
                 std::string(dtype_name(args.out.dtype)) + ' ' + args.out.shape_string();
        });
  check.memory(args.out, "out");
  check(std::isfinite(args.scale), "scale",
        [&] { return "expected a finite one, got " + std::to_string(args.scale); });
  for (std::size_t b = 0; b < batch; ++b) {
    const std::int64_t fresh = args.cu_new[b + 1] - args.cu_new[b], wanted = args.cu_q[b + 1] - args.cu_q[b];
    check(wanted <= fresh, "cu_q", [&] {
      return "expected at most the " + std::to_string(fresh) + " new tokens of sequence " +
             std::to_string(b) + ", got " + std::to_string(wanted) + " queries";
    });
    check(args.sequences[b]->room() >= fresh, "sequences", [&] {
      return "expected room for " + std::to_string(fresh) + " tokens in sequence " + std::to_string(b) +
             ", got " + std::to_string(args.sequences[b]->room());
    });
  }
}

/// A step cut into tasks: sequence-major, then by head, then query blocks from the last (the longest) to the
/// first.
class Step {
 public:
  Step(const CachedAttentionArgs& args, const cpu::AttentionKernels& kernels)
      : args_(args),
        kernels_(kernels),
        shape_(args.sequences[0]->pool().shape()),
        group_(args.q.shape[1] / shape_.heads) {}

  std::int64_t heads() const noexcept { return shape_.heads; }
  std::int64_t fresh(std::size_t b) const noexcept { return args_.cu_new[b + 1] - args_.cu_new[b]; }
  std::int64_t rows(std::size_t b) const noexcept { return (args_.cu_q[b + 1] - args_.cu_q[b]) * group_; }
  std::int64_t blocks(std::size_t b) const noexcept { return (rows(b) + kQueryRows - 1) / kQueryRows; }
  /// The longest sequence. A batch of one, for math takes one sequence at a time.
  SdpaSizes sizes() const noexcept {
    SdpaSizes sizes{1, shape_.heads * group_, shape_.heads, shape_.head_dim, 0, 0, DType::f32};
    for (std::size_t b = 0; b < args_.sequences.size(); ++b) {
      sizes.longest_q = std::max<std::int64_t>(sizes.longest_q, args_.cu_q[b + 1] - args_.cu_q[b]);
      sizes.longest_k = std::max(sizes.longest_k, args_.sequences[b]->length() + fresh(b));
    }
    return sizes;
  }
  /// Row of q: it has one per new token, or the queries alone.
  std::int64_t first_query(std::size_t b) const noexcept {
    const bool dense = args_.q.shape[0] == args_.cu_new.back();
    return dense ? args_.cu_new[b + 1] - (args_.cu_q[b + 1] - args_.cu_q[b]) : args_.cu_q[b];
  }
  bool single_job() const noexcept {
    for (std::size_t b = 0; b < args_.sequences.size(); ++b) {
      if (fresh(b) > kFewTokens || blocks(b) > 1) return false;
    }
    return true;
  }

  // New keys and values are written, all are read once; a query sees the tokens up to itself.
  ProfileWork work() const noexcept {
    double scores = 0, elements = 0;
    for (std::size_t b = 0; b < args_.sequences.size(); ++b) {
      const std::int64_t queries = args_.cu_q[b + 1] - args_.cu_q[b];
      const std::int64_t keys = args_.sequences[b]->length() + fresh(b);
      scores += static_cast<double>(queries * keys - queries * (queries - 1) / 2);
      elements += 2 * static_cast<double>(keys + fresh(b));
    }
    const auto width = static_cast<double>(shape_.head_dim), kv_heads = static_cast<double>(shape_.heads);
    const double q_heads = kv_heads * static_cast<double>(group_);
    return {elements * kv_heads * width * static_cast<double>(dtype_size(shape_.dtype)) +
                8 * static_cast<double>(args_.cu_q.back()) * q_heads * width,
            4 * scores * q_heads * width,
            {args_.cu_q.back(), shape_.heads * group_, shape_.head_dim}};
  }

  void append(std::size_t b, std::int64_t head) const {
    cpu::AppendTask task;
    task.kv = blocks_of(b, head);
    task.k = rows_of(args_.k, args_.cu_new[b], head);
    task.v = rows_of(args_.v, args_.cu_new[b], head);
    task.position = args_.sequences[b]->length();
    task.count = fresh(b);
    kernels_.append(task);
  }

  void attend(std::size_t b, std::int64_t head, std::int64_t heads, std::int64_t block,
              std::byte* scratch) const {
    const std::int64_t queries = args_.cu_q[b + 1] - args_.cu_q[b];
    const std::int64_t first = first_query(b);
    cpu::ForwardTask task;
    task.kv = blocks_of(b, head);
    task.heads = heads;
    task.head_stride = shape_.head_bytes();
    task.q = rows_of(args_.q, first, head * group_).data;
    task.q_row = args_.q.stride[0];
    task.q_head = args_.q.stride[1];
    task.group = group_;
    task.row_begin = block * kQueryRows;
    task.row_end = std::min(task.row_begin + kQueryRows, rows(b));
    task.scale = args_.scale;
    task.keys = args_.sequences[b]->length() + fresh(b);
    task.see_from = -task.keys;
    task.see_until = task.keys - queries + 1;
    task.out = static_cast<float*>(args_.out.data) + args_.cu_q[b] * args_.out.stride[0] +
               head * group_ * shape_.head_dim;
    task.out_row = args_.out.stride[0];
    task.out_head = shape_.head_dim;
    kernels_.forward(task, scratch);
  }

 private:
  cpu::KvBlocks blocks_of(std::size_t b, std::int64_t head) const {
    cpu::KvBlocks kv;
    kv.pages = args_.sequences[b]->pages().data();
    kv.offset = shape_.offset(args_.layer, head);
    kv.dtype = shape_.dtype;
    kv.head_dim = shape_.head_dim;
    return kv;
  }
  static cpu::HeadRows rows_of(const TensorView& view, std::int64_t row, std::int64_t head) {
    return {static_cast<const float*>(view.data) + row * view.stride[0] + head * view.stride[1], DType::f32,
            view.stride[0]};
  }

  const CachedAttentionArgs& args_;
  const cpu::AttentionKernels& kernels_;
  const KvShape& shape_;
  std::int64_t group_;
};

void attend_by_math(ExecContext& context, const CachedAttentionArgs& args, const Step& step) {
  const std::int64_t dim = args.sequences[0]->pool().shape().head_dim, heads = args.q.shape[1];
  const SdpaScope scope(context, {SdpaBackend::math});
  context.pool().run(static_cast<std::int64_t>(args.sequences.size()) * step.heads(),
                     [&](std::int64_t i, int) {
                       step.append(static_cast<std::size_t>(i / step.heads()), i % step.heads());
                     });
  for (std::size_t b = 0; b < args.sequences.size(); ++b) {
    const std::int32_t queries = args.cu_q[b + 1] - args.cu_q[b];
    if (queries == 0) continue;
    const KvSequence* sequence = args.sequences[b];
    const std::int32_t cu_q[] = {0, queries};
    const std::int32_t cu_k[] = {0, static_cast<std::int32_t>(sequence->length() + step.fresh(b))};
    const auto rows = [&](const TensorView& all, std::int64_t first, std::int64_t head_stride) {
      TensorView view(static_cast<float*>(all.data) + first * all.stride[0], DType::f32,
                      {queries, heads, dim});
      view.stride = {all.stride[0], head_stride, 1, 0};
      return view;
    };
    SdpaArgs one;
    one.q = rows(args.q, step.first_query(b), args.q.stride[1]);
    one.out = rows(args.out, args.cu_q[b], dim);
    one.cache = std::span(&sequence, 1);
    one.layer = args.layer;
    one.cu_q = cu_q;
    one.cu_k = cu_k;
    one.scale = args.scale;
    one.mask.kind = MaskKind::causal_lower_right;
    sdpa(context, one);
  }
}

}  // namespace

CachedStep begin_cached_step(ExecContext& context, const CachedStepArgs& args) {
  check_step(context, args);
  if (context.device() == Device::cuda) return begin_cached_step_on_cuda(context, args);
  return {};
}

void cached_attention(ExecContext& context, const CachedAttentionArgs& args) {
  check_arguments(context, args);
  if (context.device() == Device::cuda) return cached_attention_on_cuda(context, args);
  ThreadPool& pool = context.pool();
  const Step step(args, cpu::attention_kernels(context.isa()));
  pool.reserve_scratch(cpu::forward_scratch_bytes(args.sequences[0]->pool().shape().head_dim));
  const auto batch = static_cast<std::int64_t>(args.sequences.size());
  const std::int64_t heads = step.heads();

  // flash and decode run the same loops here and give the same bits; which of them it is, matters only to a
  // policy that leaves one out.
  const SdpaBackend backend = take_backend(context, step.sizes(), SdpaPass::forward);
  if (backend == SdpaBackend::math) return attend_by_math(context, args, step);
  const ProfileRange range(context, backend == SdpaBackend::decode ? "attention decode" : "attention flash",
                           [&] { return step.work(); });
  if (step.single_job()) {
    const std::int64_t together = heads_per_task(batch * heads, heads, step.sizes().most_rows(), pool.size());
    const std::int64_t groups = (heads + together - 1) / together;
    run_in_order(pool, batch * groups, [&](std::int64_t i, int worker) {
      const auto b = static_cast<std::size_t>(i / groups);
      const std::int64_t first = i % groups * together, count = std::min(together, heads - first);
      for (std::int64_t head = first; head < first + count; ++head) step.append(b, head);
      step.attend(b, first, count, 0, pool.scratch(worker));
    });
    return;
  }
  pool.run(batch * heads,
           [&](std::int64_t i, int) { step.append(static_cast<std::size_t>(i / heads), i % heads); });
  std::int64_t tasks = 0;
  for (std::size_t b = 0; b < args.sequences.size(); ++b) tasks += step.blocks(b) * heads;
  run_in_order(pool, tasks, [&](std::int64_t i, int worker) {
    std::size_t b = 0;
    for (; i >= step.blocks(b) * heads; ++b) i -= step.blocks(b) * heads;
    const std::int64_t blocks = step.blocks(b);
    step.attend(b, i / blocks, 1, blocks - 1 - i % blocks, pool.scratch(worker));
  });
}

}  // namespace inkling
