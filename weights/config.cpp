#include "weights/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "engine/base/decimal.h"
#include "engine/base/json.h"
#include "weights/guard.h"

namespace inkling {
namespace {

using weights::malformed;

// The whole parameter count at every limit at once stays below 2^63.
static_assert(kMaxVocab * kMaxEmbd < (std::int64_t{1} << 60) &&
              kMaxPositions * kMaxEmbd < (std::int64_t{1} << 60));
static_assert(kMaxEmbd * (4 * kMaxEmbd + 2 * kMaxInner + 32) + 4 * kMaxInner <
              (std::int64_t{1} << 60) / kMaxLayers);

struct ActivationName {
  std::string_view name;
  Activation activation;
};
constexpr std::array kActivations = {
    ActivationName{"gelu_new", Activation::gelu_tanh},
    ActivationName{"gelu_pytorch_tanh", Activation::gelu_tanh},
    ActivationName{"gelu", Activation::gelu_erf},
    ActivationName{"relu", Activation::relu},
};

struct Limit {
  std::string_view field;
  std::int64_t ModelConfig::*extent;
  std::int64_t low, high;
};
constexpr std::array kLimits = {
    Limit{"vocab_size", &ModelConfig::vocab_size, 1, kMaxVocab},
    Limit{"n_positions", &ModelConfig::n_positions, 1, kMaxPositions},
    Limit{"n_embd", &ModelConfig::n_embd, 1, kMaxEmbd},
    Limit{"n_layer", &ModelConfig::n_layer, 1, kMaxLayers},
    Limit{"n_head", &ModelConfig::n_head, 1, kMaxEmbd},
    Limit{"n_inner", &ModelConfig::n_inner, 0, kMaxInner},
};

std::string between(std::int64_t low, std::int64_t high) {
  return std::to_string(low) + " to " + std::to_string(high);
}

Result<void> check(const ModelConfig& config, std::string_view name) {
  for (const Limit& limit : kLimits) {
    const std::int64_t value = config.*limit.extent;
    if (value < limit.low || value > limit.high) {
      return malformed(name, limit.field, between(limit.low, limit.high), std::to_string(value));
    }
  }
  if (config.n_embd % config.n_head != 0) {
    return malformed(name, "n_head", "a divisor of n_embd = " + std::to_string(config.n_embd),
                     std::to_string(config.n_head));
  }
  if (config.head_size() > kMaxHeadSize) {
    return malformed(name, "n_head",
                     "at least " + std::to_string((config.n_embd + kMaxHeadSize - 1) / kMaxHeadSize) +
                         ", since a head has at most " + std::to_string(kMaxHeadSize) +
                         " of n_embd = " + std::to_string(config.n_embd),
                     std::to_string(config.n_head));
  }
  if (config.activation == Activation::none) return malformed(name, "activation_function", "one", "none");
  if (!std::isfinite(config.layer_norm_epsilon) || config.layer_norm_epsilon <= 0) {
    return malformed(name, "layer_norm_epsilon", "a finite number above 0",
                     significant(config.layer_norm_epsilon, 9));
  }
  const std::pair<std::string_view, std::optional<std::int64_t>> ids[] = {
      {"bos_token_id", config.bos_token_id}, {"eos_token_id", config.eos_token_id}};
  for (const auto& [field, id] : ids) {
    if (id && (*id < 0 || *id >= config.vocab_size)) {
      return malformed(name, field, between(0, config.vocab_size - 1), std::to_string(*id));
    }
  }
  return {};
}

// Typed access to the members of one object. The first problem throws Error{malformed}, caught at the public
// entry.
class Fields {
 public:
  Fields(const JsonValue& object, std::string_view name) : object_(object), name_(name) {}

  // A null counts as absent, as it does in Python.
  const JsonValue* find(std::string_view key) const {
    const JsonValue* value = object_.find(key);
    return value != nullptr && !value->is_null() ? value : nullptr;
  }
  bool has(std::string_view key) const { return find(key) != nullptr; }

