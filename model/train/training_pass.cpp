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

// The head's table with the rows of zeros behind it, of which the parameters know the number.
TensorView whole_table(const Gpt2Tensors& of, const Gpt2Tensors& parameters) {
  return rows_of(of.lm_head.data == nullptr ? of.wte : of.lm_head, 0, parameters.vocab_rows);
}

// Weight and bias of the norm at a joint.
std::pair<TensorView, TensorView> norm_of(const Gpt2Tensors& of, std::size_t joint) {
  if (joint / 2 == of.layers.size()) return {of.lnf_w, of.lnf_b};
  const Gpt2Layer& l = of.layers[joint / 2];
  return joint % 2 == 0 ? std::pair(l.ln1_w, l.ln1_b) : std::pair(l.ln2_w, l.ln2_b);
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
                           const Gpt2Tensors& gradients, WeightFormat compute, const Gpt2Tensors& rounded)
    : context_(context),
      config_(config),
      parameters_(parameters),
      gradients_(gradients),
      compute_(compute),
      half_(context.backend().activation_dtype(compute)),
      activations_(config, parameters.vocab_rows, context, half_) {
  require(compute == WeightFormat::f32 || compute == WeightFormat::bf16, Code::usage, [&] {
    return "training_pass: compute: expected f32 or bf16, got " + std::string(weight_format_name(compute));
  });
  factors_ = half_ == DType::f32 ? parameters : rounded;
  require(factors_.wte.data != nullptr && factors_.wte.dtype == half_, Code::usage, [&] {
    return "training_pass: rounded: expected the parameters in " + std::string(dtype_name(half_));
  });
}

double TrainingPass::loss(const TrainingBatch& batch) {
  replaces_ = false;
  return run(batch, 0.0f, {});
}

double TrainingPass::accumulate(const TrainingBatch& batch, float scale, const PassDropout& dropout,
                                Accumulation accumulation) {
  replaces_ = accumulation == Accumulation::replace;
  if (replaces_ && (batch.tokens() == 0 || scale == 0.0f)) zero_gradients();
  return run(batch, scale, dropout);
}

