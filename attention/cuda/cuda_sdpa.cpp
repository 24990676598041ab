#include "attention/cuda/cuda_sdpa.h"

#include <algorithm>
#include <array>
#include <string>

#include "attention/cuda/gpu_state.h"
#include "attention/cuda/work_list.h"
#include "engine/philox.h"

namespace inkling {
namespace {

using cuda::AttentionTile;
using cuda::check;
using cuda::CudaBackend;
using cuda::GpuWorkspace;
using cuda::rows_of;

enum class Work : std::uint8_t { flash, decode, backward };

/// Offsets and documents of a call, and the tiles that its kernels take in turn.
class SdpaLists : public cuda::Lists {
 public:
  struct Tiles {
    std::size_t at = 0;
    std::int32_t count = 0;
  };
  // Where each list begins.
  std::size_t cu_q = 0, cu_k = 0, document_q = 0, document_k = 0, drawn = 0;
  Tiles queries, keys;

  /// All but the tiles.
  void describe(const SdpaProblem& p) {
    clear();
    queries = keys = {};
    const Mask& mask = p.args.mask;
    const std::array<std::int64_t, 8> shape{p.batch,
                                            p.heads,
                                            p.kv_heads,
                                            p.dim,
                                            static_cast<std::int64_t>(p.args.q.dtype),
                                            static_cast<std::int64_t>(mask.kind),
                                            reach(mask.left),
                                            reach(mask.right)};
    add<std::int64_t>(shape);  // not read: what the tiles are made by
    cu_q = add<std::int32_t>(p.args.cu_q);
    cu_k = add<std::int32_t>(p.args.cu_k);
    if (mask.kind == MaskKind::document) {
      document_q = add<std::int32_t>(mask.document_q);
      document_k = add<std::int32_t>(mask.document_k);
    }
    end_description();
  }

  void add_tiles(const SdpaProblem& p, Work work) {
    if (work == Work::decode) return;
    std::vector<std::int64_t> begins;
    std::int64_t words = 0;
    for (std::int64_t b = 0; b < p.batch; ++b) {
      begins.push_back(words);
      words += p.heads * cuda::drawn_words(p.q_length(b), p.k_length(b));
    }
    drawn = add<std::int64_t>(begins);
    const auto dim = static_cast<std::int32_t>(p.dim);
    cuda::WorkListShape shape;
    shape.cu_q = p.args.cu_q;
    shape.cu_k = p.args.cu_k;
    shape.heads = static_cast<std::int32_t>(p.heads);
    shape.rows = work == Work::flash ? cuda::forward_tile_rows(p.args.q.dtype)
                                     : cuda::backward_tile_rows(p.args.q.dtype, dim);
    shape.mask = p.args.mask.kind;
    shape.left = reach(p.args.mask.left);
    shape.right = reach(p.args.mask.right);
    shape.head_bytes_per_key = 2 * p.dim * static_cast<std::int64_t>(dtype_size(p.args.q.dtype));
    queries = put(cuda::query_tiles(shape));
    if (work == Work::flash) return;
    shape.heads = static_cast<std::int32_t>(p.kv_heads);
    keys = put(cuda::key_tiles(shape));
  }

  static std::int32_t reach(std::int64_t rows) noexcept {
    return static_cast<std::int32_t>(std::min<std::int64_t>(rows, cuda::kFar));
  }

