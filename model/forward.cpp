#include "model/forward.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <string>
#include <tuple>

#include "attention/cached_attention.h"
#include "attention/heads.h"
#include "engine/ops.h"
#include "engine/profiler.h"
#include "model/fused_layers.h"
#include "model/fused_products.h"

namespace inkling {
namespace {

LayerNorm norm_of(const NormWeights& weights, float epsilon) {
  return {weights.weight.as<float>(), static_cast<const float*>(weights.bias.view().data), epsilon};
}

/// Outputs [begin, begin + count) of a matrix as a matrix: whole panels of the same memory.
PackedMatrix columns(const PackedMatrix& matrix, std::int64_t begin, std::int64_t count) {
  PackedMatrix part;
  part.format = matrix.format;
  part.device = matrix.device;
  part.isa = matrix.isa;
  part.k = matrix.k;
  part.n = count;
  part.panel = matrix.panel;
  part.panel_bytes = matrix.panel_bytes;
  part.data = matrix.panel_data(begin / matrix.panel);
  part.bytes = static_cast<std::size_t>(part.panels()) * matrix.panel_bytes;
  return part;
}

/// Columns [begin, begin + count) of rows.
TensorView columns(const TensorView& rows, std::int64_t begin, std::int64_t count) {
  TensorView view = rows;
  view.data = static_cast<std::byte*>(rows.data) + begin * static_cast<std::int64_t>(dtype_size(rows.dtype));
  view.shape[1] = count;
  return view;
}

/// The first `count` rows.
TensorView first(const TensorView& rows, std::int64_t count) {
  TensorView view = rows;
  view.shape[0] = count;
  return view;
}

}  // namespace

// The activations of a step. R ≤ N rows are wanted; the last layer works on those alone.
struct Forward::Views {
  TensorView x;         // (N,C) the residual stream
  TensorView qkv;       // (N,3C)
  TensorView attended;  // (N,C)
  TensorView wide;      // (N,I)
  TensorView chosen;    // (R,C) the residual stream of the wanted rows
  TensorView queries;   // (R,C) theirs, in the last layer
};

Forward::Forward(const Model& model, ExecContext& context)
    : model_(model), context_(context), recorder_(context.backend().recorder()) {
  require(model.device() == context.device(), Code::usage, [&] {
    return "forward: context: expected the device of the model, " + std::string(device_name(model.device())) +
           ", got " + std::string(device_name(context.device()));
  });
  require(model.isa() == context.isa(), Code::usage, [&] {
    return "forward: context: expected " + std::string(isa_name(model.isa())) +
           ", for which the model is packed, got " + std::string(isa_name(context.isa()));
  });
}

KvShape Forward::kv_shape(DType dtype) const {
  const ModelConfig& c = model_.config();
  return {static_cast<int>(c.n_layer), static_cast<int>(c.n_head), static_cast<int>(c.head_size()), dtype};
}

void Forward::plan(std::int64_t tokens, std::int64_t wanted, Views& views) {
  const ModelConfig& c = model_.config();
  plan_.clear();
  const std::size_t x = plan_.add("residual stream", tokens, c.n_embd);
  const DType half = context_.backend().activation_dtype(model_.format());
  const std::size_t chosen = plan_.add("wanted rows", wanted, c.n_embd);
  const std::size_t queries = plan_.add("wanted queries", wanted, c.n_embd, half);
  const std::size_t qkv = plan_.add("queries, keys, values", tokens, 3 * c.n_embd, half);
  const std::size_t attended = plan_.add("attention", tokens, c.n_embd, half);
  plan_.reuse(qkv);  // attention is over and in the stream when the MLP begins
  const std::size_t wide = plan_.add("mlp", tokens, c.inner(), half);
  arena_.use(plan_, context_.backend());
  views = {arena_.view(x),    arena_.view(qkv),    arena_.view(attended),
           arena_.view(wide), arena_.view(chosen), arena_.view(queries)};
}

void Forward::run(const PackedBatch& batch) {
  const ProfileRange range(context_, "forward");
  batch.validate(model_.config().vocab_size, model_.config().n_positions);
  wanted_ = 0;  // until there are rows to ask for: a step that throws leaves none
  logits_made_ = false;
  wanted_rows_.clear();
  for (std::size_t b = 0; b < batch.sequences.size(); ++b) {
    const std::int32_t count = batch.cu_wanted[b + 1] - batch.cu_wanted[b];
    for (std::int32_t i = count; i > 0; --i) wanted_rows_.push_back(batch.cu_seqlens[b + 1] - i);
  }
  if (batch.tokens() == 0) return;
  if (!run_fused(batch)) run_ops(batch);
  wanted_ = batch.wanted();
  for (std::size_t b = 0; b < batch.sequences.size(); ++b) {
    batch.sequences[b]->advance(batch.cu_seqlens[b + 1] - batch.cu_seqlens[b]);
  }
}

// A device may have one op for all of a step of decoding, its logits included.
bool Forward::run_fused(const PackedBatch& batch) {
  FusedLayersArgs args{model_, batch, {}};
  if (!is_decoding(batch) || !fused_layers_refusal(context_, args).empty()) return false;
  args.logits = logit_rows(batch.wanted());
  fused_layers(context_, args);
  logits_made_ = true;
  return true;
}

void Forward::run_ops(const PackedBatch& batch) {
  Views views;
  plan(batch.tokens(), batch.wanted(), views);
  place_lists(batch);
  const auto ops = [&] { layers(batch, views); };
  // Whoever watches single ops wants to see them begin, one by one.
  if (observer_ || context_.profiler() != nullptr) {
    ops();
  } else {
    repeat(batch, views, std::ref(ops));
  }
  hidden_ = views.chosen;
}

// A step of decoding comes back with the same shapes, so do the chunks of a long prompt and prompts of one
// length.
void Forward::repeat(const PackedBatch& batch, const Views& views, const std::function<void()>& ops) {
  const KvShape cache = kv_shape(context_.backend().activation_dtype(model_.format()));
  const auto begin = [&](std::span<const std::int32_t> cu_q) {
    return begin_cached_step(context_,
                             {model_.config().n_head, cache, batch.cu_seqlens, cu_q, batch.sequences});
  };
  const CachedStep all = begin(batch.cu_seqlens);
  const CachedStep last = batch.wanted() == batch.tokens() ? all : begin(batch.cu_wanted);
  if (!all.repeats || !last.repeats) return ops();
  const auto address = [](const void* p) {
    return static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(p));
  };
  std::array<std::uint64_t, 6 + 2 * std::tuple_size_v<decltype(CachedStep::key)>> key{
      static_cast<std::uint64_t>(batch.tokens()),
      static_cast<std::uint64_t>(batch.wanted()),
      address(views.x.data),
      address(lists_.ids.data()),
      address(lists_.positions.data()),
      address(lists_.wanted.data())};
  std::ranges::copy(last.key, std::ranges::copy(all.key, key.begin() + 6).out);
  recorder_->run(key, ops);
}

