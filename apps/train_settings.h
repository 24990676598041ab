// The settings of a training run: names and meanings are nanoGPT's. One table serves the command line, the
// file that a run leaves for its resumption, and help.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "model/train/batches.h"
#include "model/train/trainer.h"
#include "weights/config.h"

namespace inkling::app {

/// The defaults are those of the preset shakespeare-char-cpu: a model that a laptop trains in a minute.
struct TrainSettings {
  std::int64_t batch_size = 12, block_size = 64, n_layer = 4, n_head = 4, n_embd = 128;
  double dropout = 0;
  bool bias = false;
  double learning_rate = 1e-3, min_lr = 1e-4;
  std::int64_t warmup_iters = 100, lr_decay_iters = 2000, max_iters = 2000;
  double weight_decay = 0.1, beta1 = 0.9, beta2 = 0.99, grad_clip = 1;
  std::int64_t gradient_accumulation_steps = 1, eval_interval = 250, eval_iters = 20, seed = 1337;
  bool packed_documents = false;
  std::string compute = "f32", save_dtype = "f32";

  ModelConfig model(std::int64_t vocab_size) const;
  TrainOptions options() const;
  BatchShape batches() const;
};

struct TrainSetting {
  using Member = std::variant<std::int64_t TrainSettings::*, double TrainSettings::*, bool TrainSettings::*,
                              std::string TrainSettings::*>;
  std::string_view name;  ///< "batch_size"; on the command line --batch-size
  Member member;
  double least = 0, most = 0;  ///< inclusive; numbers only
  std::string_view help;
  bool of_model = false;  ///< fixed once there are weights
};
std::span<const TrainSetting> train_settings();

/// Sets one field from text. Throws Error{usage} "expected …, got …".
void set(TrainSettings& settings, const TrainSetting& setting, const std::string& text);
std::string text_of(const TrainSettings& settings, const TrainSetting& setting);

/// Where layers, heads and width come from: a new model has those of the settings.
enum class ModelSizes : std::uint8_t { of_settings, of_weights };

/// What no run could be made of. Throws Error{usage} "--FLAG: expected …, got …".
void check(const TrainSettings& settings, ModelSizes sizes);

/// nanoGPT's shakespeare_char on the CPU of its README and on a GPU. Throws Error{usage}.
TrainSettings train_preset(const std::string& name);

/// All settings as JSON, and back: each of them once, and nothing else. Throws Error{malformed} naming `file`
/// and the field.
std::string to_json(const TrainSettings& settings);
TrainSettings train_settings_from_json(std::string_view text, const std::string& file);

}  // namespace inkling::app