  template <class T>
  std::optional<T> optional(std::string_view key, std::string_view expected) const {
    const JsonValue* value = find(key);
    if (value == nullptr) return std::nullopt;
    const T* held = value->scalar<T>();
    if (held == nullptr) refuse(key, expected, value->describe());
    return *held;
  }
  std::optional<std::int64_t> integer(std::string_view key) const {
    return optional<std::int64_t>(key, "an integer below 2^63");
  }
  std::optional<bool> boolean(std::string_view key) const { return optional<bool>(key, "true or false"); }
  std::optional<double> number(std::string_view key) const {
    const JsonValue* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (const auto* whole = value->scalar<std::int64_t>()) return static_cast<double>(*whole);
    return optional<double>(key, "a number");
  }
  std::int64_t required(std::string_view key) const {
    const auto value = integer(key);
    if (!value) refuse(key, "an integer", "nothing");
    return *value;
  }
  /// Refuses a setting that the engine does not compute.
  void only(std::string_view key, bool supported) const {
    if (boolean(key).value_or(supported) != supported) {
      refuse(key, supported ? "true" : "false",
             supported ? "false, which is not supported" : "true, which is not supported");
    }
  }
  [[noreturn]] void refuse(std::string_view key, std::string_view expected, std::string_view got) const {
    throw malformed(name_, key, expected, got);
  }

 private:
  const JsonValue& object_;
  std::string_view name_;
};

Activation read_activation(const Fields& fields) {
  const auto name = fields.optional<std::string>("activation_function", "a string");
  if (!name) return Activation::gelu_tanh;  // the default of Hugging Face's GPT2Config
  for (const auto& known : kActivations) {
    if (*name == known.name) return known.activation;
  }
  fields.refuse("activation_function", "gelu_new, gelu_pytorch_tanh, gelu or relu", describe(*name));
}

float read_epsilon(const Fields& fields) {
  const double epsilon = fields.number("layer_norm_epsilon").value_or(1e-5);
  // Out of float's range the conversion would be undefined; the limits are far from any use.
  if (!(epsilon >= 1e-30 && epsilon <= 1e30))
    fields.refuse("layer_norm_epsilon", "1e-30 to 1e30", significant(epsilon, 9));
  return static_cast<float>(epsilon);
}

void refuse_unsupported(const Fields& fields) {
  if (const auto type = fields.optional<std::string>("model_type", "a string"); type && *type != "gpt2") {
    fields.refuse("model_type", "\"gpt2\"", describe(*type));
  }
  fields.only("scale_attn_by_inverse_layer_idx", false);
  fields.only("reorder_and_upcast_attn", false);
  fields.only("add_cross_attention", false);
  fields.only("is_encoder_decoder", false);
  fields.only("scale_attn_weights", true);
  if (fields.has("quantization_config"))
    fields.refuse("quantization_config", "none", "one, which is not supported");
  if (const JsonValue* pruned = fields.find("pruned_heads")) {
    const bool none = pruned->object() != nullptr && pruned->object()->empty();
    if (!none) fields.refuse("pruned_heads", "an empty object", "others, which is not supported");
  }
}

ModelConfig read_hugging_face(const Fields& fields) {
  refuse_unsupported(fields);
  ModelConfig config;
  config.vocab_size = fields.required("vocab_size");
  // The first GPT-2 configs say n_ctx as well; Hugging Face reads n_positions where both are there.
  config.n_positions =
      fields.required(!fields.has("n_positions") && fields.has("n_ctx") ? "n_ctx" : "n_positions");
  config.n_embd = fields.required("n_embd");
  config.n_layer = fields.required("n_layer");
  config.n_head = fields.required("n_head");
  config.n_inner = fields.integer("n_inner").value_or(0);
  config.activation = read_activation(fields);
  config.layer_norm_epsilon = read_epsilon(fields);
  config.bias = fields.boolean("bias").value_or(true) ? Bias::present : Bias::absent;
  config.head = fields.boolean("tie_word_embeddings").value_or(true) ? Head::tied : Head::separate;
  config.bos_token_id = fields.integer("bos_token_id");
  config.eos_token_id = fields.integer("eos_token_id");
  return config;
}

// nanoGPT's model.py at its last version: nn.GELU() is the exact one, epsilon is written in the code, head
// tied.
ModelConfig read_nano_gpt(const Fields& fields) {
  ModelConfig config;
  config.vocab_size = fields.required("vocab_size");
  config.n_positions = fields.required("block_size");
  config.n_embd = fields.required("n_embd");
  config.n_layer = fields.required("n_layer");
  config.n_head = fields.required("n_head");
  config.activation = Activation::gelu_erf;
  config.bias = fields.boolean("bias").value_or(true) ? Bias::present : Bias::absent;
  if (const auto dropout = fields.number("dropout"); dropout && !(*dropout >= 0 && *dropout <= 1)) {
    fields.refuse("dropout", "0 to 1", significant(*dropout, 9));
  }
  return config;
}

void drop_foreign_ids(ModelConfig& config) {
  for (auto* id : {&config.bos_token_id, &config.eos_token_id}) {
    if (*id && **id >= config.vocab_size) id->reset();
  }
}

void check_range(const Fields& fields, std::string_view key, std::optional<double> value, double low,
                 double high) {
  if (value && !(*value >= low && *value <= high)) {
    fields.refuse(key, significant(low, 6) + " to " + significant(high, 6), significant(*value, 9));
  }
}

std::optional<std::int64_t> read_count(const Fields& fields, std::string_view key) {
  const auto count = fields.integer(key);
  if (count && *count < 0) fields.refuse(key, "0 or more", std::to_string(*count));
  return count;
}

/// What becomes of an id that the vocabulary does not have.
enum class ForeignIds : std::uint8_t { refused, dropped };

/// Token ids as a file has them: below the vocabulary's size.
class IdReader {
 public:
  IdReader(const Fields& fields, std::int64_t vocab_size, ForeignIds foreign)
      : fields_(fields), vocab_size_(vocab_size), foreign_(foreign) {}

