#include "attention/cuda/cuda_attention.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "attention/cuda/launch.h"
#include "attention/cuda/work_list.h"
#include "attention/sdpa_problem.h"
#include "engine/cuda/check.h"
#include "engine/cuda/cuda_backend.h"
#include "engine/exec_context.h"
#include "engine/profiler.h"

namespace inkling {
namespace {

using cuda::check;

/// What a context keeps for attention on its GPU: the lists of a step, uploaded once for all layers, and
/// workspace.
struct GpuAttention {
  cuda::DeviceTraits traits;
  bool known = false;
  std::vector<std::byte> lists;  // as they lie on the device
  Buffer device_lists, workspace;
  std::size_t counters = 0;  // bytes at the head of the workspace that decode wants to be zero
};

/// One step's lists back to back: pages (B × P pointers), lengths before and after, offsets, tiles.
struct StepLists {
  std::size_t batch = 0, pages = 0, long_rows = 0, few_rows = 0, most_keys = 0;
  std::vector<std::byte> bytes;
  std::size_t table = 0, length = 0, k_length = 0, cu_new = 0, cu_q = 0, tiles = 0, tile_count = 0;

  template <class T>
  std::size_t add(const T* values, std::size_t count) {
    const std::size_t at = (bytes.size() + 15) / 16 * 16;
    bytes.resize(at + count * sizeof(T));
    if (count > 0) std::memcpy(bytes.data() + at, values, count * sizeof(T));
    return at;
  }
};

StepLists lists_of(const CachedAttentionArgs& args, bool decode, std::int64_t group, std::int64_t kv_heads) {
  StepLists lists;
  const std::size_t batch = lists.batch = args.sequences.size();
  std::vector<std::int32_t> length(batch), k_length(batch), cu_long(batch + 1), cu_keys(batch + 1);
  for (std::size_t b = 0; b < batch; ++b) {
    const std::int32_t queries = args.cu_q[b + 1] - args.cu_q[b];
    length[b] = static_cast<std::int32_t>(args.sequences[b]->length());
    k_length[b] = length[b] + args.cu_new[b + 1] - args.cu_new[b];
    const auto rows = static_cast<std::size_t>(queries * group);
    const bool few = decode && rows <= static_cast<std::size_t>(cuda::kDecodeMostRows);
    cu_long[b + 1] = cu_long[b] + (few ? 0 : queries);
    cu_keys[b + 1] = cu_keys[b] + k_length[b];
    (few ? lists.few_rows : lists.long_rows) = std::max(few ? lists.few_rows : lists.long_rows, rows);
    lists.most_keys = std::max(lists.most_keys, static_cast<std::size_t>(k_length[b]));
    lists.pages = std::max(lists.pages, args.sequences[b]->pages().size());
  }
  std::vector<const std::byte*> table(batch * lists.pages);
  for (std::size_t b = 0; b < batch; ++b) {
    std::ranges::copy(args.sequences[b]->pages(),
                      table.begin() + static_cast<std::ptrdiff_t>(b * lists.pages));
  }
  lists.table = lists.add(table.data(), table.size());
  lists.length = lists.add(length.data(), batch);
  lists.k_length = lists.add(k_length.data(), batch);
  lists.cu_new = lists.add(args.cu_new.data(), batch + 1);
  lists.cu_q = lists.add(args.cu_q.data(), batch + 1);
  if (lists.long_rows > 0) {
    // Sequences that decode takes have no queries in this list, and so no tiles.
    cuda::WorkListShape shape;
    shape.cu_q = cu_long;
    shape.cu_k = cu_keys;
    shape.heads = static_cast<std::int32_t>(kv_heads * group);
    shape.rows = cuda::forward_tile_rows(args.q.dtype);
    shape.mask = MaskKind::causal_lower_right;
    const auto tiles = cuda::query_tiles(shape);
    lists.tiles = lists.add(tiles.data(), tiles.size());
    lists.tile_count = tiles.size();
  }
  return lists;
}

cuda::HeadRows rows_of(const TensorView& view) {
  return {view.data, view.stride[0], view.stride[1]};
}

}  // namespace

void cached_attention_on_cuda(ExecContext& context, const CachedAttentionArgs& args) {
  auto& backend = static_cast<cuda::CudaBackend&>(context.backend());
  auto& gpu = context.attached<GpuAttention>();
  if (!gpu.known) check(cuda::read_traits(backend.ordinal(), gpu.traits), "device attributes");
  gpu.known = true;

  const KvShape& shape = args.sequences[0]->pool().shape();
  const std::int64_t group = args.q.shape[1] / shape.heads;
  require(args.q.shape[0] == args.cu_q.back(), Code::usage,
          [&] { return "cached_attention: q: expected a row per query, got " + args.q.shape_string(); });
  const auto& order = sdpa_policy(context).order;
  const auto place = [&](SdpaBackend backend_) { return std::ranges::find(order, backend_) - order.begin(); };
  SdpaSizes sizes{1, args.q.shape[1], shape.heads, shape.head_dim, 0, 0, shape.dtype};
  for (std::size_t b = 0; b < args.sequences.size(); ++b) {
    sizes.longest_q = std::max<std::int64_t>(sizes.longest_q, args.cu_q[b + 1] - args.cu_q[b]);
  }
  take_backend(context, sizes, SdpaPass::forward);  // throws when the policy leaves nothing that can run
  const bool decode = place(SdpaBackend::decode) < place(SdpaBackend::flash);

  StepLists lists = lists_of(args, decode, group, shape.heads);
  if (lists.bytes != gpu.lists) {
    backend.grown(gpu.device_lists, lists.bytes.size());
    backend.copy_in(gpu.device_lists.data(), lists.bytes.data(), lists.bytes.size());
    gpu.lists = std::move(lists.bytes);
  }
  const auto at = [&]<class T>(std::size_t offset, T*) {
    return reinterpret_cast<T*>(gpu.device_lists.data() + offset);
  };
  const auto ints = [&](std::size_t offset) { return at(offset, static_cast<const std::int32_t*>(nullptr)); };

  cuda::KvPages pages;
  pages.table = at(lists.table, static_cast<const std::byte* const*>(nullptr));
  pages.table_stride = static_cast<std::int64_t>(lists.pages);
  pages.k_offset = static_cast<std::int64_t>(shape.offset(args.layer, 0));
  pages.v_offset = pages.k_offset + static_cast<std::int64_t>(shape.k_bytes());
  pages.token = shape.head_dim;
  pages.head = static_cast<std::int64_t>(shape.head_bytes() / dtype_size(shape.dtype));

  cuda::AppendArgs append;
  append.dtype = shape.dtype;
  append.k = rows_of(args.k);
  append.v = rows_of(args.v);
  append.pages = pages;
  append.cu_new = ints(lists.cu_new);
  append.length = ints(lists.length);
  append.batch = static_cast<std::int32_t>(lists.batch);
  append.rows = args.cu_new.back();
  append.kv_heads = shape.heads;
  append.dim = shape.head_dim;
  const ProfileRange range(context, "cached attention");
  check(cuda::append(append, backend.stream()), "append to the cache");

  cuda::ForwardArgs forward;
  forward.dtype = forward.out_dtype = shape.dtype;
  forward.q = rows_of(args.q);
  forward.out = {args.out.data, args.out.stride[0], shape.head_dim};
  forward.pages = pages;
  forward.cu_q = ints(lists.cu_q);
  forward.k_length = ints(lists.k_length);
  forward.batch = append.batch;
  forward.heads = static_cast<std::int32_t>(args.q.shape[1]);
  forward.kv_heads = shape.heads;
  forward.dim = shape.head_dim;
  forward.q_rows = args.cu_q.back();
  forward.scale = args.scale;
  forward.mask.kind = MaskKind::causal_lower_right;
  if (lists.long_rows > 0) {
    forward.tiles = at(lists.tiles, static_cast<const cuda::AttentionTile*>(nullptr));
    forward.tile_count = static_cast<std::int32_t>(lists.tile_count);
    check(cuda::forward_mma(forward, gpu.traits, backend.stream()), "flash attention");
  }
  if (lists.few_rows > 0) {
    const cuda::DecodeShape few{static_cast<std::int32_t>(lists.few_rows),
                                static_cast<std::int32_t>(lists.most_keys)};
    const std::size_t bytes = cuda::decode_workspace_bytes(forward, few),
                      counters = cuda::decode_counter_bytes(forward);
    if (gpu.workspace.size() < bytes || gpu.counters != counters) {
      backend.grown(gpu.workspace, bytes);
      check(cudaMemsetAsync(gpu.workspace.data(), 0, counters, backend.stream()), "workspace");
      gpu.counters = counters;
    }
    check(cuda::decode(forward, few, gpu.workspace.data(), gpu.traits, backend.stream()), "decode attention");
  }
}

}  // namespace inkling
