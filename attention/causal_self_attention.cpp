#include "attention/causal_self_attention.h"

#include <array>
#include <charconv>
#include <iterator>
#include <span>
#include <utility>

#include "attention/checks.h"
#include "attention/cpu/kernels.h"
#include "attention/qkv.h"
#include "engine/exec_context.h"
#include "engine/profiler.h"
#include "engine/random_normal.h"
#include "engine/training_ops.h"

namespace inkling {
namespace {

enum : std::size_t { kAttnWeight, kProjWeight, kAttnBias, kProjBias };

constexpr ArgumentChecks check{"causal_self_attention"};

void check_rows(const TensorView& x, std::int64_t rows, std::int64_t columns, const char* argument) {
  check(x.rank == 2 && x.dtype == DType::f32 && x.shape[0] == rows && x.shape[1] == columns, argument, [&] {
    return "expected f32 (" + std::to_string(rows) + ", " + std::to_string(columns) + "), got " +
           std::string(dtype_name(x.dtype)) + ' ' + x.shape_string();
  });
  check.memory(x, argument);
}

constexpr double kDeviation = 0.02;  // of fresh weights

void draw(ExecContext& context, const Tensor& tensor, std::uint32_t number, std::uint64_t seed) {
  std::vector<float> values(static_cast<std::size_t>(tensor.numel()));
  fill_normal(values, kDeviation, seed, number);
  context.backend().copy_in(tensor.view().data, values.data(), tensor.view().nbytes());
}

}  // namespace

struct CausalSelfAttention::Views {
  TensorView qkv;        // (N, 3C)
  TensorView attended;   // (N, C)
  TensorView lse;        // (H, N); training alone, like all below
  TensorView dy;         // (N, C) gradient before the residual dropout
  TensorView dattended;  // (N, C)
  TensorView dqkv;       // (N, 3C)
};

CausalSelfAttention::CausalSelfAttention(ExecContext& context, const CausalSelfAttentionConfig& config,
                                         std::uint64_t seed)
    : context_(context), config_(config) {
  check(config.n_embd > 0, "n_embd",
        [&] { return "expected at least 1, got " + std::to_string(config.n_embd); });
  check(config.n_head > 0 && config.n_embd % config.n_head == 0, "n_head", [&] {
    return "expected a divisor of n_embd = " + std::to_string(config.n_embd) + ", got " +
           std::to_string(config.n_head);
  });
  check(config.n_embd / config.n_head <= cpu::kMaxHeadDim, "n_head", [&] {
    return "expected heads of at most " + std::to_string(cpu::kMaxHeadDim) + ", got " +
           std::to_string(config.n_embd / config.n_head);
  });
  const auto check_rate = [](float p, const char* argument) {
    check(p >= 0.0f && p < 1.0f, argument,
          [&] { return "expected a rate in [0, 1), got " + std::to_string(p); });
  };
  check_rate(config.attention_dropout, "attention_dropout");
  check_rate(config.residual_dropout, "residual_dropout");
  check(config.mask == MaskKind::none || config.mask == MaskKind::causal_lower_right ||
            config.mask == MaskKind::causal_upper_left,
        "mask",
        [&] { return "expected none or a causal one, got " + std::string(mask_kind_name(config.mask)); });
  const std::int64_t c = config.n_embd;
  draw(context, add("c_attn.weight", {c, 3 * c}).value, 0, seed);
  draw(context, add("c_proj.weight", {c, c}).value, 1, seed);
  if (config.bias) {
    add("c_attn.bias", {3 * c});
    add("c_proj.bias", {c});
  }
}

CausalSelfAttention::Parameter& CausalSelfAttention::add(std::string_view name,
                                                         std::initializer_list<std::int64_t> shape) {
  const auto zeros = [&] {
    const std::span extents(shape.begin(), shape.size());
    Backend& device = context_.backend();
    Tensor tensor(device.allocate(checked_nbytes(extents, DType::f32)), DType::f32, extents);
    device.zero(tensor.view().data, tensor.view().nbytes());
    return tensor;
  };
  parameters_.push_back({name, zeros(), zeros()});
  return parameters_.back();
}

void CausalSelfAttention::zero_gradients() {
  for (const Parameter& p : parameters_) {
    context_.backend().zero(p.gradient.view().data, p.gradient.view().nbytes());
  }
}

const float* CausalSelfAttention::bias(std::size_t index) const noexcept {
  return config_.bias ? static_cast<const float*>(parameters_[index].value.view().data) : nullptr;
}

float* CausalSelfAttention::bias_gradient(std::size_t index) const noexcept {
  return config_.bias ? static_cast<float*>(parameters_[index].gradient.view().data) : nullptr;
}

void CausalSelfAttention::pack_weights() {
  if (packed_) return;
  const auto repack = [&](PackedMatrix& packed, const Tensor& w) {
    Buffer memory = std::move(packed.owned);
    const std::int64_t k = w.size(0), n = w.size(1);
    if (memory.empty())
      memory = context_.backend().allocate(packed_nbytes(context_, k, n, WeightFormat::f32));
    packed = pack(context_, {w.view().data, DType::f32, k, n, n, 1}, WeightFormat::f32, memory.data());
    packed.owned = std::move(memory);
  };
  repack(attn_, parameters_[kAttnWeight].value);
  repack(proj_, parameters_[kProjWeight].value);
  packed_ = true;
}

CausalSelfAttention::Views CausalSelfAttention::plan(std::int64_t tokens, Phase phase) {
  const std::int64_t c = config_.n_embd;
  const bool training = phase == Phase::training;
  plan_.clear();
  const std::size_t qkv = plan_.add("queries, keys, values", tokens, 3 * c);
  const std::size_t attended = plan_.add("attention", tokens, c);
  const std::size_t lse = plan_.add("log-sum-exp", training ? config_.n_head : 0, tokens);
  const std::size_t dy = plan_.add("gradient of the projection", training ? tokens : 0, c);
  const std::size_t dattended = plan_.add("gradient of attention", training ? tokens : 0, c);
  const std::size_t dqkv = plan_.add("gradient of queries, keys, values", training ? tokens : 0, 3 * c);
  arena_.use(plan_, context_.backend());
  return {arena_.view(qkv), arena_.view(attended),  arena_.view(lse),
          arena_.view(dy),  arena_.view(dattended), arena_.view(dqkv)};
}

// What sdpa() is to do with the qkv of `input`.
SdpaArgs CausalSelfAttention::attention(const Views& v, const Input& input) const {
  SdpaArgs args = attention_of(v.qkv, config_.n_head, input.cu_seqlens, v.attended, config_.mask);
  if (input.phase == Phase::training) {
    args.lse = v.lse;
    args.dropout = {config_.attention_dropout, input.seed, input.offset};
  }
  return args;
}

void CausalSelfAttention::forward(const Input& input, const TensorView& out) {
  const ProfileRange range(context_, "causal_self_attention");
  const std::int64_t tokens = input.x.shape[0], c = config_.n_embd;
  check_rows(input.x, tokens, c, "x");
  check_rows(out, tokens, c, "out");
  const auto& cu = input.cu_seqlens;
  check(!cu.empty(), "cu_seqlens", "expected B + 1 offsets, got none");
  check.offsets(cu, "cu_seqlens", std::ssize(cu) - 1, tokens);
  last_ = {};  // what an earlier pass left is overwritten from here on, and this one may fail
  pack_weights();
  const Views v = plan(tokens, input.phase);
  linear(context_, {input.x, {}, {}, &attn_, bias(kAttnBias), Activation::none, {}, v.qkv});
  sdpa(context_, attention(v, input));
  linear(context_, {v.attended, {}, {}, &proj_, bias(kProjBias), Activation::none, {}, out});
  if (input.phase == Phase::training) {
    dropout(context_, {out, placed(cu), config_.residual_dropout, input.seed, input.offset});
  }
  last_ = input;
}

void CausalSelfAttention::backward(const TensorView& dout, const TensorView& dx) {
  check(last_.phase == Phase::training, "backward", "expected a forward pass in training before, got none");
  const ProfileRange range(context_, "causal_self_attention backward");
  const std::int64_t tokens = last_.x.shape[0], c = config_.n_embd;
  check_rows(dout, tokens, c, "dout");
  if (dx.data != nullptr) check_rows(dx, tokens, c, "dx");
  const Views v = plan(tokens, Phase::training);  // the same plan over the same memory

  TensorView dy = dout;
  if (config_.residual_dropout > 0.0f) {
    dy = v.dy;
    dropout(context_,
            {dy, placed(last_.cu_seqlens), config_.residual_dropout, last_.seed, last_.offset, {}, dout});
  }
  linear_backward(context_, {v.attended, parameters_[kProjWeight].value.view(), dy, v.dattended,
                             parameters_[kProjWeight].gradient.view(), bias_gradient(kProjBias)});
  sdpa_backward(context_, gradient_of(attention(v, last_), v.dattended, v.dqkv));
  linear_backward(context_, {last_.x, parameters_[kAttnWeight].value.view(), v.dqkv, dx,
                             parameters_[kAttnWeight].gradient.view(), bias_gradient(kAttnBias)});
}

std::span<const std::int32_t> CausalSelfAttention::placed(std::span<const std::int32_t> cu_seqlens) {
  lists_.place(context_.backend(), {&cu_seqlens});
  return cu_seqlens;
}

void CausalSelfAttention::release() noexcept {
  arena_ = Arena();
  last_ = {};
}

std::string CausalSelfAttention::to_string() const {
  const auto linear_line = [&](const char* name, std::int64_t outputs) {
    return std::string("  (") + name + "): Linear(in_features=" + std::to_string(config_.n_embd) +
           ", out_features=" + std::to_string(outputs) + ", bias=" + (config_.bias ? "True" : "False") +
           ")\n";
  };
  // The shortest digits that give p back, as Python writes them: 0.1, 0.0.
  const auto dropout_line = [](const char* name, float p) {
    std::array<char, 64> digits{};  // 1e-45 has 45 places, and the rest of them stay zero
    std::to_chars(digits.data(), digits.data() + digits.size() - 1, p, std::chars_format::fixed);
    return std::string("  (") + name + "): Dropout(p=" + digits.data() + (p == 0.0f ? ".0" : "") +
           ", inplace=False)\n";
  };
  std::string text = "CausalSelfAttention(\n" + linear_line("c_attn", 3 * config_.n_embd) +
                     linear_line("c_proj", config_.n_embd);
  if (config_.attention_dropout != config_.residual_dropout) {
    text += dropout_line("attn_dropout", config_.attention_dropout);
  }
  return text + dropout_line("resid_dropout", config_.residual_dropout) + ")";
}

}  // namespace inkling