// Each row brings one token, and the ops of its layers may be one.
bool Forward::is_decoding(const PackedBatch& batch) const {
  return batch.wanted() == batch.tokens() && !observer_ && context_.profiler() == nullptr;
}

void Forward::place_lists(const PackedBatch& batch) {
  Backend& backend = context_.backend();
  lists_ = {batch.ids, batch.positions, wanted_rows_};
  if (batch.drawn.size() == 1 && batch.drawn[0].count == batch.tokens()) {  // all of them, in order
    placed_.place(backend, {&lists_.positions, &lists_.wanted});
    lists_.ids = {batch.drawn[0].ids, batch.ids.size()};
    return;
  }
  if (!batch.drawn.empty()) lists_.ids = ids_ = batch.ids;
  placed_.place(backend, {&lists_.ids, &lists_.positions, &lists_.wanted});
  std::int32_t* const copied = placed_.copy_of(lists_.ids);
  std::int32_t* const ids = copied != nullptr ? copied : ids_.data();
  for (const PackedBatch::Drawn& drawn : batch.drawn) {
    backend.copy(ids + drawn.first, drawn.ids, static_cast<std::size_t>(drawn.count) * sizeof(std::int32_t));
  }
}

void Forward::layers(const PackedBatch& batch, const Views& views) {
  embed(context_,
        {lists_.ids, lists_.positions, &model_.embedding(), {}, model_.positions().view(), views.x});
  show("embedding", -1, views.x);
  if (is_decoding(batch) && fused_products_refusal(context_, model_, batch.tokens()).empty()) {
    return layers_by_products(batch, views);
  }
  for (int i = 0; i + 1 < model_.config().n_layer; ++i) layer(i, batch, views);
  last_layer(batch, views);
}

