// CausalSelfAttention: the module of a GPT block, with gradients.
//
//   y = dropout(c_proj(sdpa(q, k, v))),   [q k v] = c_attn(x)        (Radford et al. 2019; nanoGPT's names)
//
// Input is packed: B sequences back to back, (N, C) and cu_seqlens; a dense batch is the equal-length case.
// It stays causal in evaluation; a module that is not causal has MaskKind::none in its config. Activations
// are kept from call to call and grow only for a larger batch ("planned"); release() gives them back.
//
// Dropout follows one rule (attention/sdpa.h, engine/training_ops.h: dropout): masks are a function of (seed,
// offset) and the place of an element in its sequence. Bits of forward and of dx depend on a sequence alone,
// or, with dropout, on its number in the batch too. Tensors lie in the memory of the context's device,
// cu_seqlens on the host. One thread at a time.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attention/sdpa.h"
#include "engine/arena.h"
#include "engine/packed_matrix.h"
#include "engine/placed_lists.h"

namespace inkling {

struct CausalSelfAttentionConfig {
  std::int64_t n_embd = 0;  ///< C
  std::int64_t n_head = 0;  ///< divides C; C / n_head ≤ 256
  bool bias = false;
  float attention_dropout = 0.0f;                ///< of the weights, in training
  float residual_dropout = 0.0f;                 ///< of the output, in training
  MaskKind mask = MaskKind::causal_lower_right;  ///< or none; Tq = Tk here, so upper-left is the same
};

enum class Phase : std::uint8_t { evaluation, training };

class CausalSelfAttention {
 public:
  /// Weights drawn from N(0, 0.02²) by `seed`, biases 0. The context outlives the module. Throws Error{usage}
  /// for a config out of range, naming the field.
  CausalSelfAttention(ExecContext& context, const CausalSelfAttentionConfig& config, std::uint64_t seed = 0);

  /// f32, (inputs, outputs) as GPT-2 stores them, in the memory of the context's device.
  struct Parameter {
    std::string_view name;
    Tensor value, gradient;
  };
  /// c_attn.weight (C, 3C), c_proj.weight (C, C), and with bias c_attn.bias (3C), c_proj.bias (C).
  std::span<Parameter> parameters() noexcept { return parameters_; }
  /// To be called when values have been written: the kernels work on packed copies.
  void parameters_changed() noexcept { packed_ = false; }
  void zero_gradients();

  struct Input {
    TensorView x;                              ///< (N, C) f32
    std::span<const std::int32_t> cu_seqlens;  ///< (B+1), rising from 0 to N
    Phase phase = Phase::evaluation;
    std::uint64_t seed = 0;    ///< of both dropouts
    std::uint32_t offset = 0;  ///< differs per layer and step
  };
  /// Writes out (N, C) f32. Throws Error{usage}.
  void forward(const Input& input, const TensorView& out);
  /// After a forward pass in training whose x and cu_seqlens are still there: writes dx (N, C), unless it is
  /// empty, and adds to the gradients of the parameters. Throws Error{usage}.
  void backward(const TensorView& dout, const TensorView& dx);

  /// Gives back the activations; the next call takes fresh memory.
  void release() noexcept;
  std::size_t activation_bytes() const noexcept { return arena_.nbytes(); }

  const CausalSelfAttentionConfig& config() const noexcept { return config_; }
  /// As PyTorch prints the module of its tutorial. attn_dropout has a line of its own when it differs from
  /// resid_dropout.
  std::string to_string() const;

 private:
  struct Views;
  Parameter& add(std::string_view name, std::initializer_list<std::int64_t> shape);
  const float* bias(std::size_t index) const noexcept;
  float* bias_gradient(std::size_t index) const noexcept;
  void pack_weights();
  Views plan(std::int64_t tokens, Phase phase);
  SdpaArgs attention(const Views& views, const Input& input) const;
  std::span<const std::int32_t> placed(std::span<const std::int32_t> cu_seqlens);

  ExecContext& context_;
  CausalSelfAttentionConfig config_;
  std::vector<Parameter> parameters_;
  PackedMatrix attn_, proj_;
  bool packed_ = false;
  ArenaPlan plan_;
  Arena arena_;
  PlacedLists lists_;
  Input last_;  // of the last forward pass that ended well; in evaluation when there is none
};

}  // namespace inkling