double TrainingPass::run(const TrainingBatch& batch, float scale, const PassDropout& dropout) {
  batch.validate(config_.vocab_size, config_.n_positions);
  if (batch.tokens() == 0) return 0.0;
  batch_ = &batch;
  dropout_ = dropout;
  const auto direction = scale != 0.0f ? Activations::Direction::both : Activations::Direction::forward;
  activations_.place({batch.cu_seqlens, direction, dropout.p}, context_.backend());
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

void TrainingPass::zero(const TensorView& gradient) {
  if (gradient.data != nullptr) context_.backend().zero(gradient.data, gradient.nbytes());
}

// Those that nothing is to replace.
void TrainingPass::zero_gradients() {
  for (const TensorView* d : {&gradients_.wte, &gradients_.wpe, &gradients_.lm_head}) zero(*d);
  for (std::size_t joint = 0; joint <= 2 * gradients_.layers.size(); ++joint) {
    const auto [dweight, dbias] = norm_of(gradients_, joint);
    zero(dweight), zero(dbias);
  }
  for (const Gpt2Layer& d : gradients_.layers) {
    for (const TensorView* each :
         {&d.attn_w, &d.attn_b, &d.proj_w, &d.proj_b, &d.fc_w, &d.fc_b, &d.fcproj_w, &d.fcproj_b}) {
      zero(*each);
    }
  }
}

const TensorView& TrainingPass::stream_at(std::size_t joint) const {
  if (joint / 2 == views().layers.size()) return views().x;
  const Activations::Layer& v = views().layers[joint / 2];
  return joint % 2 == 0 ? v.x : v.middle;
}

const TensorView& TrainingPass::normed_at(std::size_t joint) const {
  if (joint / 2 == views().layers.size()) return views().normed;
  const Activations::Layer& v = views().layers[joint / 2];
  return joint % 2 == 0 ? v.normed : v.middle_normed;
}

LayerNorm TrainingPass::norm_at(std::size_t joint) const {
  const auto [weight, bias] = norm_of(parameters_, joint);
  return {numbers(weight), numbers(bias), config_.layer_norm_epsilon};
}

// The masks of a pass are numbered by the joint where what they drop from arrives.
std::uint32_t TrainingPass::mask(std::size_t joint) const {
  const std::size_t masks = 1 + 2 * views().layers.size();
  return static_cast<std::uint32_t>(dropout_.pass * masks + joint);
}

// x · weight + bias; what else is wanted, the caller fills in.
LinearArgs TrainingPass::product(const TensorView& x, const TensorView& weight, const TensorView& bias,
                                 const TensorView& out) const {
  LinearArgs args;
  args.x = x;
  args.matrix = weight;
  args.matrix_format = compute_;
  args.bias = numbers(bias);
  args.out = out;
  return args;
}

void TrainingPass::normalise(std::size_t joint) {
  layer_norm(context_, {stream_at(joint), {}, norm_at(joint), normed_at(joint)});
}

// stream += dropout(x · weight + bias), then the norm. By the product itself where nothing is dropped and all
// is f32: a branch in half is read and written faster than a stream that is read, written and read again.
void TrainingPass::add_branch(const TensorView& x, const TensorView& weight, const TensorView& bias,
                              std::size_t joint) {
  const TensorView &before = stream_at(joint - 1), &after = stream_at(joint);
  if (!rounds_branches()) {
    LinearArgs args = product(x, weight, bias, after);
    args.residual = before;
    linear(context_, args);
    return normalise(joint);
  }
  linear(context_, product(x, weight, bias, views().branch));
  DropoutArgs args = dropout_args(after, joint);
  args.residual = before;
  args.from = views().branch;
  args.norm = norm_at(joint);
  args.normed = normed_at(joint);
  dropout(context_, args);
}

DropoutArgs TrainingPass::dropout_args(const TensorView& x, std::size_t joint) const {
  return {x, lists_.cu_seqlens, dropout_.p, dropout_.seed, mask(joint)};
}

void TrainingPass::forward() {
  embed(context_, {lists_.ids, lists_.positions, nullptr, parameters_.wte, parameters_.wpe, stream_at(0)});
  if (dropout_.p == 0.0f) {
    normalise(0);
  } else {
    DropoutArgs first = dropout_args(stream_at(0), 0);
    first.norm = norm_at(0);
    first.normed = normed_at(0);
    dropout(context_, first);
  }
  for (std::size_t i = 0; i < views().layers.size(); ++i) {
    attention_forward(i);
    mlp_forward(i);
  }
}

SdpaArgs TrainingPass::attention_args(std::size_t layer) const {
  const Activations::Layer& v = views().layers[layer];
  SdpaArgs args = attention_of(v.qkv, config_.n_head, batch_->cu_seqlens, v.attended);
  args.lse = v.lse;
  args.dropout = {dropout_.p, dropout_.seed, mask(1 + 2 * layer), v.drawn.data};
  return args;
}

void TrainingPass::attention_forward(std::size_t layer) {
  const Activations::Layer& v = views().layers[layer];
  const Gpt2Layer& w = parameters_.layers[layer];
  const Gpt2Layer& f = factors_.layers[layer];
  linear(context_, product(v.normed, f.attn_w, w.attn_b, v.qkv));
  sdpa(context_, attention_args(layer));
  add_branch(v.attended, f.proj_w, w.proj_b, 1 + 2 * layer);
}

void TrainingPass::mlp_forward(std::size_t layer) {
  const Activations::Layer& v = views().layers[layer];
  const Gpt2Layer& w = parameters_.layers[layer];
  const Gpt2Layer& f = factors_.layers[layer];
  LinearArgs up = product(v.middle_normed, f.fc_w, w.fc_b, v.activated);
  up.activation = config_.activation;
  up.pre_activation = v.wide;
  linear(context_, up);
  add_branch(v.activated, f.fcproj_w, w.fcproj_b, 2 + 2 * layer);
}

// Losses, and with a scale the gradients of the head, of the last norm and of the stream. The logits of a
// block of rows become their own gradient in place. Products take the rows of zeros behind the table as well
// (parameters.h), the loss V columns: the others are zeros before and after it.
void TrainingPass::head(std::int64_t tokens, float scale) {
  const TensorView table = whole_table(factors_, parameters_), dtable = whole_table(gradients_, parameters_);
  const std::int64_t most = views().logits.shape[0];
  for (std::int64_t begin = 0; begin < tokens; begin += most) {
    const std::int64_t count = std::min(most, tokens - begin);
    const TensorView logits = rows_of(views().logits, 0, count),
                     normed = rows_of(views().normed, begin, count);
    linear(context_, product(normed, as_head(table), {}, logits));
    const auto first = static_cast<std::size_t>(begin), rows = static_cast<std::size_t>(count);
    TensorView named = logits;
    named.shape[1] = config_.vocab_size;
    cross_entropy(
        context_,
        {named, lists_.targets.subspan(first, rows), scale, {views().losses.as<float>() + first, rows}});
    if (scale == 0.0f) continue;
    LinearBackwardArgs input;  // of the head as a matrix (C,V)
    input.weight = as_head(table);
    input.dout = logits;
    input.dx = rows_of(views().dnormed, begin, count);
    input.format = compute_;
    linear_backward(context_, input);
    LinearBackwardArgs weight;  // (V,C), the other way round: its rows are those of the table
    weight.x = logits;
    weight.dout = normed;
    weight.dweight = dtable;
    weight.format = compute_;
    weight.replaces = replaces_ && begin == 0;
    linear_backward(context_, weight);
  }
  if (scale != 0.0f) {
    context_.backend().zero(
        views().dx.data,
        static_cast<std::size_t>(views().dx.shape[0] * views().dx.stride[0]) * sizeof(float));
    norm_backward(2 * views().layers.size());
  }
}

// In f64, in the order of rows.
double TrainingPass::total_loss() {
  losses_.resize(static_cast<std::size_t>(views().losses.shape[1]));
  context_.backend().copy_out(losses_.data(), views().losses.data, losses_.size() * sizeof(float));
  double total = 0.0;
  for (const float loss : losses_) total += double{loss};
  return total;
}

// views().dx is the gradient of the stream, from its end to its beginning.
void TrainingPass::backward() {
  if (replaces_) {  // to which the embedding's gradient is added; a tied table has that of the head
    zero(gradients_.wpe);
    if (parameters_.lm_head.data != nullptr) zero(gradients_.wte);
  }
  for (std::size_t i = views().layers.size(); i-- > 0;) {
    mlp_backward(i);
    attention_backward(i);
  }
  embed_backward(context_, {lists_.ids, lists_.positions, branch_gradient(), gradients_.wte, gradients_.wpe});
}

bool TrainingPass::rounds_branches() const {
  return activations_.rounds_branches(dropout_.p);
}

// That of the branch which arrives at the joint whose norm_backward() came last.
TensorView TrainingPass::branch_gradient() const {
  return rounds_branches() ? views().dbranch : views().dx;
}

// From dnormed, and adds to the stream's gradient.
void TrainingPass::norm_backward(std::size_t joint) {
  const auto [dweight, dbias] = norm_of(gradients_, joint);
  LayerNormBackwardArgs args{stream_at(joint), norm_at(joint),           views().dnormed,
                             views().dx,       mutable_numbers(dweight), mutable_numbers(dbias)};
  if (rounds_branches()) args.branch = dropout_args(views().dbranch, joint);
  args.replaces = replaces_;
  layer_norm_backward(context_, args);
}

void TrainingPass::linear_gradient(const TensorView& x, const TensorView& weight, const TensorView& dout,
                                   const TensorView& dx, const TensorView& dweight, const TensorView& dbias) {
  LinearBackwardArgs args{x, weight, dout, dx, dweight, mutable_numbers(dbias), compute_};
  args.replaces = replaces_;
  linear_backward(context_, args);
}

void TrainingPass::mlp_backward(std::size_t layer) {
  const Activations::Layer& v = views().layers[layer];
  const Gpt2Layer& f = factors_.layers[layer];
  const Gpt2Layer& d = gradients_.layers[layer];
  const TensorView dy = branch_gradient();
  LinearBackwardArgs down{{}, f.fcproj_w, dy, views().dwide, {}, nullptr, compute_};
  if (activations_.keeps()) {
    down.activation = config_.activation;
    down.pre_activation = v.wide;
  }
  linear_backward(context_, down);
  if (!activations_.keeps()) {
    activate_backward(context_, {v.wide, config_.activation, views().dwide, v.activated});
    normalise(1 + 2 * layer);
  }
  linear_gradient(v.activated, {}, dy, {}, d.fcproj_w, d.fcproj_b);
  linear_gradient(v.middle_normed, f.fc_w, views().dwide, views().dnormed, d.fc_w, d.fc_b);
  norm_backward(1 + 2 * layer);
}

void TrainingPass::attention_backward(std::size_t layer) {
  const Activations::Layer& v = views().layers[layer];
  const Gpt2Layer& f = factors_.layers[layer];
  const Gpt2Layer& d = gradients_.layers[layer];
  linear_gradient(v.attended, f.proj_w, branch_gradient(), views().dattended, d.proj_w, d.proj_b);
  sdpa_backward(context_, gradient_of(attention_args(layer), views().dattended, views().dqkv));
  if (!activations_.keeps()) normalise(2 * layer);
  linear_gradient(v.normed, f.attn_w, views().dqkv, views().dnormed, d.attn_w, d.attn_b);
  norm_backward(2 * layer);
}

}  // namespace inkling
