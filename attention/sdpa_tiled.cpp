// The flash and decode backends: SdpaArgs cut into the tasks of cpu/kernels.h. Keys and values of a cache are
// read where they lie; packed ones are first copied into blocks of the cache's layout, for flash and backward
// come to them again and again. Those of one head are O(Tk · D) bytes in the scratch of the thread that has
// the head; only where heads are too few for the threads, or one is too long, they are the context's, for all
// heads. Decode takes packed rows as they are.
#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

#include "attention/in_order.h"
#include "attention/sdpa_problem.h"
#include "engine/exec_context.h"

namespace inkling {
namespace {

/// Kept with the context, so that a repeated call allocates nothing.
struct Workspace {
  Buffer blocks, partials;
  std::vector<std::int64_t> first_block;  // (B+1) blocks of the sequences before
  std::vector<std::int64_t> order;        // (B) sequences, those with the most scores first

  static std::byte* sized(Buffer& buffer, std::size_t bytes) {
    if (buffer.size() < bytes) buffer = Buffer(bytes);
    return buffer.data();
  }
};

class Plan {
 public:
  Plan(ExecContext& context, const SdpaProblem& problem)
      : p_(problem), kernels_(cpu::attention_kernels(context.isa())), work_(context.attached<Workspace>()) {
    block_bytes_ =
        static_cast<std::size_t>((p_.dim + (p_.dim + 15) / 16 * 16) * cpu::kKeyBlock) * sizeof(float);
    work_.first_block.assign(1, 0);
    for (std::int64_t b = 0; b < p_.batch; ++b) {
      work_.first_block.push_back(work_.first_block.back() +
                                  (p_.k_length(b) + cpu::kKeyBlock - 1) / cpu::kKeyBlock);
    }
    work_.order.resize(static_cast<std::size_t>(p_.batch));
    std::iota(work_.order.begin(), work_.order.end(), 0);
    std::ranges::sort(work_.order, [&](std::int64_t a, std::int64_t b) {
      return scores(a) > scores(b) || (scores(a) == scores(b) && a < b);
    });
    context.pool().reserve_scratch(cpu::forward_scratch_bytes(p_.dim));
  }

  /// Sequences in the order in which they are handed out: a long one that came last would keep one thread
  /// busy alone.
  std::span<const std::int64_t> order() const noexcept { return work_.order; }
  /// Of one head, hidden ones too.
  std::int64_t scores(std::int64_t b) const noexcept { return p_.q_length(b) * p_.k_length(b); }
  /// So many heads, and none so long, that whole ones keep `threads` busy to the end.
  bool whole_heads(std::int64_t threads) const noexcept {
    constexpr std::int64_t kHeadsPerThread = 8;
    std::int64_t all = 0;
    for (std::int64_t b = 0; b < p_.batch; ++b) all += scores(b) * p_.kv_heads;
    return threads == 1 || p_.batch == 0 || kHeadsPerThread * threads * scores(work_.order[0]) <= all;
  }

  /// Room for the blocks of all packed keys.
  void reserve_blocks() const {
    Workspace::sized(work_.blocks,
                     static_cast<std::size_t>(work_.first_block.back() * p_.kv_heads) * block_bytes_);
  }
  std::int64_t rows(std::int64_t b) const noexcept { return p_.q_length(b) * p_.group; }
  std::int64_t row_blocks(std::int64_t b) const noexcept {
    return (rows(b) + cpu::kQueryRows - 1) / cpu::kQueryRows;
  }
  std::int64_t splits(std::int64_t b) const noexcept {
    return (p_.k_length(b) + cpu::kKeySplit - 1) / cpu::kKeySplit;
  }