 private:
  Tiles put(const std::vector<AttentionTile>& tiles) {
    return {add<AttentionTile>(tiles), static_cast<std::int32_t>(tiles.size())};
  }
};

using Kept = cuda::KeptLists<SdpaLists>;

/// One set for each kind of work: a training step comes back to both of its own.
struct AllLists {
  std::array<Kept, 3> of;
};

const Kept& lists_of(ExecContext& context, CudaBackend& backend, const SdpaProblem& problem, Work work) {
  Kept& kept = context.attached<AllLists>().of[static_cast<std::size_t>(work)];
  kept.next.describe(problem);
  // A recorded chain would go on reading the lists of before.
  if (kept.bring(backend, [&](SdpaLists& lists) { lists.add_tiles(problem, work); })) {
    backend.outdate_recordings();
  }
  return kept;
}

cuda::DeviceMask mask_of(const SdpaProblem& p, const Kept& kept) {
  const Mask& mask = p.args.mask;
  cuda::DeviceMask to;
  to.kind = mask.kind;
  to.left = SdpaLists::reach(mask.left);
  to.right = SdpaLists::reach(mask.right);
  if (mask.kind == MaskKind::document) {
    to.document_q = kept.at<std::int32_t>(kept.lists.document_q);
    to.document_k = kept.at<std::int32_t>(kept.lists.document_k);
  }
  if (mask.kind != MaskKind::additive_bias && mask.kind != MaskKind::boolean) return to;
  const auto stride = [&](std::size_t axis) {
    return mask.bias.shape[axis] == 1 ? 0 : mask.bias.stride[axis];
  };
  to.batch = stride(0);
  to.head = stride(1);
  to.row = stride(2);
  to.key = stride(3);
  if (mask.kind == MaskKind::boolean) {
    to.visible = static_cast<const std::uint8_t*>(mask.bias.data);
  } else {
    to.bias = static_cast<const float*>(mask.bias.data);
  }
  return to;
}

cuda::ForwardArgs forward_of(const SdpaProblem& p, const Kept& kept) {
  const SdpaArgs& args = p.args;
  cuda::ForwardArgs f;
  f.dtype = args.q.dtype;
  f.out_dtype = args.out.dtype;
  f.q = rows_of(args.q);
  f.k = rows_of(args.k);
  f.v = rows_of(args.v);
  f.out = rows_of(args.out);
  if (args.lse.data != nullptr) {
    f.lse = static_cast<float*>(args.lse.data);
    f.lse_head = args.lse.stride[0];
    f.lse_row = args.lse.stride[1];
  }
  f.cu_q = kept.at<std::int32_t>(kept.lists.cu_q);
  f.cu_k = kept.at<std::int32_t>(kept.lists.cu_k);
  f.batch = static_cast<std::int32_t>(p.batch);
  f.heads = static_cast<std::int32_t>(p.heads);
  f.kv_heads = static_cast<std::int32_t>(p.kv_heads);
  f.dim = static_cast<std::int32_t>(p.dim);
  f.k_rows = static_cast<std::int32_t>(args.k.shape[0]);
  f.q_rows = static_cast<std::int32_t>(args.q.shape[0]);
  f.scale = p.scale;
  f.mask = mask_of(p, kept);
  const cpu::DropoutRule rule = p.dropout(0, 0);
  f.dropout = {rule.seed, rule.offset, rule.threshold, rule.scale};
  if (rule.threshold != 0 && args.dropout.drawn != nullptr) {
    f.dropout.drawn = static_cast<std::uint32_t*>(args.dropout.drawn);
    f.dropout.drawn_begin = kept.at<std::int64_t>(kept.lists.drawn);
  }
  f.tiles = kept.at<AttentionTile>(kept.lists.queries.at);
  f.tile_count = kept.lists.queries.count;
  return f;
}

/// Memory of the math backend for rows of at most `longest`.
cuda::MathWorkspace math_workspace(CudaBackend& gpu, GpuWorkspace& workspace, const SdpaProblem& p,
                                   std::int64_t longest) {
  const std::int64_t rows = p.args.q.shape[0] * p.heads;
  std::byte* const memory = workspace.scratch(gpu, cuda::MathWorkspace::bytes(longest, rows));
  return {reinterpret_cast<double*>(memory), longest, rows};
}

void differentiate_by_math(CudaBackend& gpu, GpuWorkspace& workspace, const SdpaProblem& p,
                           const cuda::ForwardArgs& forward, const SdpaBackwardArgs& args) {
  cuda::MathGradients g;
  g.dout = rows_of(args.dout);
  g.dq = rows_of(args.dq);
  g.dk = rows_of(args.dk);
  g.dv = rows_of(args.dv);
  g.dout_dtype = args.dout.dtype;
  g.dq_dtype = args.dq.dtype;
  g.dk_dtype = args.dk.dtype;
  g.dv_dtype = args.dv.dtype;
  g.dbias = static_cast<float*>(args.dbias.data);
  std::ranges::copy(args.dbias.shape, g.bias_shape);
  check(cuda::backward_math(forward, g,
                            math_workspace(gpu, workspace, p, std::max(p.longest_q(), p.longest_k())),
                            gpu.stream()),
        "gradient of attention by math");
}

}  // namespace

void sdpa_on_cuda(ExecContext& context, const SdpaProblem& problem, SdpaBackend backend) {
  if (problem.args.q.shape[0] == 0) return;
  auto& gpu = static_cast<CudaBackend&>(context.backend());
  GpuWorkspace& workspace = GpuWorkspace::of(context);
  const bool decode = backend == SdpaBackend::decode;
  const cuda::ForwardArgs args =
      forward_of(problem, lists_of(context, gpu, problem, decode ? Work::decode : Work::flash));
  if (decode) {
    workspace.run_decode(gpu, args,
                         {static_cast<std::int32_t>(problem.sizes().most_rows()),
                          static_cast<std::int32_t>(problem.longest_k())});
    return;
  }
  const cuda::DeviceTraits& traits = workspace.traits(gpu);
  const bool hopper = cuda::hopper_refusal(args, traits).empty();
  // By math too: the gradient may be flash's.
  if (hopper && cuda::reads_drawn(args)) check(cuda::draw_dropout(args, gpu.stream()), "dropout");
  if (backend == SdpaBackend::math) {
    check(cuda::math(args, math_workspace(gpu, workspace, problem, problem.longest_k()), gpu.stream()),
          "attention by math");
    return;
  }
  check(hopper ? cuda::forward_hopper(args, traits, gpu.stream())
               : cuda::forward_mma(args, traits, gpu.stream()),
        "flash attention");
}

bool reads_drawn_on_cuda(ExecContext& context, DType dtype, std::int64_t dim) {
  const auto& gpu = static_cast<CudaBackend&>(context.backend());
  return GpuWorkspace::of(context).traits(gpu).no_hopper.empty() && cuda::reads_drawn(dtype, dim);
}

void sdpa_backward_on_cuda(ExecContext& context, const SdpaProblem& problem, const SdpaBackwardArgs& args,
                           SdpaBackend backend) {
  auto& gpu = static_cast<CudaBackend&>(context.backend());
  GpuWorkspace& workspace = GpuWorkspace::of(context);
  const Kept& kept = lists_of(context, gpu, problem, Work::backward);
  cuda::BackwardArgs b;
  b.forward = forward_of(problem, kept);
  if (backend == SdpaBackend::math) {
    differentiate_by_math(gpu, workspace, problem, b.forward, args);
    return;
  }
  b.grad_dtype = args.dq.dtype;
  b.dout = rows_of(args.dout);
  b.dq = rows_of(args.dq);
  b.dk = rows_of(args.dk);
  b.dv = rows_of(args.dv);
  if (args.dbias.data != nullptr) {
    b.dbias = static_cast<float*>(args.dbias.data);
    check(cudaMemsetAsync(b.dbias, 0, args.dbias.nbytes(), gpu.stream()), "gradient of the bias");
  }
  b.query_tiles = b.forward.tiles;
  b.query_tile_count = b.forward.tile_count;
  b.key_tiles = kept.at<AttentionTile>(kept.lists.keys.at);
  b.key_tile_count = kept.lists.keys.count;
  const cuda::DeviceTraits& traits = workspace.traits(gpu);
  b.workspace = workspace.scratch(gpu, cuda::backward_workspace_bytes(b, traits));
  check(cuda::backward(b, traits, gpu.stream()), "gradient of attention");
}

}  // namespace inkling