// Two ops a layer. All rows are wanted.
void Forward::layers_by_products(const PackedBatch& batch, const Views& v) {
  const int last = static_cast<int>(model_.config().n_layer) - 1;
  for (int i = -1; i <= last; ++i) {
    if (i >= 0) attend(i, batch, v);
    fused_products(context_, {model_, i, v.attended, v.x, i == last ? v.chosen : v.x, v.qkv});
  }
}

void Forward::layer(int index, const PackedBatch& batch, const Views& v) {
  const ModelConfig& c = model_.config();
  const LayerWeights& w = model_.layers()[static_cast<std::size_t>(index)];
  const float eps = c.layer_norm_epsilon;

  linear(context_,
         {v.x, {}, norm_of(w.ln1, eps), &w.qkv.weight, w.qkv.bias_data(), Activation::none, {}, v.qkv});
  show("qkv", index, v.qkv);
  attend(index, batch, v);
  show("attention", index, v.attended);
  linear(context_, {v.attended, {}, {}, &w.proj.weight, w.proj.bias_data(), Activation::none, v.x, v.x});
  show("residual", index, v.x);
  linear(context_, {v.x, {}, norm_of(w.ln2, eps), &w.fc.weight, w.fc.bias_data(), c.activation, {}, v.wide});
  show("mlp", index, v.wide);
  linear(context_, {v.wide, {}, {}, &w.fcproj.weight, w.fcproj.bias_data(), Activation::none, v.x, v.x});
  show("block", index, v.x);
}

void Forward::attend(int index, const PackedBatch& batch, const Views& v) {
  const ModelConfig& c = model_.config();
  const std::int64_t heads = c.n_head, dim = c.head_size();
  cached_attention(context_, {index, heads_of(v.qkv, 0, heads, dim), heads_of(v.qkv, c.n_embd, heads, dim),
                              heads_of(v.qkv, 2 * c.n_embd, heads, dim), batch.cu_seqlens, batch.cu_seqlens,
                              batch.sequences, 1.0f / std::sqrt(static_cast<float>(dim)), v.attended});
}

// Keys and values of all tokens, and queries of the wanted rows only, where the panels of the matrix can be
// cut between the two.
void Forward::last_attention(const PackedBatch& batch, const Views& v) {
  const ModelConfig& c = model_.config();
  const LayerWeights& w = model_.layers().back();
  const std::int64_t heads = c.n_head, dim = c.head_size(), width = c.n_embd, wanted = batch.wanted();
  const LayerNorm norm = norm_of(w.ln1, c.layer_norm_epsilon);
  const int index = static_cast<int>(c.n_layer) - 1;
  const float* bias = w.qkv.bias_data();

  TensorView queries = v.qkv;
  if (wanted < batch.tokens() && width % w.qkv.weight.panel == 0) {
    const PackedMatrix kv = columns(w.qkv.weight, width, 2 * width), q = columns(w.qkv.weight, 0, width);
    const float* kv_bias = bias == nullptr ? nullptr : bias + width;
    linear(context_, {v.x, {}, norm, &kv, kv_bias, Activation::none, {}, columns(v.qkv, width, 2 * width)});
    queries = v.queries;
    if (wanted > 0) linear(context_, {v.x, lists_.wanted, norm, &q, bias, Activation::none, {}, queries});
  } else {
    linear(context_, {v.x, {}, norm, &w.qkv.weight, bias, Activation::none, {}, v.qkv});
    if (wanted == batch.tokens()) show("qkv", index, v.qkv);
  }
  cached_attention(
      context_, {index, heads_of(queries, 0, heads, dim), heads_of(v.qkv, width, heads, dim),
                 heads_of(v.qkv, 2 * width, heads, dim), batch.cu_seqlens, batch.cu_wanted, batch.sequences,
                 1.0f / std::sqrt(static_cast<float>(dim)), first(v.attended, wanted)});
}

