#include "model/model.h"

#include <cstring>
#include <new>
#include <utility>

#include "engine/ops.h"

namespace inkling {
namespace {

// Every matrix of a model is held in one format. An earlier sample model, 160 windows of 256 validation
// tokens: perplexity 51.14 in f32, 51.15 in int8, 51.54 in int4, 51.22 in int4 with embedding and head in
// int8. That last mixture would read a quarter more bytes per token of a GPT-2 124M for 0.6 %, which int4
// need not have.
WeightFormat choose_format(const LoadOptions& options, DType stored) {
  if (options.quant == Quantisation::int8) return WeightFormat::int8;
  if (options.quant == Quantisation::int4) return WeightFormat::int4;
  switch (options.dtype) {
    case WeightType::f32:
      return WeightFormat::f32;
    case WeightType::f16:
      return WeightFormat::f16;
    case WeightType::bf16:
      return WeightFormat::bf16;
    case WeightType::automatic:
      break;
  }
  return stored == DType::f16    ? WeightFormat::f16
         : stored == DType::bf16 ? WeightFormat::bf16
                                 : WeightFormat::f32;
}

template <class T>
void widen(const void* from, float* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(static_cast<const T*>(from)[i]);
}

Tensor to_f32(const TensorView& view) {
  if (view.data == nullptr) return {};
  Tensor tensor(DType::f32, std::span(view.shape.data(), view.rank));
  auto* out = tensor.as<float>();
  switch (view.dtype) {
    case DType::f16:
      widen<f16>(view.data, out, view.numel());
      break;
    case DType::bf16:
      widen<bf16>(view.data, out, view.numel());
      break;
    default:
      widen<float>(view.data, out, view.numel());
      break;
  }
  return tensor;
}

/// Ids are below V ≤ 2²²: both files have been checked.
std::vector<std::int32_t> end_ids(const ModelConfig& config, const PublishedGeneration& published) {
  std::vector<std::int32_t> ids;
  for (const std::int64_t id : published.eos_token_ids) ids.push_back(static_cast<std::int32_t>(id));
  if (ids.empty() && config.eos_token_id) ids.push_back(static_cast<std::int32_t>(*config.eos_token_id));
  return ids;
}

/// What a tensor that is no matrix takes: f32. 0 for an absent one.
std::size_t small_nbytes(const TensorView& view) {
  return view.data == nullptr ? 0 : static_cast<std::size_t>(view.numel()) * sizeof(float);
}
/// The same in a cache file: whole cache lines.
std::size_t cached_nbytes(const TensorView& view) {
  return (small_nbytes(view) + 63) / 64 * 64;
}

/// Calls visit(view) for every tensor that is no matrix, absent biases included, in the order of a packed
/// cache.
template <class Visit>
void for_each_small(const Gpt2Tensors& t, Visit&& visit) {
  visit(t.wpe);
  for (const Gpt2Layer& l : t.layers) {
    for (const TensorView* v :
         {&l.ln1_w, &l.ln1_b, &l.attn_b, &l.proj_b, &l.ln2_w, &l.ln2_b, &l.fc_b, &l.fcproj_b})
      visit(*v);
  }
  visit(t.lnf_w), visit(t.lnf_b);
}
/// The same of a model's parts, in the same order.
template <class AnyTensor, class Layers, class Norm, class Visit>
void for_each_small(AnyTensor& positions, Layers& layers, Norm& final_norm, Visit&& visit) {
  visit(positions);
  for (auto& l : layers) {
    for (AnyTensor* tensor : {&l.ln1.weight, &l.ln1.bias, &l.qkv.bias, &l.proj.bias, &l.ln2.weight,
                              &l.ln2.bias, &l.fc.bias, &l.fcproj.bias})
      visit(*tensor);
  }
  visit(final_norm.weight), visit(final_norm.bias);
}

}  // namespace

// Packs one tensor after another and lets each one's pages go.
class ModelLoader {
 public:
  ModelLoader(const Gpt2Source& source, ExecContext& context, const LoadOptions& options)
      : source_(source), context_(context), options_(options) {}

