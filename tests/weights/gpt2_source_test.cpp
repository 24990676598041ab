// Every way of writing a GPT-2 down leads to the same tensors; everything else is refused by name.
#include "weights/gpt2_source.h"

#include <doctest/doctest.h>

#include <functional>

#include "tests/weights/bad_files.h"
#include "tests/weights/fixtures.h"

namespace inkling::test {
namespace {

void save_model(const TempDir& dir, const TinyModel& model, const ModelConfig& config) {
  model.save(dir / "model.safetensors");
  put(dir / "config.json", to_config_json(config));
}

Gpt2Source open_good(const std::filesystem::path& path, const OpenOptions& options = {}) {
  auto source = Gpt2Source::open(path, options);
  REQUIRE_MESSAGE(source, (source ? "" : source.error().message()));
  return *std::move(source);
}

Error open_bad(const std::filesystem::path& path, const OpenOptions& options = {}) {
  auto source = Gpt2Source::open(path, options);
  REQUIRE(!source);
  return source.error();
}

// Each slot holds the bytes of the tensor that has this name in `model`.
void check_slots(const Gpt2Tensors& got, TinyModel& model, const Style& style) {
  CHECK(got.layout == style.layout);
  CHECK(got.vocab_rows == 7 + style.padding);
  CHECK(got.wte.shape_string() == "[7, 4]");
  CHECK(std::memcmp(got.wte.data, model.at("wte.weight").view.data, got.wte.nbytes()) == 0);
  CHECK(same_bytes(got.wpe, model.at("wpe.weight").view));
  CHECK(same_bytes(got.lnf_w, model.at("ln_f.weight").view));
  CHECK((got.lm_head.data != nullptr) == (style.head == Style::Lm::own));
  REQUIRE(got.layers.size() == 2);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    const Gpt2Layer& l = got.layers[layer];
    const std::string h = "h." + std::to_string(layer) + '.';
    const std::pair<std::string, std::pair<TensorView, TensorView>> pairs[] = {
        {"ln_1", {l.ln1_w, l.ln1_b}},          {"attn.c_attn", {l.attn_w, l.attn_b}},
        {"attn.c_proj", {l.proj_w, l.proj_b}}, {"ln_2", {l.ln2_w, l.ln2_b}},
        {"mlp.c_fc", {l.fc_w, l.fc_b}},        {"mlp.c_proj", {l.fcproj_w, l.fcproj_b}}};
    for (const auto& [name, views] : pairs) {
      CAPTURE(name);
      CHECK(same_bytes(views.first, model.at(h + name + ".weight").view));
      if (style.bias == Bias::present) {
        CHECK(same_bytes(views.second, model.at(h + name + ".bias").view));
      } else {
        CHECK(views.second.data == nullptr);
      }
    }
  }
}

TEST_CASE("every prefix, layout, bias, dtype, padding, head and mask") {
  int combinations = 0;
  for (const std::string prefix :
       {"", "transformer.", "module.transformer.", "_orig_mod.transformer.", "_orig_mod.module."}) {
    for (const MatrixLayout layout : {MatrixLayout::in_out, MatrixLayout::out_in}) {
      for (const Bias bias : {Bias::present, Bias::absent}) {
        for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
          for (const std::int64_t padding : {0, 3}) {
            for (const auto head : {Style::Lm::absent, Style::Lm::copy_of_wte, Style::Lm::own}) {
              const std::string head_prefix = prefix.starts_with("transformer") ? "" : "_orig_mod.";
              const Style style{prefix, head_prefix, layout, bias,
                                dtype,  padding,     head,   combinations % 2 == 0};
              ModelConfig config = tiny_config();
              config.bias = bias;
              TempDir dir;
              TinyModel model(style);
              save_model(dir, model, config);
              const Gpt2Source source = open_good(dir.path());
              check_slots(source.tensors(), model, style);
              config.head = head == Style::Lm::own ? Head::separate : Head::tied;
              CHECK(source.config() == config);
              ++combinations;
            }
          }
        }
      }
    }
  }
  CHECK(combinations == 360);
}

