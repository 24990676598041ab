// inkling train: a GPT-2 from scratch, further, or fine-tuned.
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "apps/folder_lock.h"
#include "apps/input.h"
#include "apps/program.h"
#include "apps/train_run.h"
#include "model/train/mpi_communicator.h"

namespace inkling::app {
namespace {

struct Given {
  TrainCommand command;
  std::string preset;
  std::vector<std::pair<const TrainSetting*, std::string>> values;  // as the command line has them
};

// Preset or the resumed run's own settings, and over them what the command line says.
TrainSettings settings_of(const Given& given) {
  const std::string& from = given.command.init_from;
  TrainSettings settings;
  if (from == "resume") {
    const std::filesystem::path path = given.command.out / "train.json";
    settings = train_settings_from_json(read_text(path), path.string());
  } else if (!given.preset.empty()) {
    settings = train_preset(given.preset);
  }
  for (const auto& [setting, text] : given.values) {
    if (setting->of_model && from != "scratch") {
      throw Error(Code::usage, "--" + flag_name(setting->name) +
                                   ": expected --init-from scratch beside it, got " + from +
                                   ", which has its own");
    }
    set(settings, *setting, text);
  }
  // nanoGPT's advice: a rate that says nothing of its end falls to a tenth. A run that goes on has its end.
  const auto is_given = [&](std::string_view name) {
    return std::ranges::any_of(given.values, [&](const auto& value) { return value.first->name == name; });
  };
  if (from != "resume" && is_given("learning_rate") && !is_given("min_lr")) {
    settings.min_lr = settings.learning_rate / 10;
  }
  check(settings, from == "scratch" ? ModelSizes::of_settings : ModelSizes::of_weights);
  return settings;
}

void check(const TrainCommand& c, const std::string& preset) {
  if (c.data.empty()) throw Error(Code::usage, "--data: expected a text, JSON lines or a folder, got none");
  if (c.resumes() && (!preset.empty() || !c.tokenizer.empty())) {
    throw Error(Code::usage,
                "--init-from resume: expected neither --preset nor --tokenizer, which the run has");
  }
  if (c.init_from != "scratch" && !preset.empty()) {
    throw Error(Code::usage, "--preset: expected --init-from scratch beside it, got " + c.init_from +
                                 ", which has its own sizes");
  }
  std::error_code ignored;
  if (c.fine_tunes() && !std::filesystem::exists(c.init_from, ignored)) {
    throw Error(Code::file, "--init-from: expected scratch, resume or a model's folder or file, got " +
                                c.init_from + ", which does not exist");
  }
}

void require_no_run(const TrainCommand& c) {
  const std::size_t count = c.checkpoints().files().size();
  if (count == 0) return;
  throw Error(Code::usage, "--out-dir: expected a folder without a run, got " + c.out.string() + " with " +
                               std::to_string(count) + " checkpoints; --init-from resume goes on with it");
}

void train(const Given& given, const Console& console) {
  check(given.command, given.preset);
  TrainCommand command = given.command;
  command.settings = settings_of(given);
  const std::unique_ptr<Communicator> communicator = join_mpi();
  const std::int64_t ranks = communicator ? communicator->size() : 1;
  if (command.settings.gradient_accumulation_steps % ranks != 0) {
    throw Error(Code::usage, "--gradient-accumulation-steps: expected a multiple of the " +
                                 std::to_string(ranks) + " processes, got " +
                                 std::to_string(command.settings.gradient_accumulation_steps));
  }
  const Console silent({.log_level = LogLevel::error, .quiet = true});
  const bool speaks = !communicator || communicator->rank() == 0;
  std::optional<FolderLock> lock;
  if (speaks) lock.emplace("--out-dir", command.out);
  if (speaks && !command.resumes()) require_no_run(command);
  TrainRun(command, speaks ? console : silent, communicator.get()).run();
}

}  // namespace

void add_train(Program& program) {
  auto given = std::make_shared<Given>();
  TrainCommand& c = given->command;
  Options& options = program.command("train", "train a model from scratch, go on, or fine-tune",
                                     [given](const Console& console) { train(*given, console); });
  options.group("Run", Options::Layers::command_line);
  options.add("--data", "PATH", "text, JSON lines {\"text\"}, a folder of them, or of train.bin, val.bin",
              path(c.data));
  options.add("--tokenizer", "WHAT", "char, bpe:N, unigram:N, sp-bpe:N, or a path [char, or the model's]",
              text(c.tokenizer));
  options.add("--init-from", "WHAT", "scratch, resume, or a model to fine-tune [scratch]", text(c.init_from));
  options.add("--out-dir", "FOLDER", "where model, checkpoints, log and curve go [out]", path(c.out));
  options.add("--preset", "NAME", "shakespeare-char-cpu or shakespeare-char-gpu: nanoGPT's settings",
              [given](const std::string& value) { train_preset(given->preset = value); });
  options.add("--keep", "N", "checkpoints to keep [2]", whole<std::int64_t>(c.keep, 1, 1 << 20));
  options.add("--sample-tokens", "N", "text to show at each evaluation [200]",
              whole<std::int64_t>(c.sample_tokens, 0, 1 << 20));
  options.group("Settings, [of shakespeare-char-cpu]", Options::Layers::command_line);
  for (const TrainSetting& setting : train_settings()) {
    const auto set_one = [given, &setting](const std::string& value) {
      TrainSettings scratch;
      set(scratch, setting, value);
      given->values.emplace_back(&setting, value);
    };
    const std::string help = std::string(setting.help) + " [" + text_of(TrainSettings(), setting) + "]";
    const std::string flag = "--" + flag_name(setting.name);
    if (std::holds_alternative<bool TrainSettings::*>(setting.member)) {
      options.flag(flag, std::string(setting.help), set_one);
    } else {
      const bool text = std::holds_alternative<std::string TrainSettings::*>(setting.member);
      const bool whole_number = std::holds_alternative<std::int64_t TrainSettings::*>(setting.member);
      options.add(flag, text ? "TYPE" : whole_number ? "N" : "X", help, set_one);
    }
  }
  add_device_options(options, c.device);
  options.add("--attn", "NAME,..", "attention by flash and math, in this order [auto]",
              backends(c.device.attn));
  options.add("--max-memory", "SIZE", "most bytes of the run, e.g. 2G [on the CPU: what is available]",
              bytes(c.device.max_memory));
}

}  // namespace inkling::app
