#include "apps/sampling_options.h"

#include <algorithm>

#include "model/option_table.h"

namespace inkling::app {
namespace {

// "-n,--max-tokens,--max-new-tokens,--n-predict"
std::string flag_names(const Option& option) {
  std::string names = option.letter != 0 ? std::string("-") + option.letter + "," : "";
  names += "--" + flag_name(option.name);
  for (std::string_view rest = option.aliases; !rest.empty();) {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    names += ",--" + flag_name(rest.substr(0, comma));
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  return names;
}

std::string help(const Option& option) {
  const std::string standard = option_text(GenerationConfig(), option);
  return std::string(option.help) + (standard.empty() || option.is_flag() ? "" : " [" + standard + "]");
}

const char* value_name(const Option& option) {
  return option.name == "stop"         ? "TEXT"
         : option.name == "logit_bias" ? "ID+B"
         : option.member.index() == 1  ? "X"
                                       : "N";
}

}  // namespace

bool SamplingOptions::has(std::string_view name) const {
  return std::any_of(given.begin(), given.end(), [&](const auto& each) { return each.first == name; });
}

GenerationConfig SamplingOptions::resolve(const PublishedGeneration& published,
                                          std::int64_t vocab_size) const {
  GenerationConfig config;
  if (!preset.empty()) {
    config = GenerationConfig::preset(preset).value();
  } else {
    if (published.temperature) config.temperature = *published.temperature;
    if (published.top_k) config.top_k = *published.top_k;
    if (published.top_p) config.top_p = *published.top_p;
    if (published.repetition_penalty) config.repetition_penalty = *published.repetition_penalty;
    if (published.max_new_tokens) config.max_tokens = *published.max_new_tokens;
    if (published.do_sample == false) config.temperature = 0;
  }
  for (const auto& [name, value] : given) set_option(config, name, value).value();
  try {
    config.validate(vocab_size);
  } catch (const Error& error) {  // "FIELD: expected …"
    const std::string message = error.message();
    const std::string field = message.substr(0, message.find(':'));
    if (has(field)) throw about_flag(error, field);
    throw Error(Code::malformed, "generation_config.json: " + message);
  }
  return config;
}

void add_sampling_options(Options& options, SamplingOptions& sampling) {
  options.group("Sampling", Options::Layers::all);
  options.add("--preset", "NAME", std::string(kPresetNames), [&sampling](const std::string& value) {
    if (!GenerationConfig::preset(value)) refuse("one of " + std::string(kPresetNames), value);
    sampling.preset = value;
  });
  for (const Option& option : generation_options()) {
    const auto set = [&sampling, &option](const std::string& value) {
      GenerationConfig scratch;
      if (const Result<void> done = set_option(scratch, option.name, value); !done) {
        const std::string message =
            done.error().message();  // "top_p: expected …"; the caller says from where
        throw Error(done.error().code(), message.substr(std::min(message.find(": ") + 2, message.size())));
      }
      sampling.given.emplace_back(option.name, value);
    };
    if (option.is_flag()) {
      options.flag(flag_names(option), help(option), set);
    } else {
      options.add(flag_names(option), value_name(option), help(option), set);
    }
  }
}

void add_batch_options(Options& options, BatchOptions& batch) {
  options.add("--batch", "N", "most sequences that run together; changes no result [8]",
              [&batch](const std::string& value) {
                std::int64_t most = 0;
                whole<std::int64_t>(most, 1, 1 << 16)(value);
                batch.batch = most;
              });
  options.add("--prefill-chunk", "N", "prompt tokens a step; 0: all; changes no result [512]",
              whole<std::int64_t>(batch.prefill_chunk, 0, 1 << 24));
}

}  // namespace inkling::app