  /// Blocks of the longest head.
  std::size_t head_bytes() const noexcept { return block_count(p_.longest_k()) * block_bytes_; }
  /// Blocks of one head in memory of the caller's: f32, widened once for all that read them.
  cpu::KvBlocks blocks_in(std::byte* memory) const noexcept {
    cpu::KvBlocks kv;
    kv.head_dim = p_.dim;
    kv.base = memory;
    kv.stride = block_bytes_;
    return kv;
  }
  /// Where the keys of one head lie: in the cache, or in the workspace.
  cpu::KvBlocks blocks(std::int64_t b, std::int64_t head) const {
    if (!p_.cached()) {
      const auto before = work_.first_block[static_cast<std::size_t>(b)];
      return blocks_in(work_.blocks.data() +
                       static_cast<std::size_t>(head * work_.first_block.back() + before) * block_bytes_);
    }
    const KvSequence& sequence = *p_.args.cache[static_cast<std::size_t>(b)];
    cpu::KvBlocks kv;
    kv.dtype = p_.kv_dtype;
    kv.head_dim = p_.dim;
    kv.pages = sequence.pages().data();
    kv.offset = sequence.pool().shape().offset(p_.args.layer, head);
    return kv;
  }

  /// Copies packed rows of one head into blocks.
  void pack(const TensorView& k, const TensorView& v, std::int64_t b, std::int64_t head,
            const cpu::KvBlocks& to) const {
    cpu::AppendTask task;
    task.kv = to;
    task.k = {row_address(k, p_.k_begin(b), head), p_.kv_dtype, k.stride[0]};
    task.v = {row_address(v, p_.k_begin(b), head), p_.kv_dtype, v.stride[0]};
    task.count = p_.k_length(b);
    kernels_.append(task);
  }
  void pack(std::int64_t b, std::int64_t head, const cpu::KvBlocks& to) const {
    pack(p_.args.k, p_.args.v, b, head, to);
  }

  /// A head's blocks, the same with k and v exchanged, and the sums of dk and dv.
  std::size_t backward_bytes() const noexcept {
    return 2 * (head_bytes() + block_count(p_.longest_k()) * sum_floats() * sizeof(float));
  }
  cpu::BackwardTask backward(std::int64_t b, std::int64_t head, const SdpaBackwardArgs& args,
                             std::byte* memory) const {
    const std::int64_t q_head = head * p_.group;
    const std::size_t count = block_count(p_.k_length(b));
    cpu::BackwardTask task;
    task.swapped = blocks_in(memory + count * block_bytes_);
    task.forward = forward(b, head, 0, blocks_in(memory));
    task.forward.row_end = rows(b);
    pack(b, head, task.forward.kv);
    pack(p_.args.v, p_.args.k, b, head, task.swapped);
    task.dout = matrix(args.dout, p_.q_begin(b), q_head);
    task.dq = matrix(args.dq, p_.q_begin(b), q_head);
    task.dk = matrix(args.dk, p_.k_begin(b), head);
    task.dv = matrix(args.dv, p_.k_begin(b), head);
    task.dk_sum = reinterpret_cast<float*>(memory + 2 * count * block_bytes_);
    task.dv_sum = task.dk_sum + count * sum_floats();
    if (args.dbias.data != nullptr) {
      const std::int64_t sequence = args.dbias.shape[0] == 1 ? 0 : b;
      task.dbias = static_cast<float*>(args.dbias.data) + sequence * args.dbias.stride[0] +
                   q_head * task.forward.mask.head;
    }
    return task;
  }

  /// Of one head.
  cpu::ForwardTask forward(std::int64_t b, std::int64_t head, std::int64_t row_block,
                           const cpu::KvBlocks& kv) const {
    cpu::ForwardTask task = queries(b, head, row_block);
    task.kv = kv;
    return task;
  }
  /// Of `count` heads from `head` on, over the cache or the packed rows as they are.
  cpu::ForwardTask decode(std::int64_t b, std::int64_t head, std::int64_t count) const {
    cpu::ForwardTask task = queries(b, head, 0);
    task.heads = count;
    if (p_.cached()) {
      task.kv = blocks(b, head);
      task.head_stride = p_.args.cache[0]->pool().shape().head_bytes();
    } else {
      task.packed_k = matrix(p_.args.k, p_.k_begin(b), head);
      task.packed_v = matrix(p_.args.v, p_.k_begin(b), head);
    }
    return task;
  }

