// config.json of Hugging Face and nanoGPT, generation_config.json, and what must be refused in them.
#include <doctest/doctest.h>

#include <limits>

#include "tests/weights/bad_files.h"
#include "tests/weights/fixtures.h"
#include "weights/config.h"

namespace inkling::test {
namespace {

// openai-community/gpt2, shortened to what matters and some of what does not.
const std::string kHuggingFace = R"({"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
"attn_pdrop": 0.1, "bos_token_id": 50256, "eos_token_id": 50255, "initializer_range": 0.02,
"layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1023, "n_embd": 768, "n_head": 12, "n_layer": 11,
"n_positions": 1024, "resid_pdrop": 0.1, "summary_type": "cls_index", "summary_use_proj": true,
"task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}, "vocab_size": 50257})";

const std::string kNanoGpt = R"({"n_layer": 6, "n_head": 3, "n_embd": 384, "block_size": 256, "bias": false,
"vocab_size": 65, "dropout": 0.2})";

ModelConfig good_config(std::string_view text) {
  const auto config = parse_config_json(text, "config.json");
  REQUIRE_MESSAGE(config, (config ? "" : config.error().message()));
  return *config;
}

TEST_CASE("Hugging Face's config.json") {
  const ModelConfig config = good_config(kHuggingFace);
  CHECK(config.vocab_size == 50257);
  CHECK(config.n_positions == 1024);
  CHECK(config.n_embd == 768);
  CHECK(config.n_layer == 11);
  CHECK(config.n_head == 12);
  CHECK(config.head_size() == 64);
  CHECK(config.inner() == 3072);
  CHECK(config.activation == Activation::gelu_tanh);
  CHECK(config.layer_norm_epsilon == 1e-5f);
  CHECK(config.bias == Bias::present);
  CHECK(config.head == Head::tied);
  CHECK(config.bos_token_id == 50256);
  CHECK(config.eos_token_id == 50255);
  ModelConfig small = config;
  small.n_layer = 12;
  CHECK(small.parameter_count() == 124'439'808);  // the published count of GPT-2 small
}

TEST_CASE("variants of config.json") {
  CHECK(good_config(with(kHuggingFace, "\"n_positions\": 1024,", "")).n_positions == 1023);
  CHECK(good_config(with(kHuggingFace, "\"n_head\"", "\"n_inner\": null, \"n_head\"")).inner() == 3072);
  CHECK(good_config(with(kHuggingFace, "\"n_head\"", "\"n_inner\": 99, \"n_head\"")).inner() == 99);
  CHECK(good_config(with(kHuggingFace, "50256", "50257")).bos_token_id == std::nullopt);
  CHECK(good_config(with(kHuggingFace, "1e-05", "1")).layer_norm_epsilon == 1.0f);
  CHECK(good_config(with(kHuggingFace, "{", "{\"tie_word_embeddings\": false,")).head == Head::separate);
  CHECK(good_config(with(kHuggingFace, "{", "{\"scale_attn_weights\": true,")).n_layer == 11);
  CHECK(good_config(with(kHuggingFace, "{", "{\"pruned_heads\": {},")).n_layer == 11);
  const std::pair<std::string, Activation> activations[] = {{"gelu_new", Activation::gelu_tanh},
                                                            {"gelu_pytorch_tanh", Activation::gelu_tanh},
                                                            {"gelu", Activation::gelu_erf},
                                                            {"relu", Activation::relu}};
  for (const auto& [name, activation] : activations) {
    CHECK(good_config(with(kHuggingFace, "gelu_new", name)).activation == activation);
  }
}

TEST_CASE("nanoGPT's model_args, bare and wrapped") {
  for (const std::string& text : {kNanoGpt, "{\"model_args\": " + kNanoGpt + ", \"iter_num\": 5}"}) {
    const ModelConfig config = good_config(text);
    CHECK(config.vocab_size == 65);
    CHECK(config.n_positions == 256);
    CHECK(config.n_embd == 384);
    CHECK(config.n_layer == 6);
    CHECK(config.n_head == 3);
    CHECK(config.activation == Activation::gelu_erf);
    CHECK(config.bias == Bias::absent);
  }
  CHECK(good_config(with(kNanoGpt, "\"bias\": false,", "")).bias == Bias::present);
}

TEST_CASE("to_config_json and back is the identity") {
  std::vector<ModelConfig> configs = {tiny_config(), good_config(kHuggingFace), good_config(kNanoGpt)};
  configs[0].n_inner = 17;
  configs[0].head = Head::separate;
  configs[0].activation = Activation::relu;
  configs[0].layer_norm_epsilon = 1.2345678e-7f;
  configs[0].eos_token_id = 6;
  for (const ModelConfig& config : configs) CHECK(good_config(to_config_json(config)) == config);
}

// Collects texts that parse_config_json() must refuse.
struct BadConfigs {
  BadFiles files;
  void add(const std::string& text, const std::string& field) { files.push_back({text, text, field}); }
  /// config.json with one more setting: "key": value.
  void add_setting(const std::string& key, const std::string& value) {
    add(with(kHuggingFace, "{", "{\"" + key + "\": " + value + ","), key);
  }
};