  Result<Model> load() {
    const Gpt2Tensors& t = source_.tensors();
    Model model;
    model.config_ = source_.config();
    model.generation_ = source_.published_generation();
    model.end_ids_ = end_ids(model.config_, model.generation_);
    model.format_ = format_ =
        choose_format(options_, t.layers.empty() ? t.wte.dtype : t.layers[0].fc_w.dtype);
    if (Result<void> fits = check_memory(model.config_); !fits) return fits.error();
    model.slab_bytes_ = slab_bytes(model.config_);
    if (!take_cached(model)) {
      model.slab_ = context_.backend().allocate(model.slab_bytes_);
      free_ = model.slab_.data();
    }

    model.layers_.resize(t.layers.size());
    std::vector<const TensorView*> views;
    for_each_small(t, [&](const TensorView& view) { views.push_back(&view); });
    for_each_small(model.positions_, model.layers_, model.final_norm_,
                   [&, next = views.begin()](Tensor& own) mutable { own = small(**next++); });
    for (std::size_t i = 0; i < t.layers.size(); ++i) {
      LayerWeights& layer = model.layers_[i];
      layer.qkv.weight = matrix(t.layers[i].attn_w);
      layer.proj.weight = matrix(t.layers[i].proj_w);
      layer.fc.weight = matrix(t.layers[i].fc_w);
      layer.fcproj.weight = matrix(t.layers[i].fcproj_w);
    }
    // Last, since little of them is mapped at a time: the peak of memory is little more than the weights.
    model.embedding_ = rows_as_columns(t.wte);
    if (t.lm_head.data != nullptr) model.head_ = rows_as_columns(t.lm_head);
    if (options_.progress) options_.progress(1.0);
    return model;
  }

 private:
  static constexpr std::int64_t kColumnsAtOnce = 1024;  // a multiple of every panel

  /// All packed matrices back to back.
  std::size_t slab_bytes(const ModelConfig& c) const {
    const auto bytes = [&](std::int64_t k, std::int64_t n) { return packed_nbytes(context_, k, n, format_); };
    const std::size_t layer = bytes(c.n_embd, 3 * c.n_embd) + bytes(c.n_embd, c.n_embd) +
                              bytes(c.n_embd, c.inner()) + bytes(c.inner(), c.n_embd);
    return bytes(c.n_embd, c.vocab_size) * (c.head == Head::tied ? 1 : 2) +
           static_cast<std::size_t>(c.n_layer) * layer;
  }

  Result<void> check_memory(const ModelConfig& c) const {
    std::uint64_t total = slab_bytes(c);  // Model::nbytes() to be
    for_each_small(source_.tensors(), [&](const TensorView& view) { total += small_nbytes(view); });
    if (options_.max_memory == 0 || total <= options_.max_memory) return {};
    return Error(Code::out_of_memory, "model: weights need " + std::to_string(total) + " bytes as " +
                                          std::string(weight_format_name(format_)) + ", but the limit is " +
                                          std::to_string(options_.max_memory));
  }

  /// Maps the packed weights of an earlier load, if there are such.
  bool take_cached(Model& model) {
    if (options_.packed_cache.empty() || context_.device() != Device::cpu) return false;
    model.cache_folder_ = options_.packed_cache;
    model.cache_key_ = PackedCacheKey::of(source_.files(), model.config_, format_, context_.isa());
    auto file = open_packed_cache(options_.packed_cache, *model.cache_key_, model.slab_bytes_);
    std::size_t small = 0;
    for_each_small(source_.tensors(), [&](const TensorView& view) { small += cached_nbytes(view); });
    if (!file || file->small.size() != small) return false;
    cached_matrix_ = file->slab.data();
    cached_small_ = file->small.data();
    model.cached_ = std::move(file->map);
    return true;
  }

  /// A matrix of a linear layer in either layout of files.
  PackedMatrix matrix(const TensorView& w) {
    MatrixSource m{w.data, w.dtype, w.shape[0], w.shape[1], w.stride[0], w.stride[1]};
    if (source_.tensors().layout == MatrixLayout::out_in) {
      std::swap(m.k, m.n);
      std::swap(m.k_stride, m.n_stride);
    }
    return packed(w, m);
  }
  /// An embedding (V,C) as the matrix (C,V) that a head multiplies with.
  PackedMatrix rows_as_columns(const TensorView& w) {
    return packed(w, {w.data, w.dtype, w.shape[1], w.shape[0], w.stride[1], w.stride[0]});
  }
  PackedMatrix packed(const TensorView& w, const MatrixSource& m) {
    if (cached_matrix_ != nullptr) {
      PackedMatrix whole = packed_at(context_, cached_matrix_, m.k, m.n, format_);
      cached_matrix_ += whole.bytes;
      return whole;
    }
    const std::int64_t at_once = m.k_stride == 1 ? kColumnsAtOnce : m.n;
    PackedMatrix whole = pack_columns(w, m, 0, std::min(m.n, at_once));
    for (std::int64_t n = whole.n; n < m.n; n += at_once) {
      whole.bytes += pack_columns(w, m, n, std::min(m.n - n, at_once)).bytes;
    }
    whole.n = m.n;
    finish(w);
    return whole;
  }
  /// Columns [begin, begin + count). Where a column's elements lie side by side in the file (an embedding)
  /// its pages go at once: of a vocabulary in f32 that is more memory than int8 weights take in all.
  PackedMatrix pack_columns(const TensorView& w, MatrixSource m, std::int64_t begin, std::int64_t count) {
    const auto element = static_cast<std::int64_t>(dtype_size(m.dtype));
    m.data = static_cast<const std::byte*>(m.data) + begin * m.n_stride * element;
    m.n = count;
    PackedMatrix part = pack(context_, m, format_, free_);
    free_ += part.bytes;
    if (m.k_stride == 1) {
      TensorView read = w;
      read.data = const_cast<void*>(m.data);
      read.shape[0] = count;
      source_.release(read);
    }
    return part;
  }

