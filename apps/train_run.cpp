#include "apps/train_run.h"

#include <cmath>
#include <utility>

#include "apps/input.h"
#include "apps/signals.h"
#include "apps/train_checks.h"
#include "apps/train_progress.h"
#include "apps/train_sample.h"
#include "weights/atomic_file.h"

namespace inkling::app {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kBestKey = "best_val_loss", kDataKey = "data";

fs::path folder_of(const fs::path& folder_or_file) {
  std::error_code ignored;
  if (fs::is_directory(folder_or_file, ignored)) return folder_or_file;
  return folder_or_file.has_parent_path() ? folder_or_file.parent_path() : fs::path(".");
}

}  // namespace

TrainRun::TrainRun(const TrainCommand& command, const Console& console, Communicator* communicator)
    : command_(command),
      console_(console),
      communicator_(communicator),
      writes_(communicator == nullptr || communicator->rank() == 0),
      checkpoints_(command.checkpoints()),
      context_(exec_options(command.device, console)) {
  if (writes_) {
    std::error_code ignored;
    fs::remove_all(command.out / ".next", ignored);
    remove_all_leftovers(command.out);
  }
  if (!command.device.attn.empty()) attn_.emplace(context_, SdpaPolicy{command.device.attn});
  const Weights weights = open_weights();
  // Of the least vocabulary, before the data is read.
  const std::int64_t ranks = communicator != nullptr ? communicator->size() : 1;
  check_memory(context_, command, config(weights, 1), ranks);
  if (attn_) check_attention(context_, command, config(weights, 1));
  data_ = shared_data(source(weights));
  check_data(weights);
  check_memory(context_, command, config(weights, data_.vocab_size), ranks);
  trainer_.emplace(make_trainer(weights));
  if (writes_) begin_output(weights);
}

TrainRun::Weights TrainRun::open_weights() const {
  Weights weights;
  if (command_.resumes()) {
    weights.checkpoint = SafetensorsFile::open(checkpoints_.newest()).value();
    weights.config = Trainer::checkpoint_config(*weights.checkpoint).value();
  } else if (command_.fine_tunes()) {
    weights.model = Gpt2Source::open(command_.init_from).value();
    weights.config = weights.model->config();
  }
  const std::int64_t block = command_.settings.block_size;
  if (weights.config && block > weights.config->n_positions) {
    throw Error(Code::usage, "--block-size: expected at most the model's " +
                                 std::to_string(weights.config->n_positions) + " positions, got " +
                                 std::to_string(block));
  }
  return weights;
}

ModelConfig TrainRun::config(const Weights& weights, std::int64_t vocab_size) const {
  return weights.config ? *weights.config : command_.settings.model(vocab_size);
}

TrainSource TrainRun::source(const Weights& weights) const {
  TrainSource source{command_.data, command_.tokenizer, command_.out};
  source.packing = command_.settings.batches().packing;
  if (weights.config) source.vocab_size = weights.config->vocab_size;
  if (weights.checkpoint) {
    source.begin = Begin::resumed;
    const std::string* const data = find(weights.checkpoint->metadata(), kDataKey);
    if (data == nullptr) {
      throw Error(Code::malformed, weights.checkpoint->name() + ": " + std::string(kDataKey) +
                                       ": expected what the run learns from, got nothing");
    }
    source.began_with = *data;
  }
  if (weights.model && source.tokenizer.empty()) {  // the model's own; nanoGPT's ids can do without
    const fs::path folder = folder_of(command_.init_from);
    if (Tokenizer::files(folder) || !has_nano_gpt_ids(command_.data)) source.tokenizer = folder.string();
  }
  if (!writes_) source.begin = Begin::follower;
  return source;
}

// Rank 0 makes the files, the others find them made.
TrainData TrainRun::shared_data(const TrainSource& source) const {
  if (communicator_ == nullptr) return prepare_data(source, console_);
  double done = 0;
  if (!writes_) {
    communicator_->sum(std::span(&done, 1));
    return prepare_data(source, console_);
  }
  TrainData data = prepare_data(source, console_);
  communicator_->sum(std::span(&done, 1));
  return data;
}

