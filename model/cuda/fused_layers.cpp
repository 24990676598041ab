#include "model/cuda/fused_layers.h"

#include <cmath>

#include "attention/cuda/gpu_state.h"
#include "attention/cuda/paged_step.h"
#include "engine/cuda/cuda.h"
#include "engine/cuda/cuda_backend.h"
#include "model/cuda/layers_kernel.h"

namespace inkling {
namespace {

using cuda::CudaBackend;

/// What a context keeps for the kernel.
struct FusedLayersMemory {
  Buffer workspace;  // zeros when new, then the kernel's
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
  f.inner = static_cast<int>(c.inner());
  f.epsilon = c.layer_norm_epsilon;
  f.activation = c.activation;
  f.attention.dtype = f.attention.out_dtype = dtype;
  f.attention.batch = f.attention.q_rows = f.rows;
  f.attention.heads = f.attention.kv_heads = static_cast<std::int32_t>(c.n_head);
  f.attention.dim = cuda::kFusedDim;
  f.attention.scale = 1.0f / std::sqrt(static_cast<float>(cuda::kFusedDim));
  f.attention.mask.kind = MaskKind::causal_lower_right;
  return f;
}

cuda::FusedLayer pointers_of(const LayerWeights& w) {
  cuda::FusedLayer layer;
  const LinearWeights* const products[] = {&w.qkv, &w.proj, &w.fc, &w.fcproj};
  for (int i = 0; i < cuda::kProducts; ++i) {
    layer.weight[i] = products[i]->weight.data;
    layer.bias[i] = products[i]->bias_data();
  }
  const NormWeights* const norms[] = {&w.ln1, &w.ln2};
  for (int i = 0; i < 2; ++i) {
    layer.gain[i] = norms[i]->weight.as<float>();
    layer.shift[i] = static_cast<const float*>(norms[i]->bias.view().data);
  }
  return layer;
}

/// The cache that a model's layers ask for.
KvShape cache_of(const ModelConfig& c, DType dtype) {
  return {static_cast<int>(c.n_layer), static_cast<int>(c.n_head), cuda::kFusedDim, dtype};
}

cuda::PagedStep step_of(ExecContext& context, const FusedLayersArgs& args, const KvShape& cache) {
  const PackedBatch& batch = args.batch;
  return cuda::paged_step(
      context, {args.model.config().n_head, cache, batch.cu_seqlens, batch.cu_seqlens, batch.sequences});
}

int chunks_of(const cuda::PagedStep& step) {
  return static_cast<int>((step.most_keys + kKvPageTokens - 1) / kKvPageTokens);
}

}  // namespace

std::string_view fused_layers_refusal_on_cuda(ExecContext& context, const FusedLayersArgs& args) {
  const auto& backend = static_cast<CudaBackend&>(context.backend());
  const cuda::DeviceTraits& traits = cuda::GpuWorkspace::of(context).traits(backend);
  const ModelConfig& c = args.model.config();
  const DType dtype = backend.activation_dtype(args.model.format());
  if (!cuda_hopper_refusal(traits.ordinal).empty()) return "no kernels of compute capability 9.0";
  if (const auto reason = model_refusal(c, args.model.format()); !reason.empty()) return reason;
  const KvShape cache = cache_of(c, dtype);
  if (const auto reason = batch_refusal(args.batch, cache); !reason.empty()) return reason;
  const cuda::PagedStep step = step_of(context, args, cache);
  if (!step.decode) return "a policy of attention without its decode kernel";
  if (chunks_of(step) > cuda::kMostFusedChunks) return "more than 2048 keys";
  backend.stream();  // makes its GPU the current one
  return cuda::fused_layers_device_refusal(describe(args, dtype), traits.processors);
}

void fused_layers_on_cuda(ExecContext& context, const FusedLayersArgs& args) {
  auto& backend = static_cast<CudaBackend&>(context.backend());
  const DType dtype = backend.activation_dtype(args.model.format());
  cuda::FusedLayers f = describe(args, dtype);
  for (std::size_t i = 0; i < args.model.layers().size(); ++i) {
    f.layer[i] = pointers_of(args.model.layers()[i]);
  }
  f.x = args.x.as<float>();
  f.x_stride = args.x.stride[0];
  f.out = args.out.as<float>();
  f.out_stride = args.out.stride[0];

  const cuda::PagedStep step = step_of(context, args, cache_of(args.model.config(), dtype));
  f.attention.pages = step.pages;
  f.layer_bytes = static_cast<std::int64_t>(step.layer_bytes);
  f.length = step.length;
  f.chunks = chunks_of(step);

  Buffer& workspace = context.attached<FusedLayersMemory>().workspace;
  if (const std::size_t bytes = cuda::fused_layers_workspace(f); workspace.size() < bytes) {
    backend.grown(workspace, bytes);
    backend.zero(workspace.data(), workspace.size());
  }
  f.workspace = workspace.data();
  cuda::check(
      cuda::run_layers(f, cuda::GpuWorkspace::of(context).traits(backend).processors, backend.stream()),
      "fused layers");
}

}  // namespace inkling