  Tensor small(const TensorView& view) {
    if (cached_small_ != nullptr) {
      if (view.data == nullptr) return {};
      Tensor tensor(DType::f32, std::span(view.shape.data(), view.rank));
      std::memcpy(tensor.view().data, cached_small_, tensor.view().nbytes());
      cached_small_ += cached_nbytes(view);
      return tensor;
    }
    Tensor tensor = to_f32(view);
    finish(view);
    return context_.device() == Device::cpu ? std::move(tensor) : on_device(tensor.view());
  }
  Tensor on_device(const TensorView& view) {
    if (view.data == nullptr) return {};
    Tensor tensor(context_.backend().allocate(view.nbytes()), view.dtype,
                  std::span(view.shape.data(), view.rank));
    context_.backend().copy_in(tensor.view().data, view.data, view.nbytes());
    return tensor;
  }

  void finish(const TensorView& view) {
    if (view.data == nullptr) return;
    source_.release(view);
    done_ += view.nbytes();
    if (options_.progress)
      options_.progress(static_cast<double>(done_) / static_cast<double>(source_.tensor_bytes()));
  }

  const Gpt2Source& source_;
  ExecContext& context_;
  const LoadOptions& options_;
  const std::byte *cached_matrix_ = nullptr, *cached_small_ = nullptr;  // what is left of a cache file
  WeightFormat format_ = WeightFormat::f32;
  std::byte* free_ = nullptr;  // what is left of the slab
  std::uint64_t done_ = 0;
};

Result<Model> Model::load(const std::filesystem::path& path, ExecContext& context,
                          const LoadOptions& options) {
  OpenOptions open;
  open.override = options.config;
  open.max_memory = options.max_memory;
  Result<Gpt2Source> source = Gpt2Source::open(path, open);
  if (!source) return source.error();
  try {
    return ModelLoader(*source, context, options).load();
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(Code::out_of_memory, "model: no memory to load " + path.string());
  }
}

Result<void> Model::write_packed_cache() const {
  if (!cache_key_) {
    return Error(Code::usage,
                 "model: write_packed_cache: expected a load with packed_cache on the CPU, got " +
                     (device() == Device::cpu ? std::string("one without")
                                              : "one on " + std::string(device_name(device()))));
  }
  std::vector<std::byte> small;
  for_each_small(positions_, layers_, final_norm_, [&](const Tensor& tensor) {
    const TensorView view = tensor.view();
    const std::size_t begin = small.size();
    small.resize(begin + cached_nbytes(view));
    if (view.data != nullptr) std::memcpy(small.data() + begin, view.data, view.nbytes());
  });
  return inkling::write_packed_cache(cache_folder_, *cache_key_, {layers_[0].qkv.weight.data, slab_bytes_},
                                     small);
}

std::optional<std::int32_t> Model::first_id() const noexcept {
  const auto& stated = generation_.bos_token_id ? generation_.bos_token_id : config_.bos_token_id;
  if (stated) return static_cast<std::int32_t>(*stated);
  return end_ids_.empty() ? std::nullopt : std::optional(end_ids_.front());
}

std::uint64_t Model::nbytes() const noexcept {
  std::uint64_t total = slab_bytes_;
  for_each_small(positions_, layers_, final_norm_, [&](const Tensor& tensor) { total += tensor.nbytes(); });
  return total;
}

std::vector<MemoryUse> Model::memory_report() const {
  std::vector<MemoryUse> uses;
  const auto matrices = [&](std::string_view name, const PackedMatrix& m, std::size_t count) {
    uses.push_back({name, static_cast<std::int64_t>(count), {m.k, m.n}, m.format, m.bytes * count});
  };
  matrices("embedding", embedding_, 1);
  if (head_) matrices("head", *head_, 1);
  const TensorView positions = positions_.view();
  uses.push_back(
      {"positions", 1, {positions.shape[0], positions.shape[1]}, WeightFormat::f32, positions_.nbytes()});
  if (!layers_.empty()) {
    matrices("attention_qkv", layers_[0].qkv.weight, layers_.size());
    matrices("attention_projection", layers_[0].proj.weight, layers_.size());
    matrices("mlp_up", layers_[0].fc.weight, layers_.size());
    matrices("mlp_down", layers_[0].fcproj.weight, layers_.size());
  }
  MemoryUse rest{"norms_and_biases"};
  for_each_small(positions_, layers_, final_norm_, [&](const Tensor& tensor) {
    if (&tensor == &positions_ || tensor.nbytes() == 0) return;
    ++rest.count;
    rest.bytes += tensor.nbytes();
  });
  uses.push_back(std::move(rest));
  return uses;
}

}  // namespace inkling