void TrainRun::check_data(const Weights& weights) const {
  const TrainSettings& s = command_.settings;
  for (const auto& [name, tokens] :
       {std::pair("training", &data_.train), {"validation", &data_.validation}}) {
    if (tokens->size() < fewest_ids(s.batches())) {
      throw Error(Code::input, command_.data.string() + ": the " + name + " part: expected at least " +
                                   std::to_string(fewest_ids(s.batches())) + " tokens for --block-size " +
                                   std::to_string(s.block_size) + ", got " + std::to_string(tokens->size()));
    }
  }
  if (!weights.config) return;
  const std::int64_t vocab = weights.config->vocab_size;
  if (data_.vocab_size > vocab || (data_.tokenizer && data_.vocab_size + kMaxVocabPadding < vocab)) {
    throw Error(Code::malformed, command_.init_from + ": vocab_size: expected the tokenizer's " +
                                     std::to_string(data_.vocab_size) + " or a little more, got " +
                                     std::to_string(vocab));
  }
}

Trainer TrainRun::make_trainer(const Weights& weights) {
  const TrainSettings& s = command_.settings;
  if (weights.checkpoint) {
    const std::string* const best = find(weights.checkpoint->metadata(), kBestKey);
    if (best != nullptr && !parse_number(*best, best_)) best_ = std::numeric_limits<double>::infinity();
    return Trainer::from_checkpoint(context_, *weights.checkpoint, s.options(), communicator_).value();
  }
  if (weights.model) return Trainer::from_weights(context_, *weights.model, s.options(), communicator_);
  ModelConfig fresh = config(weights, data_.vocab_size);
  if (data_.tokenizer) fresh.eos_token_id = data_.tokenizer->eos_id();
  return Trainer::from_scratch(context_, fresh, s.options(), communicator_);
}

// From here on nothing is refused.
void TrainRun::begin_output(const Weights& weights) {
  checkpoints_.prepare();
  if (weights.model) {  // what its author says of drawing holds for its child
    const fs::path defaults = weights.model->files().folder() / "generation_config.json";
    std::error_code ignored;
    if (fs::exists(defaults, ignored)) {
      write_file(command_.out / defaults.filename(), read_text(defaults)).value();
    }
  }
  log_.emplace(command_.out, weights.checkpoint ? trainer_->iteration() : -1);
  write_file(command_.out / "train.json", to_json(command_.settings)).value();
  const auto tokens = [&](const TokenData& data, const char* name) {
    const bool packed = command_.settings.packed_documents;
    return std::to_string(data.size()) + ' ' + name +
           (packed ? " (" + std::to_string(data.documents()) + " documents)" : std::string());
  };
  console_.note("inkling: " + std::to_string(trainer_->config().parameter_count()) + " parameters, " +
                tokens(data_.train, "training") + " and " + tokens(data_.validation, "validation") +
                " tokens, " + context_.backend().description());
}

// Of several processes each takes its share of the batches of an iteration, numbered through all of them.
std::vector<TrainingBatch> TrainRun::batches() const {
  const std::int64_t all = command_.settings.gradient_accumulation_steps;
  const std::int64_t ranks = communicator_ != nullptr ? communicator_->size() : 1;
  const std::int64_t rank = communicator_ != nullptr ? communicator_->rank() : 0;
  std::vector<TrainingBatch> mine;
  for (std::int64_t m = all / ranks * rank; m < all / ranks * (rank + 1); ++m) {
    mine.push_back(draw_batch(data_.train, command_.settings.batches(), Split::train,
                              static_cast<std::uint64_t>(trainer_->iteration() * all + m)));
  }
  return mine;
}

// All processes must leave at the same iteration.
bool TrainRun::interrupted() {
  double signalled = pending_signal() != 0 ? 1 : 0;
  if (communicator_ != nullptr) communicator_->sum(std::span(&signalled, 1));
  return signalled > 0;
}