// layer() for the wanted rows alone, after the keys and values of all. With no row wanted (a chunk of a
// longer prompt) those are the whole layer.
void Forward::last_layer(const PackedBatch& batch, const Views& v) {
  const ModelConfig& c = model_.config();
  const LayerWeights& w = model_.layers().back();
  const std::int64_t wanted = batch.wanted(), index = c.n_layer - 1;
  const TensorView attended = first(v.attended, wanted), wide = first(v.wide, wanted);

  last_attention(batch, v);
  if (wanted == 0) return;
  show("attention", index, attended);
  // The wanted rows of the stream; in decode they are all rows and nothing moves.
  TensorView x = v.x;
  if (wanted != batch.tokens()) {
    x = v.chosen;
    layer_norm(context_, {v.x, lists_.wanted, {}, x});
  }
  linear(context_, {attended, {}, {}, &w.proj.weight, w.proj.bias_data(), Activation::none, x, v.chosen});
  show("residual", index, v.chosen);
  linear(context_, {v.chosen,
                    {},
                    norm_of(w.ln2, c.layer_norm_epsilon),
                    &w.fc.weight,
                    w.fc.bias_data(),
                    c.activation,
                    {},
                    wide});
  show("mlp", index, wide);
  linear(context_,
         {wide, {}, {}, &w.fcproj.weight, w.fcproj.bias_data(), Activation::none, v.chosen, v.chosen});
  show("block", index, v.chosen);
}

TensorView Forward::logit_rows(std::int64_t count) {
  logits_plan_.clear();
  const std::size_t out = logits_plan_.add("logits", count, model_.config().vocab_size);
  logits_arena_.use(logits_plan_, context_.backend());
  return logits_arena_.view(out);
}

TensorView Forward::logits(std::int64_t begin, std::int64_t count) {
  require(begin >= 0 && count >= 0 && begin + count <= wanted_, Code::usage, [&] {
    return "forward: logits: expected rows within the " + std::to_string(wanted_) + " wanted, got [" +
           std::to_string(begin) + ", " + std::to_string(begin + count) + ")";
  });
  const ProfileRange range(context_, "logits");
  if (logits_made_) {
    TensorView made = logit_rows(wanted_);
    made.data = made.as<float>() + begin * made.stride[0];
    made.shape[0] = count;
    return made;
  }
  const TensorView view = logit_rows(count);
  if (count == 0) return view;
  TensorView rows = hidden_;
  rows.data = static_cast<float*>(rows.data) + begin * rows.stride[0];
  rows.shape[0] = count;
  linear(context_, {rows,
                    {},
                    norm_of(model_.final_norm(), model_.config().layer_norm_epsilon),
                    &model_.head(),
                    nullptr,
                    Activation::none,
                    {},
                    view});
  return view;
}

DType Forward::default_kv_dtype() const noexcept {
  if (context_.device() == Device::cuda) return context_.backend().activation_dtype(model_.format());
  return model_.format() == WeightFormat::f32 ? DType::f32 : DType::bf16;
}

Forward::TopRows Forward::top(std::int64_t k) {
  const auto count = static_cast<std::size_t>(wanted_ * k);
  const std::size_t bytes = count * (sizeof(float) + sizeof(std::int32_t));
  if (device_top_.size() < bytes) device_top_ = context_.backend().allocate(std::bit_ceil(bytes));
  if (host_top_.size() < bytes) host_top_ = context_.backend().allocate_on_host(std::bit_ceil(bytes));
  const TensorView values(device_top_.data(), DType::f32, {wanted_, k});
  inkling::top(context_, {logits(), values, reinterpret_cast<std::int32_t*>(device_top_.data()) + count});
  context_.backend().copy_out(host_top_.data(), device_top_.data(), bytes);
  const auto* ids = reinterpret_cast<const std::int32_t*>(host_top_.data()) + count;
  return {{reinterpret_cast<const float*>(host_top_.data()), count}, {ids, count}};
}

TensorView Forward::on_host(const TensorView& rows) {
  if (context_.device() == Device::cpu) return rows;
  const std::size_t bytes = static_cast<std::size_t>(rows.shape[0] * rows.stride[0]) * sizeof(float);
  if (host_rows_.size() < bytes) host_rows_ = context_.backend().allocate_on_host(bytes);
  context_.backend().copy_out(host_rows_.data(), rows.data, bytes);
  TensorView copy = rows;
  copy.data = host_rows_.data();
  return copy;
}

}  // namespace inkling
