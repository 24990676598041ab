#include "apps/options.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>

#include "model/option_table.h"

namespace inkling::app {
namespace {

std::string flag_name(std::string_view option) {
  std::string name(option);
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

/// "-n,--max-tokens,--max-new-tokens,--n-predict"
std::string flag_names(const Option& option) {
  std::string names = option.letter != 0 ? std::string("-") + option.letter + "," : "";
  names += "--" + flag_name(option.name);
  std::string aliases = flag_name(option.aliases);
  for (std::size_t at = 0; at < aliases.size();) {
    const std::size_t comma = std::min(aliases.find(',', at), aliases.size());
    names += ",--" + aliases.substr(at, comma - at);
    at = comma + 1;
  }
  return names;
}

const CLI::App* chosen_command(const CLI::App& app, const std::vector<std::string>& given, std::size_t& at) {
  for (at = 0; at < given.size(); ++at) {
    for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
      if (command->get_name() == given[at]) return command;
    }
  }
  return nullptr;
}

/// "--max-tokens" → "INKLING_MAX_TOKENS"
std::string environment_name(const std::string& flag) {
  std::string name = "INKLING_";
  for (const char c : flag)
    name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

void add_setting(const CLI::Option& option, const std::string& name, const std::string& value,
                 std::vector<std::string>& arguments) {
  arguments.push_back("--" + name + (option.get_expected_min() == 0 && value.empty() ? "" : "=" + value));
}

/// Lines "name = value"; "#" begins a comment.
void add_config_file(const CLI::App& command, const std::string& path, std::vector<std::string>& arguments) {
  std::ifstream file(path);
  require(file.good(), Code::file, [&] { return path + ": cannot be read"; });
  std::size_t number = 0;
  const auto trimmed = [](std::string text) {
    const std::size_t first = text.find_first_not_of(" \t\r"), last = text.find_last_not_of(" \t\r");
    return first == std::string::npos ? std::string() : text.substr(first, last - first + 1);
  };
  for (std::string line; std::getline(file, line);) {
    ++number;
    line = trimmed(line);
    if (line.empty() || line[0] == '#') continue;
    const std::size_t equals = line.find('=');
    const std::string name = flag_name(trimmed(line.substr(0, equals)));
    const CLI::Option* option = command.get_option_no_throw("--" + name);
    require(equals != std::string::npos && !name.empty(), Code::malformed, [&] {
      return path + ": line " + std::to_string(number) + ": expected NAME = VALUE, got '" + line + "'";
    });
    if (option != nullptr) add_setting(*option, name, trimmed(line.substr(equals + 1)), arguments);
  }
}

std::string config_path(const std::vector<std::string>& given) {
  for (std::size_t i = 0; i < given.size(); ++i) {
    if (given[i] == "--config" && i + 1 < given.size()) return given[i + 1];
    if (given[i].starts_with("--config=")) return given[i].substr(9);
  }
  const char* path = std::getenv("INKLING_CONFIG");
  return path != nullptr ? path : "";
}

}  // namespace

void add_model_flags(CLI::App& command, ModelFlags& flags) {
  const auto group = "Model";
  command.add_option("-m,--model", flags.model, "model folder or file [the sample model]")->group(group);
  command.add_option("--tokenizer", flags.tokenizer, "tokenizer folder or file [the model's]")->group(group);
  command.add_option("--device", flags.device, "auto, cpu or cuda")
      ->group(group)
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command.add_option("--dtype", flags.dtype, "auto, f32, bf16 or f16")
      ->group(group)
      ->check(CLI::IsMember({"auto", "f32", "bf16", "f16"}));
  command.add_option("--quant", flags.quant, "none, int8 or int4")
      ->group(group)
      ->check(CLI::IsMember({"none", "int8", "int4"}));
  command.add_option("-t,--threads", flags.threads, "threads [all CPUs]")
      ->group(group)
      ->check(CLI::Range(0, 1024));
  command.add_option("--verify", flags.verify, "sha256:HEX or a sha256sum file")->group(group);
  command.add_option("--max-memory", flags.max_memory, "most bytes of weights, e.g. 2GB; 0: no limit")
      ->group(group)
      ->transform(CLI::AsSizeValue(false));
  command.add_option("--log-level", flags.log_level, "trace, debug, info, warn, error or off")
      ->group(group)
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}));
  command.add_flag("-q,--quiet", flags.quiet, "no progress, no timings")->group(group);
  command.add_option("--config", "file of NAME = VALUE lines, below the environment and flags")
      ->group(group)
      ->type_name("FILE");
}