void break_text(BadConfigs& bad) {
  for (const std::string& good : {kHuggingFace, kNanoGpt}) {
    for (std::size_t size = 0; size < good.size(); ++size) bad.add(good.substr(0, size), "");
    for (std::size_t at = 0; at < good.size(); at += 3) {
      for (const char byte : {'\0', '\xff'}) {
        std::string text = good;
        text[at] = byte;
        bad.add(text, "");
      }
    }
  }
  for (const char* text : {"[]", "null", "1", "\"gpt2\"", "", " ", "{}", "[{}]", "{\"model_args\": {}}"}) {
    bad.add(text, "");
  }
  for (const std::size_t depth : {32u, 1000u, 100'000u}) {
    for (const std::string& deep : {nested_lists(depth), nested_objects(depth)}) {
      bad.add(with(kHuggingFace, "{", "{\"deep\": " + deep + ","), "nesting");
    }
  }
  for (const std::string& sequence : kNoUtf8) bad.add(with(kHuggingFace, "cls_index", sequence), "");
  bad.add(kHuggingFace + std::string(kMaxConfigBytes, ' '), "size");
}

void break_extents(BadConfigs& bad) {
  const std::pair<std::string, std::string> extents[] = {{"vocab_size", "50257"},
                                                         {"n_positions", "1024"},
                                                         {"n_embd", "768"},
                                                         {"n_head", "12"},
                                                         {"n_layer", "11"}};
  // Without n_ctx, which may stand in for n_positions.
  const std::string whole = with(kHuggingFace, "\"n_ctx\": 1023, ", "");
  for (const auto& [field, good] : extents) {
    const std::string key = "\"" + field + "\": ", member = key + good;
    for (const std::string& value : kNoIntegers) bad.add(with(whole, member, key + value), field);
    for (const std::string& value : kNoJson) bad.add(with(whole, member, key + value), "JSON");
    for (const char* value : {"0", "9223372036854775807", "16777217", "-9223372036854775807"}) {
      bad.add(with(whole, member, key + value), field);
    }
    bad.add(with(whole, member, "\"x\": 1"), field);
    bad.add(with(whole, member, member + ", " + member), field);
  }
  bad.add(with(kHuggingFace, "\"n_head\": 12", "\"n_head\": 7"), "n_head");
  for (const char* value : {"-1", "1048577", "2.5", "\"4\""}) bad.add_setting("n_inner", value);
  bad.add(with(kNanoGpt, "\"vocab_size\": 65", "\"vocab_size\": null"), "vocab_size");
}

void break_settings(BadConfigs& bad) {
  for (const char* value : {"0", "-1", "\"1e-5\"", "1e-60", "1e60", "true", "[]"}) {
    bad.add(with(kHuggingFace, "1e-05", value), "layer_norm_epsilon");
  }
  for (const char* value : {"\"gelu_fast\"", "\"GELU\"", "\"gelu_new \"", "\"swish\"", "\"\"", "1",
                            "[\"gelu\"]", "\"\\u0000\""}) {
    bad.add(with(kHuggingFace, "\"gelu_new\"", value), "activation_function");
  }
  for (const char* value : {"\"llama\"", "\"GPT2\"", "\"\"", "2", "[]"}) {
    bad.add(with(kHuggingFace, "\"gpt2\"", value), "model_type");
  }
  for (const char* key : {"scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention",
                          "is_encoder_decoder"}) {
    for (const char* value : {"true", "1", "\"false\"", "{}"}) bad.add_setting(key, value);
  }
  for (const char* value : {"false", "0", "\"true\""}) bad.add_setting("scale_attn_weights", value);
  bad.add_setting("quantization_config", "{}");
  for (const char* value : {"{\"0\": [1]}", "[]", "1"}) bad.add_setting("pruned_heads", value);
  bad.add_setting("bias", "1");
  bad.add_setting("tie_word_embeddings", "\"yes\"");
  bad.add_setting("model_args", "3");
  bad.add(with(kHuggingFace, "50256", "-1"), "bos_token_id");
  for (const char* value : {"-0.1", "1.5", "\"0\"", "[]"}) bad.add(with(kNanoGpt, "0.2", value), "dropout");
}

BadFiles bad_configs() {
  BadConfigs bad;
  break_text(bad);
  break_extents(bad);
  break_settings(bad);
  return std::move(bad.files);
}

TEST_CASE("every broken config.json is refused, its field named") {
  const BadFiles bad = bad_configs();
  MESSAGE(bad.size() << " broken configs");
  CHECK(bad.size() >= 1000);
  for (const BadFile& file : bad) {
    const auto config = parse_config_json(file.content, "config.json");
    REQUIRE_MESSAGE(!config, file.what.substr(0, 1000));
    const std::string message = config.error().message();
    CAPTURE(message);
    CHECK(config.error().code() == Code::malformed);
    CHECK(message.starts_with("config.json: "));
    CHECK(message.find(file.field) != std::string::npos);
    CHECK(message.find("expected") != std::string::npos);
    CHECK(message.size() < 300);
  }
}

TEST_CASE("validate() at each limit and one past it") {
  struct Case {
    std::string field;
    std::int64_t ModelConfig::*extent;
    std::int64_t low, high;
  };
  const Case cases[] = {{"vocab_size", &ModelConfig::vocab_size, 1, kMaxVocab},
                        {"n_positions", &ModelConfig::n_positions, 1, kMaxPositions},
                        {"n_layer", &ModelConfig::n_layer, 1, kMaxLayers},
                        {"n_embd", &ModelConfig::n_embd, 1, kMaxEmbd},
                        {"n_inner", &ModelConfig::n_inner, 0, kMaxInner}};
  for (const Case& c : cases) {
    CAPTURE(c.field);
    ModelConfig config = tiny_config();
    config.n_head = 1;
    for (const auto& [value, fine] : {std::pair{c.low - 1, false},
                                      {c.low, true},
                                      {c.high, true},
                                      {c.high + 1, false},
                                      {std::numeric_limits<std::int64_t>::max(), false},
                                      {std::numeric_limits<std::int64_t>::min(), false}}) {
      config.*c.extent = value;
      if (value == kMaxEmbd) config.n_head = kMaxEmbd / kMaxHeadSize;
      const auto result = config.validate();
      CHECK(result.has_value() == fine);
      if (!fine) CHECK(result.error().message().starts_with("config: " + c.field + ": expected"));
    }
  }
  ModelConfig config = tiny_config();
  config.n_embd = 4 * kMaxHeadSize;
  config.n_head = 4;
  CHECK(config.validate());
  config.n_head = 2;
  CHECK(config.validate().error().message() ==
        "config: n_head: expected at least 4, since a head has at most 256 of n_embd = 1024, got 2");
  config = tiny_config();
  config.eos_token_id = 6;
  CHECK(config.validate());
  config.eos_token_id = 7;
  CHECK(!config.validate());
  config = tiny_config();
  for (const float bad :
       {0.0f, -1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    config.layer_norm_epsilon = bad;
    CHECK(!config.validate());
  }
}

TEST_CASE("generation_config.json") {
  const auto read = [](std::string_view text) {
    return parse_generation_config_json(text, "generation_config.json", 50257);
  };
  const auto config = read(R"({"bos_token_id": 50256, "do_sample": true, "eos_token_id": [50256, 7, 50256],
      "temperature": 0.7, "top_k": 50, "top_p": 1, "max_length": 20, "max_new_tokens": null})");
  REQUIRE(config);
  CHECK(config->do_sample == true);
  CHECK(config->temperature == 0.7);
  CHECK(config->top_k == 50);
  CHECK(config->top_p == 1.0);
  CHECK(config->max_new_tokens == std::nullopt);
  CHECK(config->bos_token_id == 50256);
  CHECK(config->eos_token_ids == std::vector<std::int64_t>{50256, 7});
  CHECK(read("{\"eos_token_id\": 3}")->eos_token_ids == std::vector<std::int64_t>{3});
  CHECK(*read("{}") == PublishedGeneration{});
  // Hugging Face writes config.json's default 50256 beside any vocabulary there, too.
  const auto copied = parse_generation_config_json(
      R"({"_from_model_config": true, "bos_token_id": 50256, "eos_token_id": [50256, 7]})",
      "generation_config.json", 100);
  REQUIRE(copied);
  CHECK(copied->bos_token_id == std::nullopt);
  CHECK(copied->eos_token_ids == std::vector<std::int64_t>{7});
  const std::pair<std::string, std::vector<std::string>> bad[] = {
      {"temperature", {"-0.1", "\"1\"", "true", "1e300", "[]"}},
      {"top_p", {"0", "-1", "1.01", "\"\"", "{}"}},
      {"top_k", {"-1", "0.5", "1e2", "9223372036854775808"}},
      {"repetition_penalty", {"0", "-1", "\"x\""}},
      {"max_new_tokens", {"-1", "false"}},
      {"do_sample", {"1", "\"true\""}},
      {"bos_token_id", {"-1", "[]", "[1]", "50257"}},
      {"eos_token_id",
       {"-1", "[1,-1]", "[[1]]", "\"a\"", "[1.5]", "[null]", "{}", "[]", "99999", "[7,50257]"}},
      {"_from_model_config", {"1"}},
  };
  for (const auto& [field, values] : bad) {
    for (const std::string& value : values) {
      const auto refused = read("{\"" + field + "\": " + value + "}");
      CAPTURE(field);
      CAPTURE(value);
      REQUIRE(!refused);
      CHECK(refused.error().code() == Code::malformed);
      CHECK(refused.error().message().starts_with("generation_config.json: " + field + ": expected"));
    }
  }
}

}  // namespace
}  // namespace inkling::test