  std::optional<std::int64_t> one(std::string_view key) const {
    const JsonValue* value = fields_.find(key);
    return value == nullptr ? std::nullopt : id(key, *value, "a token id");
  }
  /// One id or a list of them, each once.
  std::vector<std::int64_t> some(std::string_view key) const {
    constexpr std::string_view kExpected = "a token id or a list of them";
    std::vector<std::int64_t> ids;
    const auto add = [&](const JsonValue& value) {
      const auto found = id(key, value, kExpected);
      if (found && std::ranges::find(ids, *found) == ids.end()) ids.push_back(*found);
    };
    const JsonValue* value = fields_.find(key);
    if (value == nullptr) return ids;
    if (value->array() == nullptr) {
      add(*value);
    } else if (value->array()->empty()) {
      fields_.refuse(key, kExpected, "an empty list");
    } else {
      for (const JsonValue& item : *value->array()) add(item);
    }
    return ids;
  }

 private:
  std::optional<std::int64_t> id(std::string_view key, const JsonValue& value,
                                 std::string_view expected) const {
    const auto* id = value.scalar<std::int64_t>();
    if (id == nullptr) fields_.refuse(key, expected, value.describe());
    if (*id >= vocab_size_ && foreign_ == ForeignIds::dropped) return std::nullopt;
    if (*id < 0 || *id >= vocab_size_) fields_.refuse(key, between(0, vocab_size_ - 1), std::to_string(*id));
    return *id;
  }

