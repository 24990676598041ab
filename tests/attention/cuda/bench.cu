// Times the attention kernels on rows of the project's table: graph replays of launches over rotating buffers
// (so that inputs come from memory, not from the last launch's cache lines), medians. One JSON line per row
// and kernel.
//
//   bench [substring]     only rows whose name contains it
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <functional>
#include <memory>

#include "tests/attention/cuda/device_problem.h"

using namespace inkling;
using namespace inkling::test;

namespace {

cuda::DeviceTraits traits;
cudaStream_t stream;

__global__ void fill_normal(void* data, bool is_bf16, std::size_t count, std::uint64_t seed) {
  const std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const PhiloxWords w =
      philox({static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(i >> 32), 0, 0}, seed);
  const float radius = sqrtf(-2.0f * logf((w[0] + 1.0f) * 0x1p-32f));
  const float x = radius * cospif(w[1] * 0x1p-31f);
  if (is_bf16) {
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(x);
  } else {
    static_cast<__half*>(data)[i] = __float2half_rn(x);
  }
}

struct Row {
  const char* name;
  int batch, heads, dim, queries, keys;
  DType dtype;
  MaskKind mask;
  float p;
  bool backward;
};
constexpr Row kRows[] = {
    {"32x32x1024x32 full", 32, 32, 32, 1024, 1024, DType::f16, MaskKind::none, 0, false},
    {"32x32x1024x32 causal", 32, 32, 32, 1024, 1024, DType::f16, MaskKind::causal_upper_left, 0, false},
    {"gpt2 B=1 causal", 1, 12, 64, 1024, 1024, DType::bf16, MaskKind::causal_upper_left, 0, true},
    {"gpt2 B=16 causal", 16, 12, 64, 1024, 1024, DType::bf16, MaskKind::causal_upper_left, 0, true},
    {"gpt2 B=16 causal dropout", 16, 12, 64, 1024, 1024, DType::bf16, MaskKind::causal_upper_left, 0.1f,
     true},
    {"gpt2 B=16 full", 16, 12, 64, 1024, 1024, DType::bf16, MaskKind::none, 0, false},
    {"D=128 B8 H16 T2048 causal", 8, 16, 128, 2048, 2048, DType::bf16, MaskKind::causal_upper_left, 0, true},
    {"E=512 H=8 32x512 full", 32, 8, 64, 512, 512, DType::bf16, MaskKind::none, 0, false},
    {"decode B=1 kv 1024", 1, 12, 64, 1, 1024, DType::bf16, MaskKind::causal_lower_right, 0, false},
    {"decode B=1 kv 8192", 1, 12, 64, 1, 8192, DType::bf16, MaskKind::causal_lower_right, 0, false},
    {"decode B=16 kv 1024", 16, 12, 64, 1, 1024, DType::bf16, MaskKind::causal_lower_right, 0, false},
    {"decode B=64 kv 1024", 64, 12, 64, 1, 1024, DType::bf16, MaskKind::causal_lower_right, 0, false},
    {"decode B=16 kv 8192", 16, 12, 64, 1, 8192, DType::bf16, MaskKind::causal_lower_right, 0, false},
};

/// One set of buffers of a row.
struct Buffers {
  DeviceArray<std::byte> q, k, v, out, dout, dq, dk, dv;
  DeviceArray<float> lse;
  DeviceArray<const std::byte*> table;
  DeviceArray<std::byte> workspace, scratch;  // of decode; of backward
  DeviceArray<unsigned int> counters;
  DeviceArray<std::uint32_t> drawn;
  cuda::ForwardArgs args, paged;
  cuda::BackwardArgs grad;
};

struct Lists {
  DeviceArray<std::int32_t> cu_q, cu_k, k_length;
  DeviceArray<cuda::AttentionTile> tiles, query_tiles, key_tiles;
  DeviceArray<std::int64_t> drawn_begin;
  std::int64_t drawn_words = 0;
};

std::unique_ptr<Lists> make_lists(const Row& r) {
  std::vector<std::int32_t> cu_q{0}, cu_k{0};
  for (int b = 0; b < r.batch; ++b) {
    cu_q.push_back(cu_q.back() + r.queries);
    cu_k.push_back(cu_k.back() + r.keys);
  }
  cuda::WorkListShape shape{cu_q, cu_k, r.heads, 128, r.mask, cuda::kFar, cuda::kFar, 4 * r.dim};
  const auto tiles = cuda::query_tiles(shape);
  std::vector<std::int64_t> begins;
  std::int64_t words = 0;
  for (int b = 0; r.p > 0 && b < r.batch; ++b, words += r.heads * cuda::drawn_words(r.queries, r.keys)) {
    begins.push_back(words);
  }
  shape.rows = cuda::backward_tile_rows(r.dtype, r.dim);
  return std::unique_ptr<Lists>(new Lists{
      DeviceArray<std::int32_t>(cu_q), DeviceArray<std::int32_t>(cu_k),
      DeviceArray<std::int32_t>(std::vector<std::int32_t>(r.batch, r.keys)),
      DeviceArray<cuda::AttentionTile>(tiles), DeviceArray<cuda::AttentionTile>(cuda::query_tiles(shape)),
      DeviceArray<cuda::AttentionTile>(cuda::key_tiles(shape)), DeviceArray<std::int64_t>(begins), words});
}

std::unique_ptr<Buffers> make_buffers(const Row& r, const Lists& lists, std::uint64_t seed) {
  const std::size_t nq = static_cast<std::size_t>(r.batch) * r.queries * r.heads * r.dim * 2;
  const std::size_t nk = static_cast<std::size_t>(r.batch) * r.keys * r.heads * r.dim * 2;
  const std::size_t grads = r.backward ? 1 : 0,
                    rows = static_cast<std::size_t>(r.batch) * r.queries * r.heads;
  const int pages = r.keys / 64;
  auto b = std::unique_ptr<Buffers>(
      new Buffers{DeviceArray<std::byte>(nq),
                  DeviceArray<std::byte>(nk),
                  DeviceArray<std::byte>(nk),
                  DeviceArray<std::byte>(nq),
                  DeviceArray<std::byte>(nq * grads),
                  DeviceArray<std::byte>(nq * grads),
                  DeviceArray<std::byte>(nk * grads),
                  DeviceArray<std::byte>(nk * grads),
                  DeviceArray<float>(rows),
                  DeviceArray<const std::byte*>(static_cast<std::size_t>(r.batch) * pages),
                  DeviceArray<std::byte>(0),
                  DeviceArray<std::byte>(0),
                  DeviceArray<unsigned int>(0),
                  DeviceArray<std::uint32_t>(0),
                  {},
                  {},
                  {}});
  for (DeviceArray<std::byte>* x : {&b->q, &b->k, &b->v, &b->dout}) {
    const std::size_t count = x->size() / 2;
    if (count == 0) continue;
    fill_normal<<<static_cast<unsigned int>((count + 255) / 256), 256>>>(x->get(), r.dtype == DType::bf16,
                                                                         count, seed++);
  }
  must(cudaDeviceSynchronize(), "fill");
  cuda::ForwardArgs& a = b->args;
  const std::int64_t row = static_cast<std::int64_t>(r.heads) * r.dim;
  a.dtype = a.out_dtype = r.dtype;
  a.q = {b->q.get(), row, r.dim};
  a.k = {b->k.get(), row, r.dim};
  a.v = {b->v.get(), row, r.dim};
  a.out = {b->out.get(), row, r.dim};
  a.lse = b->lse.get();
  a.lse_head = r.batch * r.queries;
  a.lse_row = 1;
  a.cu_q = lists.cu_q.get();
  a.cu_k = lists.cu_k.get();
  a.batch = r.batch;
  a.heads = a.kv_heads = r.heads;
  a.dim = r.dim;
  a.q_rows = r.batch * r.queries;
  a.k_rows = r.batch * r.keys;
  a.scale = 1.0f / std::sqrt(static_cast<float>(r.dim));
  a.mask.kind = r.mask;
  a.dropout = {1, 2, dropout_threshold(r.p), 1.0f / (1.0f - r.p)};
  a.tiles = lists.tiles.get();
  a.tile_count = static_cast<std::int32_t>(lists.tiles.size());
  b->grad.forward = a;
  b->grad.grad_dtype = r.dtype;
  b->grad.dout = {b->dout.get(), row, r.dim};
  b->grad.dq = {b->dq.get(), row, r.dim};
  b->grad.dk = {b->dk.get(), row, r.dim};
  b->grad.dv = {b->dv.get(), row, r.dim};
  b->grad.query_tiles = lists.query_tiles.get();
  b->grad.query_tile_count = static_cast<std::int32_t>(lists.query_tiles.size());
  b->grad.key_tiles = lists.key_tiles.get();
  b->grad.key_tile_count = static_cast<std::int32_t>(lists.key_tiles.size());
  if (r.backward) {
    b->scratch.reset(cuda::backward_workspace_bytes(b->grad, traits));
    b->grad.workspace = b->scratch.get();
  }
  // The same memory seen as pages (head, 64 tokens, D), in a scrambled order: contents do not matter here.
  std::vector<const std::byte*> table;
  const std::size_t page_bytes = static_cast<std::size_t>(r.heads) * 64 * r.dim * 2;
  const int total = r.batch * pages;
  for (int i = 0; i < total; ++i)
    table.push_back(b->k.get() + static_cast<std::size_t>(i * 7919LL % total) * page_bytes);
  if (total > 0) b->table.set(table);
  b->paged = a;
  b->paged.pages = {b->table.get(), pages, 0, b->v.get() - b->k.get(), r.dim, 64 * r.dim};
  b->paged.k_length = lists.k_length.get();
  const cuda::DecodeShape shape{1, r.keys};
  if (r.queries == 1) {
    b->workspace.reset(cuda::decode_workspace_bytes(a, shape));
    b->counters.reset(static_cast<std::size_t>(a.batch) * a.kv_heads);
    b->counters.fill(0);
  }
  return b;
}

/// Median µs of one call, over replays of a graph of `calls`.
double time_calls(int calls, const std::function<cudaError_t(int)>& call) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  must(call(0), "launch");
  must(cudaStreamSynchronize(stream), "first launch");
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls; ++i) must(call(i), "launch");
  must(cudaStreamEndCapture(stream, &graph), "capture");
  must(cudaGraphInstantiate(&exec, graph, 0), "graph");
  cudaEvent_t start, stop;
  must(cudaEventCreate(&start), "event");
  must(cudaEventCreate(&stop), "event");
  std::vector<float> times;
  for (int i = 0; i < 12; ++i) {
    must(cudaEventRecord(start, stream), "event");
    must(cudaGraphLaunch(exec, stream), "replay");
    must(cudaEventRecord(stop, stream), "event");
    must(cudaStreamSynchronize(stream), "replay");
    float ms = 0;
    must(cudaEventElapsedTime(&ms, start, stop), "event");
    if (i >= 2) times.push_back(ms * 1000 / static_cast<float>(calls));
  }
  std::ranges::sort(times);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  return double{times[times.size() / 2]};
}