void TrainRun::run() {
  const TrainSettings& s = command_.settings;
  wait_for_boundaries();
  TrainProgress progress(console_);
  while (true) {
    const std::int64_t iter = trainer_->iteration();
    if (interrupted()) {
      progress.clear();
      save_before_leaving();
      console_.note("inkling: stopped at iteration " + std::to_string(iter) +
                    "; go on with --init-from resume");
      throw Interrupted(pending_signal() != 0 ? pending_signal() : 2);
    }
    const bool done = iter >= s.max_iters;
    if (iter % s.eval_interval == 0 || done) {
      progress.clear();
      if (writes_) evaluate(progress.rate());
      progress.restart();
    }
    if (done) return;
    const std::vector<TrainingBatch> drawn = batches();
    const Trainer::StepResult result = step(drawn);
    std::int64_t tokens = 0;
    for (const TrainingBatch& batch : drawn) tokens += batch.tokens();
    tokens *= communicator_ != nullptr ? communicator_->size() : 1;
    if (writes_) progress.step(result, iter + 1, s.max_iters, tokens);
  }
}

// The trainer is then what it was before the iteration, which is worth keeping.
Trainer::StepResult TrainRun::step(std::span<const TrainingBatch> drawn) {
  try {
    return trainer_->step(drawn);
  } catch (const Error& error) {
    if (error.code() != Code::gate) throw;
    save_before_leaving();
    throw Error(Code::gate, error.message() + "; --init-from resume goes on before it");
  }
}

double TrainRun::mean_loss(const TokenData& data, Split split) {
  double total = 0;
  for (std::int64_t i = 0; i < command_.settings.eval_iters; ++i) {
    total +=
        trainer_->loss(draw_batch(data, command_.settings.batches(), split, static_cast<std::uint64_t>(i)));
  }
  return total / static_cast<double>(command_.settings.eval_iters);
}

void TrainRun::evaluate(double tok_per_s) {
  const std::int64_t iter = trainer_->iteration();
  if (log_->has(iter)) return;  // what a resumed run begins with has been told
  const Evaluation e{iter, mean_loss(data_.train, Split::train_loss),
                     mean_loss(data_.validation, Split::validation_loss),
                     learning_rate_at(command_.settings.options(), iter), tok_per_s};
  if (!std::isfinite(e.train_loss) || !std::isfinite(e.val_loss)) {
    save_checkpoint();
    throw Error(Code::gate, "iteration " + std::to_string(iter) + ": expected finite losses, got " +
                                format("%g in training", e.train_loss) +
                                format(" and %g in validation", e.val_loss) +
                                "; a lower learning rate may help");
  }
  console_.note("iter " + std::to_string(iter) + format(": training loss %.4f", e.train_loss) +
                format(", validation loss %.4f", e.val_loss) + format(", lr %.3g", e.lr) +
                (tok_per_s > 0 ? format(", %.0f tok/s", tok_per_s) : std::string()));
  log_->add(e);
  save(e.val_loss);
  save_checkpoint();
}

// The model goes beside the best one, is heard, and takes its place if it is better.
void TrainRun::save(double val_loss) {
  const fs::path next = command_.out / ".next";
  make_folder(next).value();
  trainer_->save_model(next, command_.settings.save_dtype == "bf16" ? DType::bf16 : DType::f32).value();
  if (command_.sample_tokens > 0 && data_.tokenizer && !console_.quiet()) {
    Console::write(sample_text(next, context_, *data_.tokenizer, data_.train.id(0), command_.sample_tokens,
                               static_cast<std::uint64_t>(command_.settings.seed)) +
                   "\n\n");
  }
  std::error_code error;
  if (val_loss < best_) {
    fs::rename(next / "config.json", command_.out / "config.json", error);
    if (!error) fs::rename(next / "model.safetensors", command_.out / "model.safetensors", error);
    if (error)
      throw Error(Code::output, command_.out.string() + ": cannot place the model: " + error.message());
    best_ = val_loss;
  }
  fs::remove_all(next, error);
}

void TrainRun::save_checkpoint() {
  trainer_
      ->save_checkpoint(
          checkpoints_.file(trainer_->iteration()),
          {{std::string(kBestKey), format("%.17g", best_)}, {std::string(kDataKey), data_.source}})
      .value();
  checkpoints_.keep(command_.keep);
}

// mpirun ends all processes when one has gone: none goes before the first has saved.
void TrainRun::save_before_leaving() {
  if (writes_) save_checkpoint();
  double saved = 0;
  if (communicator_ != nullptr) communicator_->sum(std::span(&saved, 1));
}

}  // namespace inkling::app
