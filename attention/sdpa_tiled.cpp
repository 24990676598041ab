// The flash and decode backends: SdpaArgs cut into the tasks of cpu/kernels.h. Keys and values of a cache are
// read where they lie; packed ones are first copied into blocks of the cache's layout. For flash and
// backward, which come to them again and again, those are O(Tk · D) bytes of the context's workspace; decode
// takes them as they are.
#include <algorithm>
#include <vector>

#include "attention/in_order.h"
#include "attention/sdpa_problem.h"
#include "engine/exec_context.h"

namespace inkling {
namespace {

/// Kept with the context, so that a repeated call allocates nothing.
struct Workspace {
  Buffer blocks, partials, swapped, sums;
  std::vector<std::int64_t> first_block;  // (B+1) blocks of the sequences before

  static std::byte* sized(Buffer& buffer, std::size_t bytes) {
    if (buffer.size() < bytes) buffer = Buffer(bytes);
    return buffer.data();
  }
};

class Plan {
 public:
  Plan(ExecContext& context, const SdpaProblem& problem)
      : p_(problem), kernels_(cpu::attention_kernels(context.isa())), work_(context.attached<Workspace>()) {
    block_bytes_ = static_cast<std::size_t>((p_.dim + (p_.dim + 15) / 16 * 16) * cpu::kKeyBlock) *
                   dtype_size(p_.kv_dtype);
    work_.first_block.assign(1, 0);
    for (std::int64_t b = 0; b < p_.batch; ++b) {
      work_.first_block.push_back(work_.first_block.back() +
                                  (p_.k_length(b) + cpu::kKeyBlock - 1) / cpu::kKeyBlock);
    }
    context.pool().reserve_scratch(cpu::forward_scratch_bytes(p_.dim));
  }

