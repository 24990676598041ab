// Trainer: a GPT-2, its gradient and AdamW's moments, one iteration after another.
//
//   Trainer trainer = Trainer::from_scratch(context, config, options);
//   while (trainer.iteration() < 2000) trainer.step(batches);
//   trainer.save_model("out").value();
//
// What an iteration does is a function of the weights, the batches, the options and the iteration's number:
// nothing is drawn from a state. So a run that resumes from a checkpoint is the run that was never
// interrupted, bit for bit, for any number of threads. One thread at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

#include "engine/base/result.h"
#include "engine/exec_context.h"
#include "engine/packed_matrix.h"
#include "model/train/communicator.h"
#include "model/train/training_batch.h"
#include "weights/config.h"
#include "weights/gpt2_source.h"
#include "weights/safetensors.h"

namespace inkling {

/// Defaults and meanings are nanoGPT's.
struct TrainOptions {
  double learning_rate = 6e-4;  ///< at the end of the warm-up
  double min_lr = 6e-5;         ///< after the decay
  std::int64_t warmup_iters = 2000;
  std::int64_t lr_decay_iters = 600000;  ///< the cosine ends here; 0: learning_rate throughout
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double weight_decay = 0.1;                 ///< of matrices alone
  double grad_clip = 1.0;                    ///< largest norm of the gradient; 0: any
  float dropout = 0.0f;                      ///< of embeddings, attention weights and residual branches
  std::uint64_t seed = 1337;                 ///< of the first weights and of dropout
  WeightFormat compute = WeightFormat::f32;  ///< or bf16: factors of products; weights and moments stay f32
};

/// The learning rate of iteration `i`, counted from 0: linear warm-up, then half a cosine to min_lr.
double learning_rate_at(const TrainOptions& options, std::int64_t i);

class Trainer {
 public:
  /// The context, and the communicator if there is one, outlive the trainer. Throw Error{usage} for options
  /// out of range, naming them, and Error{out_of_memory}.
  static Trainer from_scratch(ExecContext& context, const ModelConfig& config, const TrainOptions& options,
                              Communicator* communicator = nullptr);
  /// Goes on from weights on disk with fresh moments: fine-tuning.
  static Trainer from_weights(ExecContext& context, const Gpt2Source& source, const TrainOptions& options,
                              Communicator* communicator = nullptr);
  /// Goes on from a checkpoint exactly where it was saved; what it needs of the file is copied.
  /// Error{malformed}.
  static Result<Trainer> from_checkpoint(ExecContext& context, const SafetensorsFile& file,
                                         const TrainOptions& options, Communicator* communicator = nullptr);
  /// What nbytes() comes to after a step with batches of such sequences; SIZE_MAX when it is more than that.
  /// Allocates nothing of that size.
  static std::size_t nbytes_of(ExecContext& context, const ModelConfig& config, const TrainOptions& options,
                               std::span<const std::int32_t> cu_seqlens);
  /// The model of a checkpoint, by its header alone. Error{malformed}.
  static Result<ModelConfig> checkpoint_config(const SafetensorsFile& file);
  Trainer(Trainer&&) noexcept;
  Trainer& operator=(Trainer&&) noexcept;
  ~Trainer();

  struct StepResult {
    double loss = 0;           ///< mean over the targets of all batches, before the step
    double gradient_norm = 0;  ///< before clipping
    double learning_rate = 0;
  };
  /// One iteration over the mean loss of all targets of all batches (of all processes, each with its own
  /// batches; every process must give as many). Throws Error{usage} for bad batches or none with a target,
  /// and Error{gate} when loss or gradient are not finite; weights and moments are then as they were.
  StepResult step(std::span<const TrainingBatch> batches);

  /// Mean loss over the targets, without dropout. Of this process alone.
  double loss(const TrainingBatch& batch);

  /// Iterations done.
  std::int64_t iteration() const noexcept;
  const ModelConfig& config() const noexcept;
  const TrainOptions& options() const noexcept;
  /// Weights and, after a step, the gradient, by Hugging Face's names, in host memory: the trainer's own on
  /// the CPU, good until it goes; on another device copies, good until the next call of the same function.
  std::vector<NamedTensor> parameters() const;
  std::vector<NamedTensor> gradients() const;
  /// Bytes held: weights, gradient, moments, activations.
  std::size_t nbytes() const noexcept;

  /// Writes config.json and model.safetensors, in f32 or rounded to bf16, into a folder that exists, each
  /// atomically: a model folder but for the tokenizer. Error{output}.
  Result<void> save_model(const std::filesystem::path& folder, DType dtype = DType::f32) const;
  /// Writes weights, moments and the iteration as one safetensors file, atomically, with `extra` among its
  /// metadata. Error{output}.
  Result<void> save_checkpoint(const std::filesystem::path& path, const Metadata& extra = {}) const;

 private:
  struct State;
  explicit Trainer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace inkling