TEST_CASE("a square MLP follows the layout of the attention") {
  ModelConfig config = tiny_config();
  config.n_inner = config.n_embd;
  for (const MatrixLayout layout : {MatrixLayout::in_out, MatrixLayout::out_in}) {
    Style style;
    style.layout = layout;
    TempDir dir;
    save_model(dir, TinyModel(style, config), config);
    CHECK(open_good(dir.path()).tensors().layout == layout);
  }
}

TEST_CASE("a vocabulary is padded by 1024 rows at most") {
  for (const std::int64_t rows : {kMaxVocabPadding, kMaxVocabPadding + 1}) {
    Style style;
    style.padding = rows;
    TempDir dir;
    save_model(dir, TinyModel(style), tiny_config());
    if (rows == kMaxVocabPadding) {
      CHECK(open_good(dir.path()).tensors().vocab_rows == 7 + 1024);
    } else {
      CHECK(open_bad(dir.path()).message().find("wte.weight: expected [7, 4], got [1032, 4]") !=
            std::string::npos);
    }
  }
}

TEST_CASE("each tensor may have its own dtype") {
  TempDir dir;
  TinyModel model;
  model.remove("h.1.ln_1.weight");
  model.add("transformer.h.1.ln_1.weight", {4}, DType::bf16);
  save_model(dir, model, tiny_config());
  CHECK(open_good(dir.path()).tensors().layers[1].ln1_w.dtype == DType::bf16);
}

TEST_CASE("without config.json, extents come from the shapes") {
  TempDir dir;
  ModelConfig actual = tiny_config();
  actual.n_inner = 6;
  Style style;
  style.layout = MatrixLayout::out_in;
  style.bias = Bias::absent;
  style.head = Style::Lm::own;
  TinyModel(style, actual).save(dir / "any.safetensors");
  CHECK(open_bad(dir.path()).message().find("config.json: cannot open") != std::string::npos);
  CHECK(open_bad(dir.path()).code() == Code::file);

  OpenOptions options;
  options.override = ModelConfig{};
  CHECK(open_bad(dir.path(), options).message().find("n_head: expected 1 to") != std::string::npos);
  options.override->n_head = 2;
  const Gpt2Source source = open_good(dir.path(), options);
  actual.bias = Bias::absent;
  actual.head = Head::separate;
  CHECK(source.config() == actual);
  CHECK(source.tensors().layers[0].fc_b.data == nullptr);
  options.override->vocab_size = 8;
  CHECK(open_bad(dir.path(), options).message().find("wte.weight: expected [8, 4], got [7, 4]") !=
        std::string::npos);
}

// The tensor file is changed by `change`; the error must hold `words`.
void check_refused(const std::function<void(TinyModel&)>& change, std::string_view words) {
  TempDir dir;
  TinyModel model;
  change(model);
  save_model(dir, model, tiny_config());
  const Error error = open_bad(dir.path());
  CHECK(error.code() == Code::malformed);
  CHECK(error.message().starts_with((dir / "model.safetensors").string() + ": "));
  CHECK_MESSAGE(error.message().find(words) != std::string::npos, error.message());
  CHECK(error.message().size() < 2000);
}

TEST_CASE("missing, misshapen and mistyped tensors are named, whichever it is") {
  const TinyModel whole;
  for (const NamedTensor& tensor : whole.tensors) {
    const std::string name = tensor.name.substr(std::string("transformer.").size());
    CAPTURE(name);
    const std::vector<std::int64_t> shape(tensor.view.shape.begin(),
                                          tensor.view.shape.begin() + tensor.view.rank);
    check_refused([&](TinyModel& m) { m.remove(name); },
                  name + ": expected " + tensor.view.shape_string() + ", got none");
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      for (const std::int64_t extent :
           {std::int64_t{0}, shape[axis] - 1, shape[axis] + 1, shape[axis] + 2000}) {
        const bool padding = name == "wte.weight" && axis == 0 && extent == shape[0] + 1;
        if (padding) continue;
        std::vector<std::int64_t> wrong = shape;
        wrong[axis] = extent;
        const std::string got =
            ", got " + TensorView(nullptr, DType::f32, std::span<const std::int64_t>(wrong)).shape_string();
        check_refused(
            [&](TinyModel& m) {
              m.remove(name);
              m.add(tensor.name, wrong);
            },
            got);
      }
    }
    check_refused(
        [&](TinyModel& m) {
          m.remove(name);
          m.add(tensor.name, shape, DType::i32);
        },
        tensor.name + ": expected f32, f16 or bf16, got i32");
  }
}