void add_sampling_flags(CLI::App& command, SamplingFlags& flags) {
  const auto group = "Sampling";
  command.add_option("--preset", flags.preset, "style: " + std::string(kPresetNames))->group(group);
  for (const Option& option : generation_options()) {
    const std::string name(option.name);
    if (option.is_flag()) {
      command
          .add_flag_callback(
              flag_names(option), [&flags, name] { flags.set.emplace_back(name, "true"); },
              std::string(option.help))
          ->group(group);
      continue;
    }
    auto* added = command.add_option_function<std::vector<std::string>>(
        flag_names(option),
        [&flags, name](const std::vector<std::string>& values) {
          for (const std::string& value : values) flags.set.emplace_back(name, value);
        },
        std::string(option.help));
    added->group(group)->type_name(option.is_list() ? "TEXT ..." : "N")->expected(1)->allow_extra_args(false);
    added->multi_option_policy(option.is_list() ? CLI::MultiOptionPolicy::TakeAll
                                                : CLI::MultiOptionPolicy::TakeLast);
  }
}

void add_batch_flags(CLI::App& command, BatchFlags& flags) {
  command.add_option("--batch", flags.batch, "sequences at a time [8]")->check(CLI::Range(1, 1 << 20));
  command.add_option("--prefill-chunk", flags.prefill_chunk, "prompt tokens per step; 0: all [512]")
      ->check(CLI::Range(0, 1 << 30));
}

GenerationConfig SamplingFlags::resolve(const PublishedGeneration& published) const {
  GenerationConfig config;
  if (published.temperature) config.temperature = *published.temperature;
  if (published.top_k) config.top_k = *published.top_k;
  if (published.top_p) config.top_p = *published.top_p;
  if (published.repetition_penalty) config.repetition_penalty = *published.repetition_penalty;
  if (published.max_new_tokens) config.max_tokens = *published.max_new_tokens;
  if (published.do_sample == false) config.temperature = 0.0;
  if (!preset.empty()) {
    const auto known = GenerationConfig::preset(preset);
    require(known.has_value(), Code::usage, [&] {
      return "--preset: expected one of " + std::string(kPresetNames) + "; got '" + preset + "'";
    });
    config = *known;
  }
  for (const auto& [name, value] : set) {
    if (Result<void> done = set_option(config, name, value); !done) {
      throw Error(done.error().code(), "--" + flag_name(done.error().message()));
    }
  }
  return config;
}

std::vector<std::string> merged_arguments(const CLI::App& app, const std::vector<std::string>& given) {
  std::size_t at = 0;
  const CLI::App* command = chosen_command(app, given, at);
  if (command == nullptr) return given;
  std::vector<std::string> merged(given.begin(), given.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  if (const std::string path = config_path(given); !path.empty()) add_config_file(*command, path, merged);
  for (const CLI::Option* option : command->get_options()) {
    for (const std::string& name : option->get_lnames()) {
      if (name == "config" || name == "help") continue;
      const char* value = std::getenv(environment_name(name).c_str());
      if (value != nullptr) add_setting(*option, name, value, merged);
    }
  }
  merged.insert(merged.end(), given.begin() + static_cast<std::ptrdiff_t>(at) + 1, given.end());
  return merged;
}

}  // namespace inkling::app
