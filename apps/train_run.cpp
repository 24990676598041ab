#include "apps/train_run.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>
#include <vector>

#include "apps/input.h"
#include "apps/signals.h"
#include "apps/text_stream.h"
#include "model/generator.h"
#include "model/model.h"
#include "weights/atomic_file.h"

namespace inkling::app {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kBestKey = "best_val_loss";

std::string duration(double seconds) {
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  std::array<char, 48> text{};
  std::snprintf(text.data(), text.size(), "%lld:%02lld:%02lld", static_cast<long long>(whole / 3600),
                static_cast<long long>(whole / 60 % 60), static_cast<long long>(whole % 60));
  return text.data();
}

TrainSource source_of(const TrainCommand& c) {
  std::string tokenizer = c.tokenizer;
  if (tokenizer.empty() && c.init_from != "scratch" && c.init_from != "resume") {  // the model's own
    std::error_code ignored;
    const fs::path model = c.init_from;
    tokenizer = (fs::is_directory(model, ignored) ? model : model.parent_path() / ".").string();
  }
  return {c.data, tokenizer, c.out, c.init_from == "resume"};
}

// Rank 0 makes the files, the others find them made.
TrainData data_of(const TrainCommand& command, const Console& console, Communicator* communicator) {
  make_folder(command.out / "checkpoints").value();
  TrainSource source = source_of(command);
  if (communicator == nullptr) return prepare_data(source, console);
  double done = 0;
  if (communicator->rank() != 0) {
    communicator->sum(std::span(&done, 1));
    source.has_vocabulary = true;
    return prepare_data(source, console);
  }
  TrainData data = prepare_data(source, console);
  communicator->sum(std::span(&done, 1));
  return data;
}

}  // namespace

// Tokens per second since the last evaluation, and what a person at a terminal wants to know in between.
struct TrainRun::Speed {
  double start = now(), shown = start;
  std::int64_t tokens = 0;
  bool terminal = stderr_is_terminal();

  double rate() const { return static_cast<double>(tokens) / std::max(now() - start, 1e-9); }
  void show(const Console& console, const Trainer::StepResult& result, std::int64_t iter, std::int64_t last,
            std::int64_t tokens_each) {
    if (console.quiet() || now() - shown < (terminal ? 0.2 : 10.0)) return;
    shown = now();
    const double left = static_cast<double>((last - iter) * tokens_each) / rate();
    const std::string line = "iter " + std::to_string(iter) + '/' + std::to_string(last) +
                             format("  loss %.4f", result.loss) + format("  %.0f tok/s", rate()) + "  ETA " +
                             duration(left);
    if (terminal) {
      Console::status(line);
    } else {
      Console::say(line);
    }
  }
  void clear() const {
    if (terminal) Console::status({});
  }
};

std::vector<fs::path> find_checkpoints(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  for (auto at = fs::directory_iterator(folder, error); !error && at != fs::end(at); at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (name.starts_with("iter-") && name.ends_with(".safetensors")) found.push_back(at->path());
  }
  std::ranges::sort(found);
  return found;
}

TrainRun::TrainRun(const TrainCommand& command, const Console& console, Communicator* communicator)
    : command_(command),
      console_(console),
      communicator_(communicator),
      writes_(communicator == nullptr || communicator->rank() == 0),
      context_(exec_options(command.device, console)),
      data_(data_of(command, console, communicator)),
      trainer_(make_trainer()) {
  const TrainSettings& s = command.settings;
  for (const auto& [name, tokens] :
       {std::pair("training", &data_.train), {"validation", &data_.validation}}) {
    if (tokens->size() < fewest_ids(s.batches())) {
      throw Error(Code::input, command.data.string() + ": the " + name + " part: expected at least " +
                                   std::to_string(fewest_ids(s.batches())) + " tokens for --block-size " +
                                   std::to_string(s.block_size) + ", got " + std::to_string(tokens->size()));
    }
  }
  if (s.block_size > trainer_.config().n_positions) {
    throw Error(Code::usage, "--block-size: expected at most the model's " +
                                 std::to_string(trainer_.config().n_positions) + " positions, got " +
                                 std::to_string(s.block_size));
  }
  // Ids without a tokenizer are held against the vocabulary batch by batch.
  const std::int64_t vocab = trainer_.config().vocab_size;
  if (data_.vocab_size > vocab || (data_.tokenizer && data_.vocab_size + kMaxVocabPadding < vocab)) {
    throw Error(Code::malformed, command.init_from + ": vocab_size: expected the tokenizer's " +
                                     std::to_string(data_.vocab_size) + " or a little more, got " +
                                     std::to_string(vocab));
  }
  if (!writes_) return;
  const bool resumed = command.init_from == "resume";
  log_.emplace(command.out, resumed ? trainer_.iteration() : -1);
  write_file(command.out / "train.json", to_json(s)).value();
  console.note("inkling: " + std::to_string(trainer_.config().parameter_count()) + " parameters, " +
               std::to_string(data_.train.size()) + " training and " +
               std::to_string(data_.validation.size()) + " validation tokens, " +
               context_.backend().description());
}

