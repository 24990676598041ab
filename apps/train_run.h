// TrainRun: one run of training in its out folder: evaluate, save, sample, step, until the iterations are
// done.
//
// In OUT:
//   model.safetensors, config.json, tokenizer files   the best model so far: `inkling generate --model OUT`
//   checkpoints/iter-000250.safetensors               everything that resuming needs, the last few
//   log.jsonl, loss.svg, train.json                   what happened, and with which settings
#pragma once

#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "apps/checkpoint_folder.h"
#include "apps/console.h"
#include "apps/model_options.h"
#include "apps/train_data.h"
#include "apps/train_log.h"
#include "apps/train_settings.h"
#include "attention/sdpa.h"
#include "model/train/trainer.h"
#include "weights/gpt2_source.h"

namespace inkling::app {

struct TrainCommand {
  TrainSettings settings;
  ModelOptions device;
  std::string init_from = "scratch";  ///< scratch, resume, or a model's path
  std::filesystem::path data, out = "out";
  std::string tokenizer;
  std::int64_t keep = 2;             ///< checkpoints
  std::int64_t sample_tokens = 200;  ///< at each evaluation; 0: none

  bool resumes() const { return init_from == "resume"; }
  bool fine_tunes() const { return init_from != "resume" && init_from != "scratch"; }
  CheckpointFolder checkpoints() const { return CheckpointFolder(out / "checkpoints"); }
};

class TrainRun {
 public:
  /// Prepares the data and the trainer. Throws Error{out_of_memory} before it takes more than there is.
  /// `communicator` may be null; of several processes only that of rank 0 writes and speaks: it alone may
  /// write to OUT, which exists.
  TrainRun(const TrainCommand& command, const Console& console, Communicator* communicator);

  /// Throws Interrupted and Error{gate}, for a loss that is no number, after saving a checkpoint, and
  /// Error{output}.
  void run();

 private:
  /// What a run begins with that others have made.
  struct Weights {
    std::optional<SafetensorsFile> checkpoint;
    std::optional<Gpt2Source> model;
    std::optional<ModelConfig> config;  ///< none: the settings say it
  };
  Weights open_weights() const;
  TrainSource source(const Weights& weights) const;
  ModelConfig config(const Weights& weights, std::int64_t vocab_size) const;
  TrainData shared_data(const TrainSource& source) const;
  void check_data(const Weights& weights) const;
  Trainer make_trainer(const Weights& weights);
  void begin_output(const Weights& weights);

  std::vector<TrainingBatch> batches() const;
  Trainer::StepResult step(std::span<const TrainingBatch> batches);
  void evaluate(double tok_per_s);
  double mean_loss(const TokenData& data, Split split);
  void save(double val_loss);
  void save_checkpoint();
  void save_before_leaving();
  bool interrupted();

  const TrainCommand& command_;
  const Console& console_;
  Communicator* communicator_;
  bool writes_;
  CheckpointFolder checkpoints_;
  ExecContext context_;
  std::optional<SdpaScope> attn_;
  TrainData data_;
  double best_ = std::numeric_limits<double>::infinity();  // validation loss of OUT's model
  std::optional<Trainer> trainer_;
  std::optional<TrainLog> log_;
};

}  // namespace inkling::app