  const Fields& fields_;
  std::int64_t vocab_size_;
  ForeignIds foreign_;
};

/// The first name that Hugging Face has for it.
std::string_view published_activation_name(Activation activation) noexcept {
  for (const ActivationName& known : kActivations) {
    if (known.activation == activation) return known.name;
  }
  return "none";
}

}  // namespace

std::int64_t ModelConfig::parameter_count() const noexcept {
  const std::int64_t c = n_embd, i = inner(), has_bias = bias == Bias::present ? 1 : 0;
  const std::int64_t norm = c + has_bias * c;
  const std::int64_t matrices = c * 3 * c + c * c + 2 * c * i;
  const std::int64_t layer = 2 * norm + matrices + has_bias * (3 * c + c + i + c);
  const std::int64_t heads = head == Head::separate ? 2 : 1;
  return heads * vocab_size * c + n_positions * c + n_layer * layer + norm;
}

Result<void> ModelConfig::validate() const {
  return check(*this, "config");
}

Result<ModelConfig> parse_config_json(std::string_view text, std::string_view name) {
  return weights::guarded(name, [&]() -> Result<ModelConfig> {
    const auto root = parse_json(text, name, kMaxConfigBytes);
    if (!root) return root.error();
    const JsonValue* args = root->find("model_args");
    if (args != nullptr && args->object() == nullptr)
      return malformed(name, "model_args", "an object", args->describe());
    const bool nano_gpt =
        args != nullptr || (root->find("block_size") != nullptr && root->find("model_type") == nullptr);
    const Fields fields(args != nullptr ? *args : *root, name);
    ModelConfig config = nano_gpt ? read_nano_gpt(fields) : read_hugging_face(fields);
    drop_foreign_ids(config);
    if (const auto fine = check(config, name); !fine) return fine.error();
    return config;
  });
}

std::string to_config_json(const ModelConfig& config) {
  std::string text = "{\n  \"architectures\": [\"GPT2LMHeadModel\"],\n  \"model_type\": \"gpt2\"";
  const auto add = [&](std::string_view key, std::string_view value) {
    text.append(",\n  \"").append(key).append("\": ").append(value);
  };
  add("activation_function", '"' + std::string(published_activation_name(config.activation)) + '"');
  add("layer_norm_epsilon", significant(config.layer_norm_epsilon, 9));
  for (const Limit& limit : kLimits) {
    const std::int64_t value = config.*limit.extent;
    add(limit.field, value == 0 ? "null" : std::to_string(value));
  }
  add("tie_word_embeddings", config.head == Head::tied ? "true" : "false");
  if (config.bias == Bias::absent) add("bias", "false");
  // None is written, too: readers take GPT-2's 50256 for what is missing.
  const auto id = [](std::optional<std::int64_t> value) { return value ? std::to_string(*value) : "null"; };
  add("bos_token_id", id(config.bos_token_id));
  add("eos_token_id", id(config.eos_token_id));
  return text + "\n}\n";
}

Result<PublishedGeneration> parse_generation_config_json(std::string_view text, std::string_view name,
                                                         std::int64_t vocab_size) {
  return weights::guarded(name, [&]() -> Result<PublishedGeneration> {
    const auto root = parse_json(text, name, kMaxConfigBytes);
    if (!root) return root.error();
    const Fields fields(*root, name);
    PublishedGeneration config;
    config.do_sample = fields.boolean("do_sample");
    config.temperature = fields.number("temperature");
    config.top_k = read_count(fields, "top_k");
    config.top_p = fields.number("top_p");
    config.repetition_penalty = fields.number("repetition_penalty");
    config.max_new_tokens = read_count(fields, "max_new_tokens");
    const bool copied = fields.boolean("_from_model_config").value_or(false);
    const IdReader ids(fields, vocab_size, copied ? ForeignIds::dropped : ForeignIds::refused);
    config.bos_token_id = ids.one("bos_token_id");
    config.eos_token_ids = ids.some("eos_token_id");
    constexpr double kTiny = std::numeric_limits<double>::min();
    check_range(fields, "temperature", config.temperature, 0, std::numeric_limits<float>::max());
    check_range(fields, "top_p", config.top_p, kTiny, 1);
    check_range(fields, "repetition_penalty", config.repetition_penalty, kTiny,
                std::numeric_limits<float>::max());
    return config;
  });
}

}  // namespace inkling
