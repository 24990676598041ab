#include "model/option_table.h"

#include <charconv>
#include <cmath>
#include <limits>

#include "engine/base/decimal.h"

namespace inkling {
namespace {

constexpr double kMost = 1e9;
using G = GenerationConfig;

const Option kOptions[] = {
    {"max_tokens", "max_new_tokens,n_predict", 'n', &G::max_tokens, 0, kMost, "new tokens at most"},
    {"seed", "", 's', &G::seed, 0, 0, "seed of the draw; default: a fresh one, reported"},
    {"temperature", "temp", 0, &G::temperature, 0, 1e4, "0 is greedy"},
    {"top_k", "", 0, &G::top_k, 0, kMost, "keep the k likeliest; 0: all"},
    {"top_p", "", 0, &G::top_p, 0, 1, "keep the likeliest with this total probability"},
    {"min_p", "", 0, &G::min_p, 0, 1, "keep what has this share of the likeliest's probability"},
    {"typical_p", "", 0, &G::typical_p, 0, 1, "keep the most typical with this total probability"},
    {"repetition_penalty", "repeat_penalty", 0, &G::repetition_penalty, 1e-3, 1e3,
     "above 1 discourages repeats"},
    {"repeat_last_n", "", 0, &G::repeat_last_n, -1, kMost, "tokens that penalties look back; -1: all"},
    {"presence_penalty", "", 0, &G::presence_penalty, -100, 100, "subtracted from tokens seen"},
    {"frequency_penalty", "", 0, &G::frequency_penalty, -100, 100, "subtracted per occurrence"},
    {"no_repeat_ngram_size", "", 0, &G::no_repeat_ngram_size, 0, kMost,
     "no n-gram of this size twice; 0: off"},
    {"logit_bias", "", 'l', &G::logit_bias, -1e4, 1e4, "ID+B or ID-B: add to a token's logit; repeatable"},
    {"stop", "", 0, &G::stop, 0, 0, "text that ends generation; repeatable"},
    {"ignore_eos", "", 0, &G::ignore_eos, 0, 1, "go on past tokens that end a text"},
    {"logprobs", "", 0, &G::logprobs, -1, 1000, "report log-probabilities of the N likeliest"},
};

std::string number(double value) {
  return significant(value, 12);
}

Error wrong(const Option& option, const std::string& expected, std::string_view got) {
  return Error(Code::usage,
               std::string(option.name) + ": expected " + expected + ", got '" + std::string(got) + "'");
}

template <class T>
bool parse(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

std::string range(const Option& option, const char* kind) {
  return std::string(kind) + " from " + number(option.min) + " to " + number(option.max);
}

/// "50256-100", "11+2.5" or "11:-2.5".
bool parse_bias(std::string_view text, std::pair<std::int32_t, double>& bias) {
  const std::size_t at = text.find_first_of("+-:", 1);
  if (at == std::string_view::npos) return false;
  std::string_view value = text.substr(text[at] == '-' ? at : at + 1);
  return parse(text.substr(0, at), bias.first) && parse(value, bias.second) && std::isfinite(bias.second);
}

struct Setter {
  G& config;
  const Option& option;
  std::string_view text;

  Result<void> operator()(std::int64_t G::*member) const {
    std::int64_t value = 0;
    if (!parse(text, value) || static_cast<double>(value) < option.min ||
        static_cast<double>(value) > option.max) {
      return wrong(option, range(option, "a whole number"), text);
    }
    config.*member = value;
    return {};
  }
  Result<void> operator()(double G::*member) const {
    double value = 0;
    if (!parse(text, value) || !(value >= option.min && value <= option.max)) {
      return wrong(option, range(option, "a number"), text);
    }
    config.*member = value;
    return {};
  }
  Result<void> operator()(bool G::*member) const {
    if (text != "true" && text != "false" && text != "1" && text != "0")
      return wrong(option, "true or false", text);
    config.*member = text == "true" || text == "1";
    return {};
  }
  Result<void> operator()(std::optional<std::uint64_t> G::*member) const {
    std::uint64_t value = 0;
    if (!parse(text, value)) return wrong(option, "a whole number from 0 to 18446744073709551615", text);
    config.*member = value;
    return {};
  }
  Result<void> operator()(std::vector<std::string> G::*member) const {
    if (text.empty()) return wrong(option, "a text that is not empty", text);
    (config.*member).emplace_back(text);
    return {};
  }
  Result<void> operator()(std::vector<std::pair<std::int32_t, double>> G::*member) const {
    std::pair<std::int32_t, double> bias;
    if (!parse_bias(text, bias) || bias.first < 0 || bias.second < option.min || bias.second > option.max) {
      return wrong(option, "ID+BIAS or ID-BIAS with a bias from -10000 to 10000", text);
    }
    (config.*member).push_back(bias);
    return {};
  }
};

struct Printer {
  const G& config;
  std::string operator()(std::int64_t G::*member) const { return std::to_string(config.*member); }
  std::string operator()(double G::*member) const { return number(config.*member); }
  std::string operator()(bool G::*member) const { return config.*member ? "true" : "false"; }
  std::string operator()(std::optional<std::uint64_t> G::*member) const {
    return config.*member ? std::to_string(*(config.*member)) : "";
  }
  std::string operator()(std::vector<std::string> G::*member) const {
    std::string all;
    for (const std::string& text : config.*member) all += (all.empty() ? "" : ", ") + text;
    return all;
  }
  std::string operator()(std::vector<std::pair<std::int32_t, double>> G::*member) const {
    std::string all;
    for (const auto& [id, bias] : config.*member) {
      all += (all.empty() ? "" : ", ") + std::to_string(id) + ":" + number(bias);
    }
    return all;
  }
};

/// Checks a field that was set without the table.
struct Checker {
  const G& config;
  const Option& option;

  template <class T>
  void operator()(T G::*member) const {
    if constexpr (std::is_same_v<T, std::int64_t> || std::is_same_v<T, double>) {
      const auto value = static_cast<double>(config.*member);
      in_range(value, "a number");
    } else if constexpr (std::is_same_v<T, std::vector<std::pair<std::int32_t, double>>>) {
      for (const auto& [id, bias] : config.*member) in_range(bias, "a bias");
    }
  }
  void in_range(double value, const char* kind) const {
    require(value >= option.min && value <= option.max, Code::usage, [&] {  // false for NaN
      return wrong(option, range(option, kind), number(value)).message();
    });
  }
};

}  // namespace

std::span<const Option> generation_options() {
  return kOptions;
}

const Option* find_option(std::string_view name) {
  for (const Option& option : kOptions) {
    if (option.name == name) return &option;
    std::string_view rest = option.aliases;
    while (!rest.empty()) {
      const std::size_t comma = rest.find(',');
      if (rest.substr(0, comma) == name) return &option;
      rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    }
  }
  return nullptr;
}

Result<void> set_option(GenerationConfig& config, std::string_view name, std::string_view text) {
  const Option* option = find_option(name);
  if (option == nullptr) return Error(Code::usage, std::string(name) + ": no such option");
  return std::visit(Setter{config, *option, text}, option->member);
}

std::string option_text(const GenerationConfig& config, const Option& option) {
  return std::visit(Printer{config}, option.member);
}

void GenerationConfig::validate(std::int64_t vocab_size) const {
  for (const Option& option : kOptions) std::visit(Checker{*this, option}, option.member);
  for (const auto& [id, bias] : logit_bias) {
    require(id >= 0 && id < vocab_size, Code::usage, [&, id = id] {
      return "logit_bias: expected ids below " + std::to_string(vocab_size) + ", got " + std::to_string(id);
    });
  }
  for (const std::string& text : stop) {
    require(!text.empty(), Code::usage, [] { return "stop: expected texts that are not empty, got ''"; });
  }
}

std::optional<GenerationConfig> GenerationConfig::preset(std::string_view name) {
  GenerationConfig config;
  if (name == "default") return config;
  config.top_p = 1.0;
  if (name == "openai-gpt2") return config.temperature = 1.0, config.top_k = 0, config;
  if (name == "nanogpt") return config.max_tokens = 500, config.top_k = 200, config;
  if (name == "hf") return config.temperature = 1.0, config.top_k = 50, config;
  if (name == "llama") return config.top_p = 0.95, config.min_p = 0.05, config;
  return std::nullopt;
}

}  // namespace inkling