TEST_CASE("unexpected and doubled tensors are named") {
  for (const std::string name :
       {"transformer.h.2.ln_1.weight", "transformer.h.0.ln_3.weight", "extra", "",
        "transformer.h.0.crossattention.q_attn.weight", "transformer.h.00.ln_1.weight",
        "transformer.h.00.attn.bias", "transformer.h.-1.attn.bias", "transformer.h.-1.ln_1.weight",
        "transformer.h..ln_1.weight", "transformer.h.99999999999999999999.x",
        "transformer.h.4096.ln_1.weight", "score.weight", "encoder.wte.weight"}) {
    check_refused([&](TinyModel& m) { m.add(name, {4}); }, name + ": expected no such tensor");
  }
  check_refused(
      [](TinyModel& m) {
        m.add("wte.weight", {7, 4});
      },
      "expected one tensor of that meaning, got also");
  check_refused([](TinyModel& m) { m.add("bad\x1bname", {1}); }, "bad?name: expected no such tensor");
  check_refused([](TinyModel& m) { m.tensors.clear(); }, "and 20 more");
  check_refused(
      [](TinyModel& m) {
        m.remove("h.1.mlp.c_fc.weight");
        m.add("transformer.h.1.mlp.c_fc.weight", {16, 4});
      },
      "h.1.mlp.c_fc.weight: expected [4, 16], got [16, 4]");
}

TEST_CASE("config.json and tensors must agree on biases and on a separate head") {
  TempDir dir;
  ModelConfig config = tiny_config();
  config.bias = Bias::absent;
  save_model(dir, TinyModel(), config);
  CHECK(open_bad(dir.path())
            .message()
            .find("h.0.attn.c_attn.bias: expected no biases, as the config says, got [12]") !=
        std::string::npos);
  config = tiny_config();
  config.head = Head::separate;
  save_model(dir, TinyModel(), config);
  CHECK(open_bad(dir.path()).message().find("lm_head.weight: expected [7, 4], got none") !=
        std::string::npos);
}

TEST_CASE("tensor_bytes() counts what is in use") {
  TempDir dir;
  Style style;
  style.masks = true;
  style.head = Style::Lm::copy_of_wte;
  save_model(dir, TinyModel(style), tiny_config());
  CHECK(open_good(dir.path()).tensor_bytes() ==
        static_cast<std::uint64_t>(tiny_config().parameter_count()) * 4);
}

TEST_CASE("tensors that the file leaves unaligned are aligned, within max_memory") {
  TempDir dir;
  TinyModel model;
  save_model(dir, model, tiny_config());
  OpenOptions options;
  options.max_memory = 1;
  check_slots(open_good(dir.path(), options).tensors(), model, Style{});  // nothing to copy
  // One more space in the header moves every tensor by a byte.
  std::string bytes = content_of(dir / "model.safetensors");
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  bytes.insert(8 + length, " ");
  ++length;
  std::memcpy(bytes.data(), &length, sizeof length);
  put(dir / "model.safetensors", bytes);
  const Gpt2Source source = open_good(dir.path());
  CHECK(reinterpret_cast<std::uintptr_t>(source.tensors().wte.data) % 4 == 0);
  check_slots(source.tensors(), model, Style{});
  options.max_memory = source.tensor_bytes();
  check_slots(open_good(dir.path(), options).tensors(), model, Style{});
  --options.max_memory;
  const Error refused = open_bad(dir.path(), options);
  CHECK(refused.code() == Code::out_of_memory);
  CHECK(refused.message().starts_with((dir / "model.safetensors").string() +
                                      ": unaligned tensors: expected at most"));
}