Trainer TrainRun::make_trainer() {
  const TrainSettings& s = command_.settings;
  if (command_.init_from == "scratch") {
    ModelConfig config = s.model(data_.vocab_size);
    if (data_.tokenizer) config.eos_token_id = data_.tokenizer->eos_id();
    return Trainer::from_scratch(context_, config, s.options(), communicator_);
  }
  if (command_.init_from != "resume") {
    const Gpt2Source source = Gpt2Source::open(command_.init_from).value();
    return Trainer::from_weights(context_, source, s.options(), communicator_);
  }
  const std::vector<fs::path> found = find_checkpoints(checkpoints());
  if (found.empty()) {
    throw Error(Code::file, checkpoints().string() + ": expected checkpoints to resume from, got none");
  }
  const SafetensorsFile file = SafetensorsFile::open(found.back()).value();
  const std::string* const best = find(file.metadata(), kBestKey);
  if (best != nullptr && !parse_number(*best, best_)) best_ = std::numeric_limits<double>::infinity();
  return Trainer::from_checkpoint(context_, file, s.options(), communicator_).value();
}

// Of several processes each takes its share of the batches of an iteration, numbered through all of them.
std::vector<TrainingBatch> TrainRun::batches() const {
  const std::int64_t all = command_.settings.gradient_accumulation_steps;
  const std::int64_t ranks = communicator_ != nullptr ? communicator_->size() : 1;
  const std::int64_t rank = communicator_ != nullptr ? communicator_->rank() : 0;
  std::vector<TrainingBatch> mine;
  for (std::int64_t m = all / ranks * rank; m < all / ranks * (rank + 1); ++m) {
    mine.push_back(draw_batch(data_.train, command_.settings.batches(), Split::train,
                              static_cast<std::uint64_t>(trainer_.iteration() * all + m)));
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
  Speed speed;
  while (true) {
    const std::int64_t iter = trainer_.iteration();
    if (interrupted()) {
      speed.clear();
      if (writes_) save_checkpoint();
      if (writes_)
        console_.note("inkling: stopped at iteration " + std::to_string(iter) +
                      "; go on with --init-from resume");
      throw Interrupted(pending_signal() != 0 ? pending_signal() : 2);
    }
    const bool done = iter >= s.max_iters;
    if (iter % s.eval_interval == 0 || done) {
      speed.clear();
      if (writes_) evaluate(speed.tokens > 0 ? speed.rate() : 0.0);
      speed = Speed();
    }
    if (done) return;
    const std::vector<TrainingBatch> drawn = batches();
    const Trainer::StepResult result = trainer_.step(drawn);
    std::int64_t tokens = 0;
    for (const TrainingBatch& batch : drawn) tokens += batch.tokens();
    tokens *= communicator_ != nullptr ? communicator_->size() : 1;
    speed.tokens += tokens;
    if (writes_) speed.show(console_, result, iter + 1, s.max_iters, tokens);
  }
}

double TrainRun::mean_loss(const TokenData& data, Split split) {
  double total = 0;
  for (std::int64_t i = 0; i < command_.settings.eval_iters; ++i) {
    total +=
        trainer_.loss(draw_batch(data, command_.settings.batches(), split, static_cast<std::uint64_t>(i)));
  }
  return total / static_cast<double>(command_.settings.eval_iters);
}

void TrainRun::evaluate(double tok_per_s) {
  const std::int64_t iter = trainer_.iteration();
  if (log_->has(iter)) return;  // what a resumed run begins with has been told
  const Evaluation e{iter, mean_loss(data_.train, Split::train_loss),
                     mean_loss(data_.validation, Split::validation_loss),
                     learning_rate_at(command_.settings.options(), iter), tok_per_s};
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
  trainer_.save_model(next, command_.settings.save_dtype == "bf16" ? DType::bf16 : DType::f32).value();
  sample(next);
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
  std::array<char, 40> name{};
  std::snprintf(name.data(), name.size(), "iter-%09lld.safetensors",
                static_cast<long long>(trainer_.iteration()));
  trainer_.save_checkpoint(checkpoints() / name.data(), {{std::string(kBestKey), format("%.17g", best_)}})
      .value();
  const std::vector<fs::path> found = find_checkpoints(checkpoints());
  std::error_code ignored;
  for (std::size_t i = 0; i + static_cast<std::size_t>(command_.keep) < found.size(); ++i)
    fs::remove(found[i], ignored);
}

void TrainRun::sample(const fs::path& folder) {
  if (command_.sample_tokens == 0 || !data_.tokenizer || console_.quiet()) return;
  const Model model = Model::load(folder, context_).value();
  Generator generator(model, context_);
  GenerationRequest request;
  auto start = data_.tokenizer->encode("\n");
  request.prompt = start && !start->empty() ? *start : std::vector<std::int32_t>{data_.train.id(0)};
  request.config.max_tokens = command_.sample_tokens;
  request.config.temperature = 0.8;
  request.config.top_k = 200;
  request.config.ignore_eos = true;
  request.seed = static_cast<std::uint64_t>(command_.settings.seed);
  request.overflow = Overflow::slide;
  TextStream stream(&*data_.tokenizer, request.prompt, {}, TextForm::utf8);
  std::string text;
  request.on_token = [&](const TokenEvent& event) {
    text += stream.push(event.id);
    return Continue::yes;
  };
  generator.submit(std::move(request));
  while (generator.step() && pending_signal() == 0) {
  }
  Console::write(text + stream.finish() + "\n\n");
}

}  // namespace inkling::app