 private:
  /// A task that lacks its keys and values.
  cpu::ForwardTask queries(std::int64_t b, std::int64_t head, std::int64_t row_block) const {
    const std::int64_t first = p_.q_begin(b), q_head = head * p_.group;
    cpu::ForwardTask task;
    task.kv.dtype = p_.kv_dtype;
    task.kv.head_dim = p_.dim;
    task.q = row_address(p_.args.q, first, q_head);
    task.q_dtype = p_.args.q.dtype;
    task.q_row = p_.args.q.stride[0];
    task.q_head = p_.args.q.stride[1];
    task.group = p_.group;
    task.row_begin = row_block * cpu::kQueryRows;
    task.row_end = std::min(task.row_begin + cpu::kQueryRows, rows(b));
    task.scale = p_.scale;
    task.keys = p_.k_length(b);
    const auto [from, until] = p_.range(b);
    task.see_from = from;
    task.see_until = until;
    task.out = row_address(p_.args.out, first, q_head);
    task.out_dtype = p_.args.out.dtype;
    task.out_row = p_.args.out.stride[0];
    task.out_head = p_.args.out.stride[1];
    if (p_.args.lse.data != nullptr) {
      task.lse_head = p_.args.lse.stride[0];
      task.lse_row = p_.args.lse.stride[1];
      task.lse = static_cast<float*>(p_.args.lse.data) + q_head * task.lse_head + first * task.lse_row;
    }
    task.mask = p_.score_mask(b, q_head);
    task.dropout = p_.dropout(b, q_head);
    return task;
  }

  static std::size_t block_count(std::int64_t keys) noexcept {
    return static_cast<std::size_t>((keys + cpu::kKeyBlock - 1) / cpu::kKeyBlock);
  }
  std::size_t sum_floats() const noexcept {
    return static_cast<std::size_t>((p_.dim + 15) / 16 * 16 * cpu::kKeyBlock);
  }
  static cpu::HeadMatrix matrix(const TensorView& view, std::int64_t row, std::int64_t head) {
    return {row_address(view, row, head), view.dtype, view.stride[0], view.stride[1]};
  }

