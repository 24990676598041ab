#include "model/train/training_pass.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include "attention/qkv.h"
#include "engine/ops.h"
#include "engine/profiler.h"
#include "engine/training_ops.h"

namespace inkling {
namespace {

// Logits of a block of rows are the largest activation: 64 MiB of them, or a few rows. A GPU wants thousands
// of rows at a time.
std::int64_t most_logits(Device device) {
  return std::int64_t{1} << (device == Device::cpu ? 24 : 29);
}
constexpr std::int64_t kFewestRows = 64;

const float* numbers(const TensorView& view) {
  return static_cast<const float*>(view.data);
}
float* mutable_numbers(const TensorView& view) {
  return static_cast<float*>(view.data);
}

TensorView rows_of(const TensorView& rows, std::int64_t begin, std::int64_t count) {
  TensorView view = rows;
  view.data = static_cast<std::byte*>(rows.data) +
              begin * rows.stride[0] * static_cast<std::int64_t>(dtype_size(rows.dtype));
  view.shape[0] = count;
  return view;
}

// A table of rows (V,C) as the matrix (C,V) that a head multiplies with.
TensorView as_head(const TensorView& table) {
  TensorView view = table;
  std::swap(view.shape[0], view.shape[1]);
  std::swap(view.stride[0], view.stride[1]);
  return view;
}

}  // namespace

TrainingPass::TrainingPass(ExecContext& context, const ModelConfig& config, const Gpt2Tensors& parameters,
                           const Gpt2Tensors& gradients, WeightFormat compute)
    : context_(context),
      config_(config),
      parameters_(parameters),
      gradients_(gradients),
      compute_(compute),
      half_(context.backend().activation_dtype(compute)) {
  require(compute == WeightFormat::f32 || compute == WeightFormat::bf16, Code::usage, [&] {
    return "training_pass: compute: expected f32 or bf16, got " + std::string(weight_format_name(compute));
  });
}

double TrainingPass::loss(const TrainingBatch& batch) {
  return run(batch, 0.0f, {});
}

double TrainingPass::accumulate(const TrainingBatch& batch, float scale, const PassDropout& dropout) {
  return run(batch, scale, dropout);
}

double TrainingPass::run(const TrainingBatch& batch, float scale, const PassDropout& dropout) {
  batch.validate(config_.vocab_size, config_.n_positions);
  if (batch.tokens() == 0) return 0.0;
  batch_ = &batch;
  dropout_ = dropout;
  plan(batch.tokens(), scale != 0.0f);
  lists_ = {batch.ids, batch.positions, batch.targets, batch.cu_seqlens};
  placed_.place(context_.backend(), {&lists_.ids, &lists_.positions, &lists_.targets, &lists_.cu_seqlens});
  {
    const ProfileRange range(context_, "forward");
    forward();
  }
  {
    const ProfileRange range(context_, "head and loss");
    head(batch.tokens(), scale);
  }
  if (scale != 0.0f) {
    const ProfileRange range(context_, "backward");
    backward();
  }
  batch_ = nullptr;
  return total_loss();
}

// In evaluation every layer writes to the same memory.
void TrainingPass::plan(std::int64_t tokens, bool backward) {
  const std::int64_t c = config_.n_embd, inner = config_.inner(), heads = config_.n_head;
  const std::int64_t kept = backward ? config_.n_layer : 1, gradients = backward ? tokens : 0;
  const std::int64_t rows =
      std::min(tokens, std::max(kFewestRows, most_logits(context_.device()) / parameters_.vocab_rows));
  const std::int64_t blocks = (tokens + rows - 1) / rows;

  plan_.clear();
  struct LayerEntries {
    std::size_t x, qkv, attended, lse, middle, wide;
  };
  std::vector<LayerEntries> layers;
  for (std::int64_t i = 0; i < kept; ++i) {
    layers.push_back({plan_.add("input of attention", tokens, c),
                      plan_.add("queries, keys, values", tokens, 3 * c, half_),
                      plan_.add("attention", tokens, c, half_), plan_.add("log-sum-exp", heads, tokens),
                      plan_.add("input of the mlp", tokens, c), plan_.add("mlp", tokens, inner, half_)});
  }
  const std::size_t x = plan_.add("residual stream", tokens, c);
  const std::size_t normed = plan_.add("normed", tokens, c, half_);
  const std::size_t activated = plan_.add("activated", tokens, inner, half_);
  const std::size_t dx = plan_.add("gradient of the residual stream", gradients, c);
  const std::size_t dbranch = plan_.add("gradient of a branch", gradients, c, half_);
  const std::size_t dnormed = plan_.add("gradient of a norm's output", gradients, c, half_);
  const std::size_t dattended = plan_.add("gradient of attention", gradients, c, half_);
  const std::size_t dqkv = plan_.add("gradient of queries, keys, values", gradients, 3 * c, half_);
  const std::size_t dwide = plan_.add("gradient of the mlp", gradients, inner, half_);
  const std::size_t logits =
      plan_.add("logits", (tokens + blocks - 1) / blocks, parameters_.vocab_rows, half_);
  const std::size_t losses = plan_.add("losses", 1, tokens);
  arena_.use(plan_, context_.backend());

  views_.layers.clear();
  for (std::int64_t i = 0; i < config_.n_layer; ++i) {
    const LayerEntries& l = layers[static_cast<std::size_t>(i % kept)];
    views_.layers.push_back({arena_.view(l.x), arena_.view(l.qkv), arena_.view(l.attended),
                             arena_.view(l.lse), arena_.view(l.middle), arena_.view(l.wide)});
  }
  views_.x = arena_.view(x);
  views_.normed = arena_.view(normed);
  views_.activated = arena_.view(activated);
  views_.dx = arena_.view(dx);
  views_.dbranch = arena_.view(dbranch);
  views_.dnormed = arena_.view(dnormed);
  views_.dattended = arena_.view(dattended);
  views_.dqkv = arena_.view(dqkv);
  views_.dwide = arena_.view(dwide);
  views_.logits = arena_.view(logits);
  views_.losses = arena_.view(losses);
}

LayerNorm TrainingPass::norm_of(const TensorView& weight, const TensorView& bias) const {
  return {numbers(weight), numbers(bias), config_.layer_norm_epsilon};
}

// norm(x) · weight + bias; what else is wanted, the caller fills in.
LinearArgs TrainingPass::product(const TensorView& x, const LayerNorm& norm, const TensorView& weight,
                                 const TensorView& bias, const TensorView& out) const {
  LinearArgs args;
  args.x = x;
  args.norm = norm;
  args.matrix = weight;
  args.matrix_format = compute_;
  args.bias = numbers(bias);
  args.out = out;
  return args;
}

// stream + dropout(x · weight + bias), by the product itself where nothing is dropped.
void TrainingPass::add_branch(const TensorView& x, const TensorView& weight, const TensorView& bias,
                              const TensorView& stream, std::uint32_t mask, const TensorView& out) {
  LinearArgs args = product(x, {}, weight, bias, out);
  if (dropout_.p == 0.0f) args.residual = stream;
  linear(context_, args);
  if (dropout_.p > 0.0f) dropout(context_, dropout_args(out, mask, stream));
}

DropoutArgs TrainingPass::dropout_args(const TensorView& x, std::uint32_t mask,
                                       const TensorView& residual) const {
  return {x, lists_.cu_seqlens, dropout_.p, dropout_.seed, mask, residual};
}

// The gradient of a branch from that of the stream, as products want it: with p = 0 still rounded to half.
TensorView TrainingPass::branch_gradient(std::uint32_t mask) {
  if (dropout_.p == 0.0f && half_ == DType::f32) return views_.dx;
  DropoutArgs args = dropout_args(views_.dbranch, mask, {});
  args.from = views_.dx;
  dropout(context_, args);
  return views_.dbranch;
}

// Masks of a pass are numbered 0 … 2L: the embedding's, then each layer's two.
std::uint32_t TrainingPass::mask(std::size_t index) const {
  const std::size_t masks = 1 + 2 * views_.layers.size();
  return static_cast<std::uint32_t>(dropout_.pass * masks + index);
}

void TrainingPass::forward() {
  const TensorView& first = views_.layers.front().x;
  embed(context_, {lists_.ids, lists_.positions, nullptr, parameters_.wte, parameters_.wpe, first});
  dropout(context_, dropout_args(first, mask(0), {}));
  for (std::size_t i = 0; i < views_.layers.size(); ++i) {
    attention_forward(i);
    mlp_forward(i, i + 1 < views_.layers.size() ? views_.layers[i + 1].x : views_.x);
  }
}

SdpaArgs TrainingPass::attention_args(std::size_t layer) const {
  const LayerViews& v = views_.layers[layer];
  SdpaArgs args = attention_of(v.qkv, config_.n_head, batch_->cu_seqlens, v.attended);
  args.lse = v.lse;
  args.dropout = {dropout_.p, dropout_.seed, mask(1 + 2 * layer)};
  return args;
}

void TrainingPass::attention_forward(std::size_t layer) {
  const LayerViews& v = views_.layers[layer];
  const Gpt2Layer& w = parameters_.layers[layer];
  linear(context_, product(v.x, norm_of(w.ln1_w, w.ln1_b), w.attn_w, w.attn_b, v.qkv));
  sdpa(context_, attention_args(layer));
  add_branch(v.attended, w.proj_w, w.proj_b, v.x, mask(1 + 2 * layer), v.middle);
}

void TrainingPass::mlp_forward(std::size_t layer, const TensorView& out) {
  const LayerViews& v = views_.layers[layer];
  const Gpt2Layer& w = parameters_.layers[layer];
  LinearArgs up = product(v.middle, norm_of(w.ln2_w, w.ln2_b), w.fc_w, w.fc_b, views_.activated);
  up.activation = config_.activation;
  up.pre_activation = v.wide;
  linear(context_, up);
  add_branch(views_.activated, w.fcproj_w, w.fcproj_b, v.middle, mask(2 + 2 * layer), out);
}

// Losses, and with a scale the gradients of the head, of the last norm and of the stream. The logits of a
// block of rows become their own gradient in place. Products take the rows of zeros behind the table as well
// (parameters.h), the loss V columns: the others are zeros before and after it.
void TrainingPass::head(std::int64_t tokens, float scale) {
  const bool tied = parameters_.lm_head.data == nullptr;
  const TensorView table = rows_of(tied ? parameters_.wte : parameters_.lm_head, 0, parameters_.vocab_rows),
                   dtable = rows_of(tied ? gradients_.wte : gradients_.lm_head, 0, parameters_.vocab_rows);
  layer_norm(context_, {views_.x, {}, norm_of(parameters_.lnf_w, parameters_.lnf_b), views_.normed});
  const std::int64_t most = views_.logits.shape[0];
  for (std::int64_t begin = 0; begin < tokens; begin += most) {
    const std::int64_t count = std::min(most, tokens - begin);
    const TensorView logits = rows_of(views_.logits, 0, count), normed = rows_of(views_.normed, begin, count);
    linear(context_, product(normed, {}, as_head(table), {}, logits));
    const auto first = static_cast<std::size_t>(begin), rows = static_cast<std::size_t>(count);
    TensorView named = logits;
    named.shape[1] = config_.vocab_size;
    cross_entropy(
        context_,
        {named, lists_.targets.subspan(first, rows), scale, {views_.losses.as<float>() + first, rows}});
    if (scale == 0.0f) continue;
    LinearBackwardArgs input;  // of the head as a matrix (C,V)
    input.weight = as_head(table);
    input.dout = logits;
    input.dx = rows_of(views_.dnormed, begin, count);
    input.format = compute_;
    linear_backward(context_, input);
    LinearBackwardArgs weight;  // (V,C), the other way round: its rows are those of the table
    weight.x = logits;
    weight.dout = normed;
    weight.dweight = dtable;
    weight.format = compute_;
    linear_backward(context_, weight);
  }
  if (scale != 0.0f) {
    context_.backend().zero(
        views_.dx.data, static_cast<std::size_t>(views_.dx.shape[0] * views_.dx.stride[0]) * sizeof(float));
    norm_backward(views_.x, parameters_.lnf_w, gradients_.lnf_w, gradients_.lnf_b);
  }
}

// In f64, in the order of rows.
double TrainingPass::total_loss() {
  losses_.resize(static_cast<std::size_t>(views_.losses.shape[1]));
  context_.backend().copy_out(losses_.data(), views_.losses.data, losses_.size() * sizeof(float));
  double total = 0.0;
  for (const float loss : losses_) total += double{loss};
  return total;
}

// views_.dx is the gradient of the stream, from its end to its beginning.
void TrainingPass::backward() {
  for (std::size_t i = views_.layers.size(); i-- > 0;) {
    mlp_backward(i);
    attention_backward(i);
  }
  const TensorView dfirst = branch_gradient(mask(0));
  embed_backward(context_, {lists_.ids, lists_.positions, dfirst, gradients_.wte, gradients_.wpe});
}

// From dnormed, and adds to the stream's gradient.
void TrainingPass::norm_backward(const TensorView& x, const TensorView& weight, const TensorView& dweight,
                                 const TensorView& dbias) {
  layer_norm_backward(context_, {x, norm_of(weight, {}), views_.dnormed, views_.dx, mutable_numbers(dweight),
                                 mutable_numbers(dbias)});
}

void TrainingPass::linear_gradient(const TensorView& x, const TensorView& weight, const TensorView& dout,
                                   const TensorView& dx, const TensorView& dweight, const TensorView& dbias) {
  linear_backward(context_, {x, weight, dout, dx, dweight, mutable_numbers(dbias), compute_});
}

void TrainingPass::mlp_backward(std::size_t layer) {
  const LayerViews& v = views_.layers[layer];
  const Gpt2Layer &w = parameters_.layers[layer], &d = gradients_.layers[layer];
  const TensorView dy = branch_gradient(mask(2 + 2 * layer));
  linear_gradient({}, w.fcproj_w, dy, views_.dwide, {}, {});
  activate_backward(context_, {v.wide, config_.activation, views_.dwide, views_.activated});
  linear_gradient(views_.activated, {}, dy, {}, d.fcproj_w, d.fcproj_b);
  layer_norm(context_, {v.middle, {}, norm_of(w.ln2_w, w.ln2_b), views_.normed});
  linear_gradient(views_.normed, w.fc_w, views_.dwide, views_.dnormed, d.fc_w, d.fc_b);
  norm_backward(v.middle, w.ln2_w, d.ln2_w, d.ln2_b);
}

void TrainingPass::attention_backward(std::size_t layer) {
  const LayerViews& v = views_.layers[layer];
  const Gpt2Layer &w = parameters_.layers[layer], &d = gradients_.layers[layer];
  const TensorView dy = branch_gradient(mask(1 + 2 * layer));
  linear_gradient(v.attended, w.proj_w, dy, views_.dattended, d.proj_w, d.proj_b);
  sdpa_backward(context_, gradient_of(attention_args(layer), views_.dattended, views_.dqkv));
  layer_norm(context_, {v.x, {}, norm_of(w.ln1_w, w.ln1_b), views_.normed});
  linear_gradient(views_.normed, w.attn_w, views_.dqkv, views_.dnormed, d.attn_w, d.attn_b);
  norm_backward(v.x, w.ln1_w, d.ln1_w, d.ln1_b);
}

}  // namespace inkling
