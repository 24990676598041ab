#include "attention/cuda/cuda_attention.h"

#include <algorithm>
#include <bit>
#include <span>
#include <utility>
#include <vector>

#include "attention/cuda/gpu_state.h"
#include "attention/cuda/work_list.h"
#include "attention/sdpa_problem.h"
#include "engine/profiler.h"

namespace inkling {
namespace {

using cuda::check;
using cuda::CudaBackend;
using cuda::GpuWorkspace;
using cuda::rows_of;

/// What the kernels want to know of a step.
class StepLists : public cuda::Lists {
 public:
  std::size_t pages = 0;  // room for those of the longest sequence: P
  bool all_few = false;   // every sequence is decode's
  bool math = false;      // what is not decode's is math's
  std::size_t long_rows = 0, few_rows = 0, most_keys = 0;
  std::size_t table = 0, length = 0, k_length = 0, cu_new = 0, cu_q = 0;  // where each list begins
  struct Tiles {
    std::size_t at = 0, count = 0;
  };
  // The work of flash, once add_tiles() was called: sequences that continue, and those that begin, of which
  // every key is new. Apart, so that which kernel a sequence gets depends on it alone.
  Tiles continued, begun;

  /// Everything but the tiles: pages (B × P pointers), lengths before and after, offsets. `decode`: whether
  /// sequences of few rows are that kernel's; `by_math`: whether the others are not flash's.
  void describe(const CachedStepArgs& args, bool decode, bool by_math) {
    clear();
    math = by_math;
    pages = long_rows = few_rows = most_keys = 0;
    continued = begun = {};
    const std::size_t batch = args.sequences.size();
    const std::int64_t group = args.heads / args.sequences[0]->pool().shape().heads;
    all_few = true;
    length_.resize(batch), k_length_.resize(batch);
    for (auto* cu : {&cu_continued_, &cu_begun_, &cu_keys_}) cu->assign(batch + 1, 0);
    for (std::size_t b = 0; b < batch; ++b) {
      const std::int32_t queries = args.cu_q[b + 1] - args.cu_q[b];
      length_[b] = static_cast<std::int32_t>(args.sequences[b]->length());
      k_length_[b] = length_[b] + args.cu_new[b + 1] - args.cu_new[b];
      const auto rows = static_cast<std::size_t>(queries * group);
      const bool few = decode && rows <= static_cast<std::size_t>(cuda::kDecodeMostRows);
      all_few = all_few && few && rows > 0;
      const bool begins = decode && length_[b] == 0;
      std::size_t& most = few ? few_rows : long_rows;
      most = std::max(most, rows);
      cu_continued_[b + 1] = cu_continued_[b] + (few || begins ? 0 : queries);
      cu_begun_[b + 1] = cu_begun_[b] + (!few && begins ? queries : 0);
      cu_keys_[b + 1] = cu_keys_[b] + k_length_[b];
      most_keys = std::max(most_keys, static_cast<std::size_t>(k_length_[b]));
      pages = std::max(pages, args.sequences[b]->pages().size());
    }
    // A step more or less makes no other shape.
    pages = std::bit_ceil(pages);
    most_keys = std::bit_ceil(std::max(most_keys, std::size_t{kKvPageTokens}));
    table_.assign(batch * pages, nullptr);
    for (std::size_t b = 0; b < batch; ++b) {
      std::ranges::copy(args.sequences[b]->pages(), table_.begin() + static_cast<std::ptrdiff_t>(b * pages));
    }
    table = add<std::byte*>(table_);
    length = add<std::int32_t>(length_);
    k_length = add<std::int32_t>(k_length_);
    cu_new = add<std::int32_t>(args.cu_new);
    cu_q = add<std::int32_t>(args.cu_q);
    // Not read: which kernel takes what is part of what a step is.
    add<std::int32_t>(cu_continued_);
    add<std::int32_t>(cu_begun_);
    const KvShape& cache = args.sequences[0]->pool().shape();
    const std::int32_t made_of[] = {static_cast<std::int32_t>(args.heads), cache.heads, cache.head_dim,
                                    static_cast<std::int32_t>(cache.dtype), by_math ? 1 : 0};
    add<std::int32_t>(made_of);  // the tiles
    end_description();
  }