  const SdpaProblem& p_;
  const cpu::AttentionKernels& kernels_;
  Workspace& work_;
  std::size_t block_bytes_ = 0;
};

constexpr std::size_t aligned(std::size_t bytes) noexcept {
  return (bytes + 63) / 64 * 64;
}

// Head by head: a thread packs the keys of one and attends all its queries, in memory of its own.
void flash_by_head(ThreadPool& pool, const Plan& plan, const cpu::AttentionKernels& kernels,
                   const SdpaProblem& problem) {
  const std::size_t own = aligned(cpu::forward_scratch_bytes(problem.dim));
  pool.reserve_scratch(own + plan.head_bytes());
  run_in_order(pool, problem.batch * problem.kv_heads, [&](std::int64_t i, int worker) {
    const std::int64_t b = plan.order()[static_cast<std::size_t>(i / problem.kv_heads)];
    const std::int64_t head = i % problem.kv_heads;
    const cpu::KvBlocks kv = plan.blocks_in(pool.scratch(worker) + own);
    plan.pack(b, head, kv);
    for (std::int64_t block = 0; block < plan.row_blocks(b); ++block)
      kernels.forward(plan.forward(b, head, block, kv), pool.scratch(worker));
  });
}

}  // namespace

void sdpa_flash(ExecContext& context, const SdpaProblem& problem) {
  const Plan plan(context, problem);
  const auto& kernels = cpu::attention_kernels(context.isa());
  ThreadPool& pool = context.pool();
  if (!problem.cached()) {
    if (plan.whole_heads(pool.size())) return flash_by_head(pool, plan, kernels, problem);
    plan.reserve_blocks();
    pool.run(problem.batch * problem.kv_heads, [&](std::int64_t i, int) {
      const std::int64_t b = i / problem.kv_heads, head = i % problem.kv_heads;
      plan.pack(b, head, plan.blocks(b, head));
    });
  }
  // Sequence by sequence, the longest first, and head by head, so that keys and values stay in cache; in each
  // the last rows first, which see the most keys of a causal mask.
  std::int64_t tasks = 0;
  for (std::int64_t b = 0; b < problem.batch; ++b) tasks += plan.row_blocks(b) * problem.kv_heads;
  run_in_order(pool, tasks, [&](std::int64_t i, int worker) {
    const std::int64_t* next = plan.order().data();
    for (; i >= plan.row_blocks(*next) * problem.kv_heads; ++next)
      i -= plan.row_blocks(*next) * problem.kv_heads;
    const std::int64_t b = *next;
    const std::int64_t blocks = plan.row_blocks(b), head = i / blocks;
    kernels.forward(plan.forward(b, head, blocks - 1 - i % blocks, plan.blocks(b, head)),
                    pool.scratch(worker));
  });
}

void sdpa_decode(ExecContext& context, const SdpaProblem& problem) {
  const Plan plan(context, problem);
  const auto& kernels = cpu::attention_kernels(context.isa());
  ThreadPool& pool = context.pool();
  std::int64_t splits = 0, rows = 0;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    splits = std::max(splits, plan.splits(b));
    rows = std::max(rows, plan.rows(b));
  }
  const std::int64_t heads = problem.kv_heads;
  const std::int64_t together = heads_per_task(problem.batch * heads * splits, heads, rows, pool.size());
  const std::int64_t groups = (heads + together - 1) / together;
  // Every group of heads has room for the longest sequence; one with no keys at all has no splits and gives
  // zeros.
  const std::int64_t padded = (problem.dim + 15) / 16 * 16, room = splits * together * rows * (padded + 16);
  auto* partials = reinterpret_cast<float*>(
      Workspace::sized(context.attached<Workspace>().partials,
                       static_cast<std::size_t>(problem.batch * groups * room) * sizeof(float)));
  const auto task_of = [&](std::int64_t i) {
    const std::int64_t head = i % groups * together;
    cpu::ForwardTask task = plan.decode(i / groups, head, std::min(together, heads - head));
    task.partials = partials + i * room;
    return task;
  };
  pool.run(problem.batch * groups * splits, [&](std::int64_t i, int worker) {
    const std::int64_t b = i / splits / groups, split = i % splits;
    if (split >= plan.splits(b) || plan.rows(b) == 0) return;
    cpu::ForwardTask task = task_of(i / splits);
    task.split = split;
    kernels.forward_split(task, pool.scratch(worker));
  });
  pool.run(problem.batch * groups, [&](std::int64_t i, int worker) {
    const std::int64_t b = i / groups;
    if (plan.rows(b) == 0) return;
    cpu::ForwardTask task = task_of(i);
    task.split = plan.splits(b);
    kernels.forward_combine(task, pool.scratch(worker));
  });
}

void sdpa_backward_flash(ExecContext& context, const SdpaProblem& problem, const SdpaBackwardArgs& args) {
  const Plan plan(context, problem);
  const auto& kernels = cpu::attention_kernels(context.isa());
  ThreadPool& pool = context.pool();
  const std::size_t own = aligned(cpu::backward_scratch_bytes(problem.dim));
  pool.reserve_scratch(own + plan.backward_bytes());
  run_heads(context, problem, args, plan.order(), [&](std::int64_t b, std::int64_t head, int worker) {
    std::byte* scratch = pool.scratch(worker);
    kernels.backward(plan.backward(b, head, args, scratch + own), scratch);
  });
}

}  // namespace inkling
