#include "model/cuda/fused_layers.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "attention/cuda/gpu_state.h"
#include "attention/sdpa.h"
#include "engine/cuda/cuda_backend.h"
#include "model/cuda/layers_kernel.h"

namespace inkling {
namespace {

using cuda::CudaBackend;

/// What a context keeps for the kernel.
struct FusedLayersMemory {
  Buffer workspace;  // zeros when new, then the kernel's
  struct Asked {
    std::array<int, 3> shape{};  // dtype, rows, I
    cuda::FusedBlocks blocks;
  };
  std::array<Asked, 4> asked{};  // the driver, lately; the last first
};

std::string_view model_refusal(const ModelConfig& c, WeightFormat format) {
  if (format != WeightFormat::bf16 && format != WeightFormat::f16) return "weights of other than 16 bits";
  if (c.n_layer > cuda::kMostFusedLayers) return "more than 24 layers";
  if (c.head_size() != cuda::kFusedDim) return "heads of other than 64";
  if (c.n_embd != cuda::kFusedWidth) return "a width other than 768";
  if (c.inner() % 64 != 0) return "a width of the MLP that is no multiple of 64";
  return {};
}

std::string_view batch_refusal(const PackedBatch& batch, const KvShape& expected) {
  if (batch.size() > cuda::kMostFusedRows) return "more than 2 sequences";
  if (batch.tokens() != batch.size() || batch.wanted() != batch.size())
    return "other than a token a sequence";
  for (const KvSequence* sequence : batch.sequences) {
    const KvPool& pool = sequence->pool();
    const KvShape& shape = pool.shape();
    if (&pool != &batch.sequences[0]->pool() || pool.device() != Device::cuda ||
        shape.dtype != expected.dtype || shape.heads != expected.heads || shape.layers != expected.layers ||
        shape.head_dim != expected.head_dim) {
      return "a cache of another form";
    }
  }
  return {};
}

/// All but what changes from step to step.
cuda::FusedLayers describe(const FusedLayersArgs& args, DType dtype) {
  const ModelConfig& c = args.model.config();
  cuda::FusedLayers f;
  f.layers = static_cast<int>(c.n_layer);
  f.rows = static_cast<int>(args.batch.size());
  f.vocab = static_cast<int>(c.vocab_size);
  f.inner = static_cast<int>(c.inner());
  f.epsilon = c.layer_norm_epsilon;
  f.activation = c.activation;
  f.dtype = dtype;
  f.scale = 1.0f / std::sqrt(static_cast<float>(cuda::kFusedDim));
  return f;
}

cuda::FusedNorm norm_of(const NormWeights& norm) {
  return {norm.weight.as<float>(), static_cast<const float*>(norm.bias.view().data)};
}

cuda::FusedLayer pointers_of(const LayerWeights& w) {
  cuda::FusedLayer layer;
  const LinearWeights* const products[] = {&w.qkv, &w.proj, &w.fc, &w.fcproj};
  for (int i = 0; i < cuda::kProducts; ++i) {
    layer.weight[i] = products[i]->weight.data;
    layer.bias[i] = products[i]->bias_data();
  }
  layer.norm[0] = norm_of(w.ln1);
  layer.norm[1] = norm_of(w.ln2);
  return layer;
}

/// The cache that a model's layers ask for.
KvShape cache_of(const ModelConfig& c, DType dtype) {
  return {static_cast<int>(c.n_layer), static_cast<int>(c.n_head), cuda::kFusedDim, dtype};
}

/// Whether the policy sends such a step to the decode kernel, whose bits these are.
bool decodes(ExecContext& context) {
  const auto& order = sdpa_policy(context).order;
  const auto place = [&](SdpaBackend backend) { return std::ranges::find(order, backend); };
  const auto decode = place(SdpaBackend::decode);
  return decode != order.end() && decode < place(SdpaBackend::flash) && decode < place(SdpaBackend::math);
}

int chunks_of(const KvSequence& sequence) {
  return static_cast<int>(sequence.length() / kKvPageTokens) + 1;
}

cuda::FusedSequence sequence_of(const PackedBatch& batch, std::size_t b) {
  cuda::FusedSequence sequence;
  sequence.id = batch.ids[b];
  for (const PackedBatch::Drawn& drawn : batch.drawn) {
    const auto at = static_cast<std::int64_t>(b) - drawn.first;
    if (at >= 0 && at < drawn.count) sequence.drawn = drawn.ids + at;
  }
  sequence.length = static_cast<std::int32_t>(batch.sequences[b]->length());
  std::copy_n(batch.sequences[b]->pages().begin(), chunks_of(*batch.sequences[b]), sequence.page);
  return sequence;
}

/// The blocks of the kernel for such arguments; the driver is asked once.
cuda::FusedBlocks blocks_of(ExecContext& context, const cuda::FusedLayers& f) {
  auto& asked = context.attached<FusedLayersMemory>().asked;
  const std::array shape{static_cast<int>(f.dtype), f.rows, f.inner};
  const auto found = std::ranges::find(asked, shape, &FusedLayersMemory::Asked::shape);
  if (found != asked.end()) return found->blocks;
  const cuda::FusedBlocks blocks = cuda::fused_layers_blocks(f);
  std::rotate(asked.begin(), asked.end() - 1, asked.end());
  asked[0] = {shape, blocks};
  return blocks;
}

}  // namespace

std::string_view fused_layers_refusal_on_cuda(ExecContext& context, const FusedLayersArgs& args) {
  const auto& backend = static_cast<CudaBackend&>(context.backend());
  const cuda::DeviceTraits& traits = cuda::GpuWorkspace::of(context).traits(backend);
  const ModelConfig& c = args.model.config();
  const DType dtype = backend.activation_dtype(args.model.format());
  if (!traits.no_hopper.empty()) return "no kernels of compute capability 9.0";
  if (const auto reason = model_refusal(c, args.model.format()); !reason.empty()) return reason;
  const KvShape cache = cache_of(c, dtype);
  if (const auto reason = batch_refusal(args.batch, cache); !reason.empty()) return reason;
  if (!decodes(context)) return "a policy of attention without its decode kernel";
  for (const KvSequence* sequence : args.batch.sequences) {
    if (chunks_of(*sequence) > cuda::kMostFusedChunks) return "more than 2048 keys";
  }
  backend.stream();  // makes its GPU the current one
  return blocks_of(context, describe(args, dtype)).reason;
}

void fused_layers_on_cuda(ExecContext& context, const FusedLayersArgs& args) {
  auto& backend = static_cast<CudaBackend&>(context.backend());
  const DType dtype = backend.activation_dtype(args.model.format());
  cuda::FusedLayers f = describe(args, dtype);
  for (std::size_t i = 0; i < args.model.layers().size(); ++i) {
    f.layer[i] = pointers_of(args.model.layers()[i]);
  }
  f.norm = norm_of(args.model.final_norm());
  f.token = args.model.embedding().data;
  f.token_stride = args.model.embedding().k;
  f.position = args.model.positions().as<float>();
  f.position_stride = args.model.positions().view().stride[0];
  f.head = args.model.head().data;
  f.logits = args.logits.as<float>();
  f.logits_stride = args.logits.stride[0];

  const KvShape cache = cache_of(args.model.config(), dtype);
  f.layer_bytes = static_cast<std::int64_t>(cache.offset(1, 0));
  f.head_bytes = static_cast<std::int64_t>(cache.head_bytes());
  f.k_bytes = static_cast<std::int64_t>(cache.k_bytes());
  for (std::size_t b = 0; b < args.batch.sequences.size(); ++b) {
    f.sequence[b] = sequence_of(args.batch, b);
    f.chunks = std::max(f.chunks, chunks_of(*args.batch.sequences[b]));
  }

  Buffer& workspace = context.attached<FusedLayersMemory>().workspace;
  if (const std::size_t bytes = cuda::fused_layers_workspace(f); workspace.size() < bytes) {
    backend.grown(workspace, bytes);
    backend.zero(workspace.data(), workspace.size());
  }
  f.workspace = workspace.data();
  cuda::check(cuda::run_layers(f, blocks_of(context, f).count, backend.stream()), "fused layers");
}

}  // namespace inkling
