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

#include "apps/console.h"
#include "apps/model_options.h"
#include "apps/train_data.h"
#include "apps/train_log.h"
#include "apps/train_settings.h"
#include "model/train/trainer.h"

namespace inkling::app {

struct TrainCommand {
  TrainSettings settings;
  ModelOptions device;
  std::string init_from = "scratch";  ///< scratch, resume, or a model's path
  std::filesystem::path data, out = "out";
  std::string tokenizer;
  std::int64_t keep = 2;             ///< checkpoints
  std::int64_t sample_tokens = 200;  ///< at each evaluation; 0: none
};

class TrainRun {
 public:
  /// Prepares the data and the trainer. `communicator` may be null; of several processes only that of rank 0
  /// writes and speaks.
  TrainRun(const TrainCommand& command, const Console& console, Communicator* communicator);

  /// Throws Interrupted after saving a checkpoint, Error{gate} for a loss that is no number, Error{output}.
  void run();

 private:
  struct Speed;
  Trainer make_trainer();
  void evaluate(double tok_per_s);
  double mean_loss(const TokenData& data, Split split);
  void save(double val_loss);
  void save_checkpoint();
  void sample(const std::filesystem::path& model);
  bool interrupted();
  std::vector<TrainingBatch> batches() const;
  std::filesystem::path checkpoints() const { return command_.out / "checkpoints"; }

  const TrainCommand& command_;
  const Console& console_;
  Communicator* communicator_;
  bool writes_;
  ExecContext context_;
  TrainData data_;
  double best_ = std::numeric_limits<double>::infinity();  // validation loss of OUT's model
  Trainer trainer_;
  std::optional<TrainLog> log_;
};

/// Checkpoints in a folder, the oldest first.
std::vector<std::filesystem::path> find_checkpoints(const std::filesystem::path& folder);

}  // namespace inkling::app