  /// The work of flash, in its order. Sequences that decode takes have no queries in it, and so no tiles.
  void add_tiles(const CachedStepArgs& args) {
    if (long_rows == 0 || math) return;
    cuda::WorkListShape shape;
    shape.cu_k = cu_keys_;
    shape.heads = static_cast<std::int32_t>(args.heads);
    shape.rows = cuda::forward_tile_rows(args.sequences[0]->pool().shape().dtype);
    shape.mask = MaskKind::causal_lower_right;
    for (const auto& [tiles, cu] : {std::pair{&continued, &cu_continued_}, std::pair{&begun, &cu_begun_}}) {
      shape.cu_q = *cu;
      const auto all = cuda::query_tiles(shape);
      *tiles = {add<cuda::AttentionTile>(all), all.size()};
    }
  }

 private:
  std::vector<std::byte*> table_;
  std::vector<std::int32_t> length_, k_length_, cu_continued_, cu_begun_, cu_keys_;
};

using Kept = cuda::KeptLists<StepLists>;

/// Where all new tokens are queries, and where fewer are: the last layer of a step attends for the wanted
/// rows alone. Each has a place of its own, so that a recording finds its lists where they were.
struct KeptSteps {
  Kept all_rows, some_rows;
};

/// The lists of this step on the device: built and uploaded once for all layers.
const Kept& prepare(ExecContext& context, CudaBackend& backend, const CachedStepArgs& args) {
  const KvShape& shape = args.sequences[0]->pool().shape();
  const auto& order = sdpa_policy(context).order;
  const auto place = [&](SdpaBackend name) { return std::ranges::find(order, name) - order.begin(); };
  SdpaSizes sizes{1, args.heads, shape.heads, shape.head_dim, 0, 0, shape.dtype};
  for (std::size_t b = 0; b < args.sequences.size(); ++b) {
    sizes.longest_q = std::max<std::int64_t>(sizes.longest_q, args.cu_q[b + 1] - args.cu_q[b]);
  }
  take_backend(context, sizes, SdpaPass::forward);  // throws when the policy leaves nothing that can run
  const bool math = place(SdpaBackend::math) < place(SdpaBackend::flash);
  const bool decode = place(SdpaBackend::decode) < place(math ? SdpaBackend::math : SdpaBackend::flash);

  KeptSteps& steps = context.attached<KeptSteps>();
  Kept& kept = std::ranges::equal(args.cu_q, args.cu_new) ? steps.all_rows : steps.some_rows;
  kept.next.describe(args, decode, math);
  kept.bring(backend, [&](StepLists& lists) { lists.add_tiles(args); });
  return kept;
}

/// Where keys and values of a layer are.
cuda::KvPages pages_of(const Kept& kept, const KvShape& shape, int layer) {
  cuda::KvPages pages;
  pages.table = kept.at<const std::byte*>(kept.lists.table);
  pages.table_stride = static_cast<std::int64_t>(kept.lists.pages);
  pages.k_offset = static_cast<std::int64_t>(shape.offset(layer, 0));
  pages.v_offset = pages.k_offset + static_cast<std::int64_t>(shape.k_bytes());
  pages.token = shape.head_dim;
  pages.head = static_cast<std::int64_t>(shape.head_bytes() / dtype_size(shape.dtype));
  return pages;
}

}  // namespace

CachedStep begin_cached_step_on_cuda(ExecContext& context, const CachedStepArgs& args) {
  const StepLists& lists = prepare(context, static_cast<CudaBackend&>(context.backend()), args).lists;
  // Flash launches a block per tile, and prompts beside decoding as good as never come back with the same.
  return {lists.all_few || (lists.few_rows == 0 && !lists.math),
          {args.sequences.size(), lists.pages, lists.few_rows, lists.most_keys, lists.continued.count,
           lists.begun.count}};
}

void cached_attention_on_cuda(ExecContext& context, const CachedAttentionArgs& args) {
  auto& backend = static_cast<CudaBackend&>(context.backend());
  const KvShape& shape = args.sequences[0]->pool().shape();
  require(args.q.shape[0] == args.cu_q.back(), Code::usage,
          [&] { return "cached_attention: q: expected a row per query, got " + args.q.shape_string(); });
  const Kept& kept =
      prepare(context, backend, {args.q.shape[1], shape, args.cu_new, args.cu_q, args.sequences});
  const StepLists& lists = kept.lists;
  GpuWorkspace& workspace = GpuWorkspace::of(context);
  const cuda::DeviceTraits& traits = workspace.traits(backend);

  const cuda::KvPages pages = pages_of(kept, shape, args.layer);

  cuda::AppendArgs append;
  append.dtype = shape.dtype;
  append.fresh = {rows_of(args.k), rows_of(args.v), kept.at<std::int32_t>(lists.cu_new),
                  kept.at<std::int32_t>(lists.length)};
  append.pages = pages;
  append.batch = static_cast<std::int32_t>(args.sequences.size());
  append.rows = args.cu_new.back();
  append.kv_heads = shape.heads;
  append.dim = shape.head_dim;
  const ProfileRange range(context, "cached attention");
  if (!lists.all_few) check(cuda::append(append, backend.stream()), "append to the cache");

  cuda::ForwardArgs forward;
  forward.dtype = forward.out_dtype = shape.dtype;
  forward.q = rows_of(args.q);
  forward.out = {args.out.data, args.out.stride[0], shape.head_dim};
  forward.pages = pages;
  if (lists.all_few) forward.fresh = append.fresh;
  forward.cu_q = kept.at<std::int32_t>(lists.cu_q);
  forward.k_length = kept.at<std::int32_t>(lists.k_length);
  forward.batch = append.batch;
  forward.heads = static_cast<std::int32_t>(args.q.shape[1]);
  forward.kv_heads = shape.heads;
  forward.dim = shape.head_dim;
  forward.q_rows = args.cu_q.back();
  forward.scale = args.scale;
  forward.mask.kind = MaskKind::causal_lower_right;
  if (lists.math && !lists.all_few) {  // every row: decode then writes its own again
    const auto longest = static_cast<std::int64_t>(lists.most_keys);
    std::byte* const memory = workspace.scratch(backend, cuda::MathWorkspace::bytes(longest, 0));
    check(cuda::math(forward, {reinterpret_cast<double*>(memory), longest, 0}, backend.stream()),
          "attention by math");
  }
  const auto flash = [&](cuda::ForwardArgs work, const StepLists::Tiles& tiles) {
    if (tiles.count == 0) return;
    work.tiles = kept.at<cuda::AttentionTile>(tiles.at);
    work.tile_count = static_cast<std::int32_t>(tiles.count);
    const bool hopper = work.pages.table == nullptr;
    check(hopper ? cuda::forward_hopper(work, traits, backend.stream())
                 : cuda::forward_mma(work, traits, backend.stream()),
          "flash attention");
  };
  // Prompts from their beginning are read where they are, by the faster kernel where it can.
  cuda::ForwardArgs packed = forward;
  packed.pages = {};
  packed.k = append.fresh.k;
  packed.v = append.fresh.v;
  packed.cu_k = append.fresh.cu_new;
  packed.k_rows = append.rows;
  flash(cuda::hopper_refusal(packed, traits).empty() ? packed : forward, lists.begun);
  flash(forward, lists.continued);
  if (lists.few_rows > 0) {
    workspace.run_decode(
        backend, forward,
        {static_cast<std::int32_t>(lists.few_rows), static_cast<std::int32_t>(lists.most_keys)});
  }
}

}  // namespace inkling