void print(const Row& r, const char* kernel, double us) {
  const double pairs = r.mask == MaskKind::causal_upper_left ? 0.5 * r.queries * (r.queries + 1.0)
                                                             : static_cast<double>(r.queries) * r.keys;
  const double tflops = 4 * pairs * r.dim * r.batch * r.heads / us * 1e-6;
  const double gbs = 4.0 * r.batch * r.keys * r.heads * r.dim / us * 1e-3;  // K and V once
  std::printf("{\"row\": \"%s\", \"kernel\": \"%s\", \"us\": %.2f, \"%s\": %.1f}\n", r.name, kernel, us,
              r.queries == 1 ? "GB/s" : "TFLOP/s forward", r.queries == 1 ? gbs : tflops);
  std::fflush(stdout);
}

void measure(const Row& r) {
  const auto lists = make_lists(r);
  const std::size_t bytes =
      static_cast<std::size_t>(r.batch) * (2 * r.queries + 2 * r.keys) * r.heads * r.dim * 2;
  const int sets = static_cast<int>(std::clamp<std::size_t>((std::size_t{256} << 20) / bytes + 1, 2, 24));
  std::vector<std::unique_ptr<Buffers>> buffers;
  for (int i = 0; i < sets; ++i) buffers.push_back(make_buffers(r, *lists, 1000 + 10 * i));
  const auto at = [&](int i) -> Buffers& { return *buffers[i % sets]; };
  const int calls = std::max(sets, 24);
  if (r.queries == 1) {
    const cuda::DecodeShape shape{1, r.keys};
    print(r, "decode", time_calls(calls, [&](int i) {
            return cuda::decode(at(i).args, shape, {at(i).workspace.get(), at(i).counters.get()}, traits,
                                stream);
          }));
    print(r, "decode paged", time_calls(calls, [&](int i) {
            return cuda::decode(at(i).paged, shape, {at(i).workspace.get(), at(i).counters.get()}, traits,
                                stream);
          }));
    return;
  }
  const bool hopper = cuda::hopper_refusal(at(0).args, traits).empty();
  if (hopper) {
    print(r, "hopper",
          time_calls(calls, [&](int i) { return cuda::forward_hopper(at(i).args, traits, stream); }));
  }
  if (hopper && r.p > 0) {
    for (const auto& b : buffers) {
      b->drawn.reset(static_cast<std::size_t>(lists->drawn_words));
      b->args.dropout.drawn = b->drawn.get();
      b->args.dropout.drawn_begin = lists->drawn_begin.get();
      b->grad.forward.dropout = b->args.dropout;
    }
    print(r, "draw", time_calls(calls, [&](int i) { return cuda::draw_dropout(at(i).args, stream); }));
    print(r, "hopper, drawn before",
          time_calls(calls, [&](int i) { return cuda::forward_hopper(at(i).args, traits, stream); }));
    print(r, "backward, drawn before",
          time_calls(calls, [&](int i) { return cuda::backward(at(i).grad, traits, stream); }));
    for (const auto& b : buffers) b->args.dropout.drawn = b->grad.forward.dropout.drawn = nullptr;
  }
  print(r, "mma", time_calls(calls, [&](int i) { return cuda::forward_mma(at(i).args, traits, stream); }));
  if (r.backward) {
    print(r, "backward",
          time_calls(calls, [&](int i) { return cuda::backward(at(i).grad, traits, stream); }));
    print(r, "forward+backward", time_calls(calls, [&](int i) {
            const cudaError_t error = hopper ? cuda::forward_hopper(at(i).args, traits, stream)
                                             : cuda::forward_mma(at(i).args, traits, stream);
            return error != cudaSuccess ? error : cuda::backward(at(i).grad, traits, stream);
          }));
  }
}

}  // namespace

int main(int argc, char** argv) {
  must(cuda::read_traits(0, traits), "device");
  must(cudaStreamCreate(&stream), "stream");
  for (const Row& row : kRows) {
    if (argc > 1 && std::string(row.name).find(argv[1]) == std::string::npos) continue;
    measure(row);
  }
  return 0;
}