  /// Room for the blocks of all packed keys.
  void reserve_blocks() const {
    if (p_.cached()) return;
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

  /// Copies the packed keys of one head into its blocks.
  void pack(std::int64_t b, std::int64_t head) const {
    cpu::AppendTask task;
    task.kv = blocks(b, head);
    task.k = {row_address(p_.args.k, p_.k_begin(b), head), p_.kv_dtype, p_.args.k.stride[0]};
    task.v = {row_address(p_.args.v, p_.k_begin(b), head), p_.kv_dtype, p_.args.v.stride[0]};
    task.count = p_.k_length(b);
    kernels_.append(task);
  }

  /// For the backward pass: the same with k and v exchanged, and room for the sums of dk and dv.
  void prepare_backward() const {
    reserve_blocks();
    const auto count = static_cast<std::size_t>(work_.first_block.back() * p_.kv_heads);
    Workspace::sized(work_.swapped, count * block_bytes_);
    Workspace::sized(work_.sums, count * 2 * sum_floats() * sizeof(float));
  }
  cpu::BackwardTask backward(std::int64_t b, std::int64_t head, const SdpaBackwardArgs& args) const {
    const std::int64_t keys = p_.k_length(b), q_head = head * p_.group;
    cpu::AppendTask swap;
    swap.kv = blocks(b, head, work_.swapped);
    swap.k = {row_address(p_.args.v, p_.k_begin(b), head), p_.kv_dtype, p_.args.v.stride[0]};
    swap.v = {row_address(p_.args.k, p_.k_begin(b), head), p_.kv_dtype, p_.args.k.stride[0]};
    swap.count = keys;
    pack(b, head);
    kernels_.append(swap);
    cpu::BackwardTask task;
    task.forward = forward(b, head, 0);
    task.forward.row_end = rows(b);
    task.swapped = swap.kv;
    task.dout = matrix(args.dout, p_.q_begin(b), q_head);
    task.dq = matrix(args.dq, p_.q_begin(b), q_head);
    task.dk = matrix(args.dk, p_.k_begin(b), head);
    task.dv = matrix(args.dv, p_.k_begin(b), head);
    const auto first = static_cast<std::size_t>(block_index(b, head));
    task.dk_sum = reinterpret_cast<float*>(work_.sums.data()) + first * 2 * sum_floats();
    task.dv_sum =
        task.dk_sum + static_cast<std::size_t>((keys + cpu::kKeyBlock - 1) / cpu::kKeyBlock) * sum_floats();
    if (args.dbias.data != nullptr) {
      const std::int64_t sequence = args.dbias.shape[0] == 1 ? 0 : b;
      task.dbias = static_cast<float*>(args.dbias.data) + sequence * args.dbias.stride[0] +
                   q_head * task.forward.mask.head;
    }
    return task;
  }

  /// Of one head, over its blocks.
  cpu::ForwardTask forward(std::int64_t b, std::int64_t head, std::int64_t row_block) const {
    cpu::ForwardTask task = queries(b, head, row_block);
    task.kv = blocks(b, head);
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

  std::int64_t block_index(std::int64_t b, std::int64_t head) const {
    return head * work_.first_block.back() + work_.first_block[static_cast<std::size_t>(b)];
  }
  std::size_t sum_floats() const noexcept {
    return static_cast<std::size_t>((p_.dim + 15) / 16 * 16 * cpu::kKeyBlock);
  }
  static cpu::HeadMatrix matrix(const TensorView& view, std::int64_t row, std::int64_t head) {
    return {row_address(view, row, head), view.dtype, view.stride[0], view.stride[1]};
  }
  /// Where the keys of one head lie: in the cache, or in the workspace.
  cpu::KvBlocks blocks(std::int64_t b, std::int64_t head) const { return blocks(b, head, work_.blocks); }
  cpu::KvBlocks blocks(std::int64_t b, std::int64_t head, const Buffer& packed) const {
    cpu::KvBlocks kv;
    kv.dtype = p_.kv_dtype;
    kv.head_dim = p_.dim;
    if (p_.cached()) {
      const KvSequence& sequence = *p_.args.cache[static_cast<std::size_t>(b)];
      kv.pages = sequence.pages().data();
      kv.offset = sequence.pool().shape().offset(p_.args.layer, head);
    } else {
      kv.base = packed.data() + static_cast<std::size_t>(block_index(b, head)) * block_bytes_;
      kv.stride = block_bytes_;
    }
    return kv;
  }

  const SdpaProblem& p_;
  const cpu::AttentionKernels& kernels_;
  Workspace& work_;
  std::size_t block_bytes_ = 0;
};

}  // namespace

void sdpa_flash(ExecContext& context, const SdpaProblem& problem) {
  const Plan plan(context, problem);
  const auto& kernels = cpu::attention_kernels(context.isa());
  ThreadPool& pool = context.pool();
  if (!problem.cached()) {
    plan.reserve_blocks();
    pool.run(problem.batch * problem.kv_heads,
             [&](std::int64_t i, int) { plan.pack(i / problem.kv_heads, i % problem.kv_heads); });
  }
  // Sequence by sequence and head by head, so that keys and values stay in cache; in each the last rows
  // first, which see the most keys of a causal mask.
  std::int64_t tasks = 0;
  for (std::int64_t b = 0; b < problem.batch; ++b) tasks += plan.row_blocks(b) * problem.kv_heads;
  run_in_order(pool, tasks, [&](std::int64_t i, int worker) {
    std::int64_t b = 0;
    for (; i >= plan.row_blocks(b) * problem.kv_heads; ++b) i -= plan.row_blocks(b) * problem.kv_heads;
    const std::int64_t blocks = plan.row_blocks(b), head = i / blocks;
    kernels.forward(plan.forward(b, head, blocks - 1 - i % blocks), pool.scratch(worker));
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
  plan.prepare_backward();
  const auto& kernels = cpu::attention_kernels(context.isa());
  ThreadPool& pool = context.pool();
  pool.reserve_scratch(cpu::backward_scratch_bytes(problem.dim));
  run_heads(context, problem, args, [&](std::int64_t b, std::int64_t head, int worker) {
    kernels.backward(plan.backward(b, head, args), pool.scratch(worker));
  });
}

}  // namespace inkling
