#include "model/forward.h"

#include <cmath>
#include <string>

#include "attention/cached_attention.h"
#include "engine/ops.h"

namespace inkling {
namespace {

LayerNorm norm_of(const NormWeights& weights, float epsilon) {
  return {weights.weight.as<float>(), static_cast<const float*>(weights.bias.view().data), epsilon};
}

/// Columns [begin, begin + heads · dim) of rows as (N, H, D).
TensorView heads_of(const TensorView& rows, std::int64_t begin, std::int64_t heads, std::int64_t dim) {
  TensorView view(static_cast<float*>(rows.data) + begin, DType::f32, {rows.shape[0], heads, dim});
  view.stride = {rows.stride[0], dim, 1, 0};
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
};

Forward::Forward(const Model& model, ExecContext& context) : model_(model), context_(context) {
  require(model.isa() == context.isa(), Code::usage, [&] {
    return "forward: context: expected " + std::string(isa_name(model.isa())) +
           ", for which the model is packed, got " + std::string(isa_name(context.isa()));
  });
}

KvShape Forward::kv_shape(DType dtype) const {
  const ModelConfig& c = model_.config();
  return {static_cast<int>(c.n_layer), static_cast<int>(c.n_head), static_cast<int>(c.head_size()), dtype};
}

void Forward::check(const PackedBatch& batch) const {
  const ModelConfig& c = model_.config();
  for (std::size_t i = 0; i < batch.ids.size(); ++i) {
    require(batch.ids[i] >= 0 && batch.ids[i] < c.vocab_size, Code::usage, [&] {
      return "forward: ids: expected ids below " + std::to_string(c.vocab_size) + ", got " +
             std::to_string(batch.ids[i]);
    });
    require(batch.positions[i] >= 0 && batch.positions[i] < c.n_positions, Code::usage, [&] {
      return "forward: positions: the model has " + std::to_string(c.n_positions) +
             " positions, got a token at position " + std::to_string(batch.positions[i]);
    });
  }
}

void Forward::run(const PackedBatch& batch) {
  check(batch);
  const ModelConfig& c = model_.config();
  const std::int64_t n = batch.tokens(), wanted = batch.wanted();
  wanted_ = wanted;
  wanted_rows_.clear();
  for (std::size_t b = 0; b < batch.sequences.size(); ++b) {
    const std::int32_t count = batch.cu_wanted[b + 1] - batch.cu_wanted[b];
    for (std::int32_t i = count; i > 0; --i) wanted_rows_.push_back(batch.cu_seqlens[b + 1] - i);
  }
  if (n == 0) return;

  plan_.clear();
  const std::size_t x = plan_.add("residual stream", n, c.n_embd);
  const std::size_t qkv = plan_.add("queries, keys, values", n, 3 * c.n_embd);
  const std::size_t attended = plan_.add("attention", n, c.n_embd);
  const std::size_t wide = plan_.add("mlp", n, c.inner());
  const std::size_t chosen = plan_.add("wanted rows", wanted, c.n_embd);
  arena_.use(plan_);
  const Views views{arena_.view(x), arena_.view(qkv), arena_.view(attended), arena_.view(wide),
                    arena_.view(chosen)};

  embed(context_, {batch.ids, batch.positions, &model_.embedding(), model_.positions().view(), views.x});
  for (int i = 0; i + 1 < c.n_layer; ++i) layer(i, batch, views);
  last_layer(batch, views);
  hidden_ = views.chosen;
  for (std::size_t b = 0; b < batch.sequences.size(); ++b) {
    batch.sequences[b]->advance(batch.cu_seqlens[b + 1] - batch.cu_seqlens[b]);
  }
}

void Forward::layer(int index, const PackedBatch& batch, const Views& v) {
  const ModelConfig& c = model_.config();
  const LayerWeights& w = model_.layers()[static_cast<std::size_t>(index)];
  const std::int64_t heads = c.n_head, dim = c.head_size();
  const float eps = c.layer_norm_epsilon;

  linear(context_,
         {v.x, {}, norm_of(w.ln1, eps), &w.qkv.weight, w.qkv.bias_data(), Activation::none, {}, v.qkv});
  cached_attention(context_, {index, heads_of(v.qkv, 0, heads, dim), heads_of(v.qkv, c.n_embd, heads, dim),
                              heads_of(v.qkv, 2 * c.n_embd, heads, dim), batch.cu_seqlens, batch.cu_seqlens,
                              batch.sequences, 1.0f / std::sqrt(static_cast<float>(dim)), v.attended});
  linear(context_, {v.attended, {}, {}, &w.proj.weight, w.proj.bias_data(), Activation::none, v.x, v.x});
  linear(context_, {v.x, {}, norm_of(w.ln2, eps), &w.fc.weight, w.fc.bias_data(), c.activation, {}, v.wide});
  linear(context_, {v.wide, {}, {}, &w.fcproj.weight, w.fcproj.bias_data(), Activation::none, v.x, v.x});
}

// Keys and values of all tokens, and everything else of the wanted rows only. With no row wanted (a chunk of
// a longer prompt) that is the whole layer.
void Forward::last_layer(const PackedBatch& batch, const Views& v) {
  const ModelConfig& c = model_.config();
  const LayerWeights& w = model_.layers().back();
  const std::int64_t heads = c.n_head, dim = c.head_size(), wanted = batch.wanted();
  const float eps = c.layer_norm_epsilon;
  const auto first = [&](const TensorView& view) {
    TensorView rows = view;
    rows.shape[0] = wanted;
    return rows;
  };
  const TensorView attended = first(v.attended), wide = first(v.wide);

  linear(context_,
         {v.x, {}, norm_of(w.ln1, eps), &w.qkv.weight, w.qkv.bias_data(), Activation::none, {}, v.qkv});
  cached_attention(context_, {static_cast<int>(c.n_layer) - 1, heads_of(v.qkv, 0, heads, dim),
                              heads_of(v.qkv, c.n_embd, heads, dim),
                              heads_of(v.qkv, 2 * c.n_embd, heads, dim), batch.cu_seqlens, batch.cu_wanted,
                              batch.sequences, 1.0f / std::sqrt(static_cast<float>(dim)), attended});
  if (wanted == 0) return;
  // The wanted rows of the stream; in decode they are all rows and nothing moves.
  TensorView x = v.x;
  if (wanted != batch.tokens()) {
    x = v.chosen;
    layer_norm(context_, {v.x, wanted_rows_, {}, x});
  }
  linear(context_, {attended, {}, {}, &w.proj.weight, w.proj.bias_data(), Activation::none, x, v.chosen});
  linear(context_,
         {v.chosen, {}, norm_of(w.ln2, eps), &w.fc.weight, w.fc.bias_data(), c.activation, {}, wide});
  linear(context_,
         {wide, {}, {}, &w.fcproj.weight, w.fcproj.bias_data(), Activation::none, v.chosen, v.chosen});
}

TensorView Forward::logits(std::int64_t begin, std::int64_t count) {
  require(begin >= 0 && count >= 0 && begin + count <= wanted_, Code::usage, [&] {
    return "forward: logits: expected rows within the " + std::to_string(wanted_) + " wanted, got [" +
           std::to_string(begin) + ", " + std::to_string(begin + count) + ")";
  });
  logits_plan_.clear();
  const std::size_t out = logits_plan_.add("logits", count, model_.config().vocab_size);
  logits_arena_.use(logits_plan_);
  const TensorView view = logits_arena_.view(out);
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

}  // namespace inkling
