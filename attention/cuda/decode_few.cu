// Decode of the common case, D = 64 in 16 bits and few query rows: which of its kernels takes a batch.
#include "attention/cuda/decode_stream.cuh"
#include "attention/cuda/decode_team.cuh"
#include "attention/cuda/launch.cuh"

namespace inkling::cuda {
namespace {

/// Runs of the stream a processor: with few heads more of them would mean more to fold, with many they keep
/// memory busy. Measured: README.md.
int runs_per_processor(int heads, const DeviceTraits& traits) {
  return heads <= traits.processors ? 6 : 12;
}

/// Whether every head has its team at once.
bool is_for_teams(const ForwardArgs& a, const DecodePlan& plan, const DeviceTraits& traits) {
  if (!traits.no_hopper.empty()) return false;
  constexpr std::size_t kDeclared = 1024 + 128;  // what the system keeps, and the code declares
  const std::size_t bytes = team_bytes(plan.rows, plan.chunks) + kDeclared;
  const std::size_t room =
      (traits.shared_per_block + 1024) / bytes * (static_cast<std::size_t>(traits.processors) / kTeam);
  return static_cast<std::size_t>(a.batch) * static_cast<std::size_t>(a.kv_heads) <= room;
}

/// Runs of the stream: as many as there are to be warps, or a few less, so that every head of a batch of
/// equal lengths is cut alike.
int runs_of(int heads, int warps) {
  const int whole = warps / heads * heads;
  return whole * 8 >= warps * 7 ? whole : warps;
}

template <class T>
cudaError_t run(const ForwardArgs& a, const DecodePlan& plan, const DeviceTraits& traits,
                cudaStream_t stream) {
  if (is_for_teams(a, plan, traits)) {
    const dim3 blocks(static_cast<unsigned>(a.kv_heads), static_cast<unsigned>(a.batch), kTeam);
    return launch_chained(decode_team_kernel<T>, Grid(blocks, kTeam, Start::early), kTeamThreads,
                          team_bytes(plan.rows, plan.chunks), stream, a, plan);
  }
  const int heads = a.batch * a.kv_heads;
  const int runs = runs_of(heads, traits.processors * runs_per_processor(heads, traits));
  return launch_chained(decode_stream_kernel<T>, static_cast<unsigned>(runs), kWarp, kChunkBytes, stream, a,
                        plan);
}

}  // namespace

bool decodes_few(const ForwardArgs& a, const DecodePlan& plan, const DeviceTraits& traits) {
  // Between the kernels of a step, with one to two heads a processor, the short blocks of decode_kernel begin
  // sooner: 16 sequences at depth 512 took 6 % less, at depth 900 2 % more.
  // A single chunk leaves nothing to share: from an empty context a build with these kernels took 16 % longer
  // for 4 sequences and 5 % for 64 than one without, which differed in more.
  const int heads = a.batch * a.kv_heads;
  const bool middling = heads > traits.processors && heads < 2 * traits.processors;
  if (a.fresh.cu_new != nullptr && (middling || plan.chunks == 1)) return false;
  if (a.dtype == DType::f32 || a.dim != kFewDim || plan.rows > kFewRows) return false;
  return plan.wide && plan.paired && !a.mask.extras() &&
         (a.pages.table == nullptr || a.pages.token == kFewDim);
}

cudaError_t decode_few(const ForwardArgs& a, const DecodePlan& plan, const DeviceTraits& traits,
                       cudaStream_t stream) {
  return a.dtype == DType::bf16 ? run<__nv_bfloat16>(a, plan, traits, stream)
                                : run<__half>(a, plan, traits, stream);
}

}  // namespace inkling::cuda
