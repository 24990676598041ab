// TrainingPass: loss and gradient of a GPT-2 over one packed batch.
//
//   embed → L × { x += attention(ln1(x));  x += mlp(ln2(x)) } → lnf → Σ cross-entropy
//
// and back, by the ops of inference and their gradients (engine/ops.h, engine/training_ops.h) and the
// attention of attention/sdpa.h. Per layer it keeps (activations.h) the two inputs of the norms, qkv,
// attention's output and log-sum-exp, and the MLP before its activation. A GPU keeps the norms' results, the
// activation's and what dropout drew in attention too (bf16: 12 · C bytes more a token and layer beside
// 24 · C, and 2 bits a weight of attention); elsewhere they are computed again. Logits exist for a block of
// rows at a time.
//
// On a device that has 16-bit activations (Backend::activation_dtype), what lies between two matrices is kept
// in bf16 when bf16 is computed with, and the matrices come rounded; the stream and its gradient are f32
// everywhere. Elsewhere matrices are packed for the kernels where they are used, into memory that the next
// one reuses: a step is long beside that, and no second copy of the model is held.
//
// Bits depend on the batch and on neither the threads nor the profiler. Without dropout a sequence's loss and
// the gradient of its activations are those of the sequence alone, bit for bit; a weight's gradient is the
// sum over all rows in their order, so there "alone" and "packed" agree to rounding.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "attention/sdpa.h"
#include "engine/exec_context.h"
#include "engine/placed_lists.h"
#include "engine/training_ops.h"
#include "model/train/activations.h"
#include "model/train/training_batch.h"
#include "weights/gpt2_source.h"

namespace inkling {

/// Dropout of embeddings, attention weights and residual branches, as in GPT-2. The masks of a pass are those
/// of (seed, pass): sdpa.h and training_ops.h say which element draws what.
struct PassDropout {
  float p = 0.0f;
  std::uint64_t seed = 0;
  std::uint32_t pass = 0;  ///< differs per batch of a training run
};

/// What happens to gradients that are there already.
enum class Accumulation : std::uint8_t { add, replace };

class TrainingPass {
 public:
  /// `compute`: f32, or bf16 for products of bf16 factors with f32 sums. All views lie in the memory of the
  /// context's device and outlive the pass; parameters and gradients are f32, of the same shapes
  /// (ParameterLayout::tensors()). `rounded`: the parameters in the activation_dtype() of `compute`, of which
  /// the matrices are read; where that is f32, the parameters are.
  TrainingPass(ExecContext& context, const ModelConfig& config, const Gpt2Tensors& parameters,
               const Gpt2Tensors& gradients, WeightFormat compute = WeightFormat::f32,
               const Gpt2Tensors& rounded = {});

  /// Σ over targets of −ln P(target), in f64 in the order of rows. Throws Error{usage} for a batch that does
  /// not validate().
  double loss(const TrainingBatch& batch);
  /// The same with dropout, and adds scale × its gradient to the gradients, or replaces them.
  double accumulate(const TrainingBatch& batch, float scale, const PassDropout& dropout = {},
                    Accumulation accumulation = Accumulation::add);

  /// Bytes of activations held.
  std::size_t nbytes() const noexcept { return activations_.nbytes(); }

 private:
  double run(const TrainingBatch& batch, float scale, const PassDropout& dropout);
  void zero(const TensorView& gradient);
  void zero_gradients();
  void forward();
  void attention_forward(std::size_t layer);
  void mlp_forward(std::size_t layer);
  void head(std::int64_t tokens, float scale);
  double total_loss();
  void backward();
  void mlp_backward(std::size_t layer);
  void attention_backward(std::size_t layer);

  // Joints of the stream are numbered 0 … 2L: where the embedding, then each branch in turn, has been added,
  // and a norm begins the next branch.
  const Activations::Views& views() const noexcept { return activations_.views(); }
  const TensorView& stream_at(std::size_t joint) const;
  const TensorView& normed_at(std::size_t joint) const;
  LayerNorm norm_at(std::size_t joint) const;
  std::uint32_t mask(std::size_t joint) const;
  SdpaArgs attention_args(std::size_t layer) const;
  LinearArgs product(const TensorView& x, const TensorView& weight, const TensorView& bias,
                     const TensorView& out) const;
  void add_branch(const TensorView& x, const TensorView& weight, const TensorView& bias, std::size_t joint);
  DropoutArgs dropout_args(const TensorView& x, std::size_t joint) const;
  void normalise(std::size_t joint);
  bool rounds_branches() const;
  TensorView branch_gradient() const;
  void norm_backward(std::size_t joint);
  void linear_gradient(const TensorView& x, const TensorView& weight, const TensorView& dout,
                       const TensorView& dx, const TensorView& dweight, const TensorView& dbias);

  ExecContext& context_;
  ModelConfig config_;
  Gpt2Tensors parameters_, gradients_;
  Gpt2Tensors factors_;  // the parameters as products take them
  WeightFormat compute_;
  DType half_;  // of activations between matrices: f32, or narrower on a device that computes in bf16
  Activations activations_;
  std::vector<float> losses_;
  PlacedLists placed_;
  struct {
    std::span<const std::int32_t> ids, positions, targets, cu_seqlens;
  } lists_;  // of the batch, where the ops can read them
  // Of the pass that runs.
  const TrainingBatch* batch_ = nullptr;
  PassDropout dropout_;
  bool replaces_ = false;  // gradients
};

}  // namespace inkling
