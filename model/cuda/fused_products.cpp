#include "model/cuda/fused_products.h"

#include "attention/cuda/gpu_state.h"
#include "engine/cuda/cuda_backend.h"
#include "model/cuda/products_kernel.h"

namespace inkling {
namespace {

using cuda::CudaBackend;

/// What a context keeps for the kernel.
struct FusedProductsMemory {
  Buffer workspace;
};

cuda::BatchRows rows_of(const TensorView& v) {
  return {v.data, v.stride[0]};
}

/// A product's weight and bias.
void add_product(cuda::FusedProducts& f, int product, const LinearWeights& w) {
  f.weight[product] = {const_cast<std::byte*>(w.weight.data),
                       static_cast<std::int64_t>(w.weight.panel_bytes / dtype_size(f.dtype))};
  f.bias[product] = w.bias_data();
}

void add_norm(cuda::FusedProducts& f, int index, const NormWeights& w) {
  f.gain[index] = w.weight.as<float>();
  f.shift[index] = static_cast<const float*>(w.bias.view().data);
}

}  // namespace

std::string_view fused_products_refusal_on_cuda(ExecContext& context, const Model& model, std::int64_t rows) {
  const auto& backend = static_cast<CudaBackend&>(context.backend());
  const ModelConfig& c = model.config();
  if (!cuda::GpuWorkspace::of(context).traits(backend).no_hopper.empty())
    return "no kernels of compute capability 9.0";
  if (model.format() != WeightFormat::bf16 && model.format() != WeightFormat::f16)
    return "weights of other than 16 bits";
  if (c.n_embd != cuda::kBatchWidth) return "a width other than 768";
  if (c.inner() != cuda::kBatchInner) return "a width of the MLP other than 3072";
  if (rows > cuda::kMostBatchRows) return "more than 16 tokens";
  backend.stream();  // makes its GPU the current one
  return cuda::fused_products_device_refusal(backend.activation_dtype(model.format()));
}

void fused_products_on_cuda(ExecContext& context, const FusedProductsArgs& args) {
  auto& backend = static_cast<CudaBackend&>(context.backend());
  const ModelConfig& c = args.model.config();
  const auto layer_of = [&](int i) -> const LayerWeights& {
    return args.model.layers()[static_cast<std::size_t>(i)];
  };
  cuda::FusedProducts f;
  f.dtype = backend.activation_dtype(args.model.format());
  f.rows = static_cast<int>(args.x.shape[0]);
  f.epsilon = c.layer_norm_epsilon;
  f.activation = c.activation;
  f.begin = args.layer < 0 ? cuda::kBeforeAttention : cuda::kAfterAttention;
  f.end = args.layer + 1 < c.n_layer ? cuda::kBatchProducts : cuda::kBeforeAttention;
  if (args.layer >= 0) {
    const LayerWeights& w = layer_of(args.layer);
    add_product(f, cuda::kAfterAttention, w.proj);
    add_product(f, cuda::kIntoMlp, w.fc);
    add_product(f, cuda::kOutOfMlp, w.fcproj);
    add_norm(f, 0, w.ln2);
  }
  if (args.layer + 1 < c.n_layer) {
    const LayerWeights& w = layer_of(args.layer + 1);
    add_product(f, cuda::kBeforeAttention, w.qkv);
    add_norm(f, 1, w.ln1);
  }
  f.attended = rows_of(args.attended);
  f.qkv = rows_of(args.qkv);
  f.stream = args.x.as<float>();
  f.stream_stride = args.x.stride[0];
  f.out = args.out.as<float>();
  f.out_stride = args.out.stride[0];
  f.workspace =
      backend.grown(context.attached<FusedProductsMemory>().workspace, cuda::fused_products_workspace());
  f.launch = args.layer + 1;
  cuda::check(cuda::run_products(f, backend.stream()), "fused products");
}

}  // namespace inkling