TEST_CASE("a source survives being moved and being told to drop its pages") {
  TempDir dir;
  TinyModel model;
  save_model(dir, model, tiny_config());
  Gpt2Source first = open_good(dir / "model.safetensors");
  const Gpt2Source source = std::move(first);
  source.release(source.tensors().wte);
  check_slots(source.tensors(), model, Style{});
}

TEST_CASE("shards and generation_config.json are found") {
  TempDir dir;
  TinyModel model;
  const std::span all(model.tensors);
  write_safetensors(dir / "a.safetensors", all.first(9)).value();
  write_safetensors(dir / "b.safetensors", all.subspan(9)).value();
  std::string map;
  for (std::size_t i = 0; i < all.size(); ++i) {
    map += (i == 0 ? "\"" : ",\"") + all[i].name + "\":\"" + (i < 9 ? "a" : "b") + ".safetensors\"";
  }
  put(dir / "model.safetensors.index.json", "{\"weight_map\":{" + map + "}}");
  put(dir / "config.json", to_config_json(tiny_config()));
  put(dir / "generation_config.json", "{\"top_k\": 5}");
  const Gpt2Source source = open_good(dir.path());
  check_slots(source.tensors(), model, Style{});
  CHECK(source.published_generation().top_k == 5);
  put(dir / "generation_config.json", "{\"top_k\": -5}");
  CHECK(open_bad(dir.path()).message().find("top_k") != std::string::npos);
  const std::int64_t vocab = tiny_config().vocab_size;
  put(dir / "generation_config.json", "{\"eos_token_id\": " + std::to_string(vocab - 1) + "}");
  CHECK(open_good(dir.path()).published_generation().eos_token_ids == std::vector<std::int64_t>{vocab - 1});
  put(dir / "generation_config.json", "{\"eos_token_id\": " + std::to_string(vocab) + "}");
  CHECK(open_bad(dir.path()).message() == (dir / "generation_config.json").string() +
                                              ": eos_token_id: expected 0 to " + std::to_string(vocab - 1) +
                                              ", got " + std::to_string(vocab));
}

TEST_CASE("the sample model opens") {
  const Gpt2Source source = open_good(source_dir() / "weights" / "sample");
  CHECK(source.config().vocab_size == 2048);
  CHECK(source.config().parameter_count() == 3'111'936);
  CHECK(source.tensor_bytes() == 2 * 3'111'936);  // bf16
}

TEST_CASE("tiny-random-gpt2 opens") {
  if (!have_data("models/tiny-random-gpt2")) return;
  const Gpt2Source source = open_good(data_dir() / "models/tiny-random-gpt2");
  CHECK(source.config().vocab_size == 1000);
  CHECK(source.config().n_layer == 5);
  CHECK(source.config().eos_token_id == 98);
  CHECK(source.tensors().layout == MatrixLayout::in_out);
  CHECK(source.tensors().layers[4].fcproj_w.shape_string() == "[128, 32]");
  CHECK(source.tensors().lm_head.data == nullptr);
}

TEST_CASE("gpt-nano-sort opens with the heads given") {
  if (!have_data("models/gpt-nano-sort")) return;
  OpenOptions options;
  options.override = ModelConfig{};
  options.override->n_head = 3;
  const Gpt2Source source = open_good(data_dir() / "models/gpt-nano-sort", options);
  CHECK(source.config().vocab_size == 3);
  CHECK(source.config().n_positions == 11);
  CHECK(source.config().n_embd == 48);
  CHECK(source.config().n_layer == 3);
  CHECK(source.config().inner() == 192);
  CHECK(source.config().head == Head::separate);
  CHECK(source.tensors().layout == MatrixLayout::out_in);
  CHECK(source.tensors().layers[2].attn_b.data == nullptr);  // this export has every bias but these
  CHECK(source.tensors().layers[2].proj_b.data != nullptr);
  CHECK(source.tensors().lm_head.shape_string() == "[3, 48]");
}

}  // namespace
}  // namespace inkling::test
