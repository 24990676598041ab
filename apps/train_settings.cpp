#include "apps/train_settings.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "apps/options.h"

namespace inkling::app {
namespace {

using S = TrainSettings;
constexpr double kMany = 1e9;
constexpr std::int64_t kMaxHeadDim = 256;  // of attention/, on every device

const TrainSetting kSettings[] = {
    {"batch_size", &S::batch_size, 1, 1 << 20, "sequences of a batch"},
    {"block_size", &S::block_size, 1, 1 << 20, "tokens of a sequence, and positions of a new model"},
    {"gradient_accumulation_steps", &S::gradient_accumulation_steps, 1, 1 << 20, "batches of an iteration"},
    {"packed_documents", &S::packed_documents, 0, 1, "whole documents, packed, none seeing another"},
    {"n_layer", &S::n_layer, 1, kMaxLayers, "layers", true},
    {"n_head", &S::n_head, 1, kMaxEmbd, "heads of attention", true},
    {"n_embd", &S::n_embd, 1, kMaxEmbd, "width", true},
    {"bias", &S::bias, 0, 1, "biases in norms and linear layers", true},
    {"dropout", &S::dropout, 0, 0.999, "of embeddings, attention and residuals"},
    {"learning_rate", &S::learning_rate, 0, 1e3, "AdamW's, after the warm-up"},
    {"min_lr", &S::min_lr, 0, 1e3, "after the decay; a tenth of --learning-rate"},
    {"warmup_iters", &S::warmup_iters, 0, kMany, "iterations of warm-up"},
    {"lr_decay_iters", &S::lr_decay_iters, 0, kMany, "where the cosine ends; 0: no decay"},
    {"max_iters", &S::max_iters, 0, kMany, "iterations in all"},
    {"weight_decay", &S::weight_decay, 0, 1e3, "of matrices"},
    {"beta1", &S::beta1, 0, 0.999999, "of the first moment"},
    {"beta2", &S::beta2, 0, 0.999999, "of the second moment"},
    {"grad_clip", &S::grad_clip, 0, 1e9, "largest norm of the gradient; 0: any"},
    {"eval_interval", &S::eval_interval, 1, kMany, "iterations between evaluations"},
    {"eval_iters", &S::eval_iters, 1, kMany, "batches of each split in an evaluation"},
    {"seed", &S::seed, 0, 9e15, "of weights, batches and dropout"},
    {"compute", &S::compute, 0, 0, "f32, or bf16: factors of products"},
    {"save_dtype", &S::save_dtype, 0, 0, "f32, or bf16: of the model in the out folder"},
};

template <class T>
void set_number(T& target, const TrainSetting& setting, const std::string& text) {
  T value{};
  if (!parse_number(text, value) || !(static_cast<double>(value) >= setting.least) ||
      static_cast<double>(value) > setting.most) {
    const auto bound = [](double b) { return nlohmann::json(static_cast<T>(b)).dump(); };
    refuse((std::is_integral_v<T> ? "a whole number from " : "a number from ") + bound(setting.least) +
               " to " + bound(setting.most),
           text);
  }
  target = value;
}

void set_value(std::int64_t& target, const TrainSetting& s, const std::string& text) {
  set_number(target, s, text);
}
void set_value(double& target, const TrainSetting& s, const std::string& text) {
  set_number(target, s, text);
}
void set_value(bool& target, const TrainSetting&, const std::string& text) {
  const bool yes = text == "true" || text == "True";  // and as nanoGPT's command lines have it
  if (!yes && text != "false" && text != "False") refuse("true or false", text);
  target = yes;
}
void set_value(std::string& target, const TrainSetting&, const std::string& text) {
  if (text != "f32" && text != "bf16") refuse("one of f32, bf16", text);
  target = text;
}

}  // namespace

ModelConfig TrainSettings::model(std::int64_t vocab_size) const {
  ModelConfig config;
  config.vocab_size = vocab_size;
  config.n_positions = block_size;
  config.n_embd = n_embd;
  config.n_layer = n_layer;
  config.n_head = n_head;
  config.activation = Activation::gelu_erf;  // nn.GELU()
  config.bias = bias ? Bias::present : Bias::absent;
  return config;
}

TrainOptions TrainSettings::options() const {
  TrainOptions o;
  o.learning_rate = learning_rate;
  o.min_lr = min_lr;
  o.warmup_iters = warmup_iters;
  o.lr_decay_iters = lr_decay_iters;
  o.beta1 = beta1;
  o.beta2 = beta2;
  o.weight_decay = weight_decay;
  o.grad_clip = grad_clip;
  o.dropout = static_cast<float>(dropout);
  o.seed = static_cast<std::uint64_t>(seed);
  o.compute = compute == "bf16" ? WeightFormat::bf16 : WeightFormat::f32;
  return o;
}

BatchShape TrainSettings::batches() const {
  return {packed_documents ? Packing::documents : Packing::blocks, batch_size, block_size,
          static_cast<std::uint64_t>(seed)};
}

std::span<const TrainSetting> train_settings() {
  return kSettings;
}

void set(TrainSettings& settings, const TrainSetting& setting, const std::string& text) {
  std::visit([&](auto member) { set_value(settings.*member, setting, text); }, setting.member);
}

std::string text_of(const TrainSettings& settings, const TrainSetting& setting) {
  return std::visit(
      [&](auto member) {
        const nlohmann::json value(settings.*member);
        return value.is_string() ? value.get<std::string>() : value.dump();
      },
      setting.member);
}

void check(const TrainSettings& s, ModelSizes sizes) {
  const auto refuse_flag = [](std::string_view name, const std::string& expected, const auto& got) {
    throw Error(Code::usage,
                "--" + flag_name(name) + ": expected " + expected + ", got " + nlohmann::json(got).dump());
  };
  if (s.min_lr > s.learning_rate) {
    refuse_flag("min_lr", "at most --learning-rate " + nlohmann::json(s.learning_rate).dump(), s.min_lr);
  }
  if (s.lr_decay_iters != 0 && s.lr_decay_iters <= s.warmup_iters) {
    refuse_flag("lr_decay_iters", "0 or more than --warmup-iters " + std::to_string(s.warmup_iters),
                s.lr_decay_iters);
  }
  if (s.batch_size > INT32_MAX / s.block_size) {  // offsets of a packed batch
    refuse_flag("batch_size",
                "at most " + std::to_string(INT32_MAX / s.block_size) + " for --block-size " +
                    std::to_string(s.block_size) + ", 2^31 tokens in all",
                s.batch_size);
  }
  if (sizes == ModelSizes::of_weights) return;
  const std::string width = "--n-embd " + std::to_string(s.n_embd);
  if (s.n_embd % s.n_head != 0) refuse_flag("n_head", "a divisor of " + width, s.n_head);
  if (s.n_embd / s.n_head > kMaxHeadDim) {
    refuse_flag("n_head",
                "at least " + std::to_string((s.n_embd + kMaxHeadDim - 1) / kMaxHeadDim) + " for " + width +
                    ", since a head has at most " + std::to_string(kMaxHeadDim) + " dimensions",
                s.n_head);
  }
}

TrainSettings train_preset(const std::string& name) {
  TrainSettings s;
  if (name == "shakespeare-char-gpu") {
    s.n_layer = s.n_head = 6;
    s.n_embd = 384;
    s.block_size = 256;
    s.batch_size = 64;
    s.max_iters = s.lr_decay_iters = 5000;
    s.eval_iters = 200;
    s.dropout = 0.2;
  } else if (name != "shakespeare-char-cpu") {
    refuse("one of shakespeare-char-cpu, shakespeare-char-gpu", name);
  }
  return s;
}

std::string to_json(const TrainSettings& settings) {
  nlohmann::ordered_json json;
  for (const TrainSetting& setting : kSettings) {
    std::visit([&](auto member) { json[std::string(setting.name)] = settings.*member; }, setting.member);
  }
  return json.dump(1) + '\n';
}

TrainSettings train_settings_from_json(std::string_view text, const std::string& file) {
  const auto malformed = [&](const std::string& name, const std::string& what) {
    return Error(Code::malformed, file + ": " + name + ": " + what);
  };
  std::set<std::string> seen;  // the parser itself keeps the last of two equal keys
  const auto once = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& key) {
    if (depth == 1 && event == nlohmann::json::parse_event_t::key &&
        !seen.insert(key.get<std::string>()).second) {
      throw malformed(key.get<std::string>(), "expected the key once, got it twice");
    }
    return true;
  };
  const nlohmann::json json = nlohmann::json::parse(text, once, false);
  if (!json.is_object()) throw Error(Code::malformed, file + ": expected a JSON object");
  TrainSettings settings;
  for (const TrainSetting& setting : kSettings) {
    const std::string name(setting.name);
    if (seen.erase(name) == 0) throw malformed(name, "expected a value, got none");
    const nlohmann::json& value = json.at(name);
    const bool words = std::holds_alternative<std::string S::*>(setting.member);
    try {
      set(settings, setting, words && value.is_string() ? value.get<std::string>() : value.dump());
    } catch (const Error& error) {
      throw malformed(name, error.message());
    }
  }
  if (!seen.empty()) throw malformed(*seen.begin(), "expected the name of a setting");
  return settings;
}

}  // namespace inkling::app
