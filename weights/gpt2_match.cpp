// Names and shapes of every GPT-2 writer, matched with the slots of Gpt2Tensors.
#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "weights/gpt2_source.h"
#include "weights/guard.h"

namespace inkling {
namespace {

// What a slot's shape is made of; X_by_Y is an (in,out) matrix, which out_in stores the other way round.
enum class Shape : std::uint8_t {
  width,
  width3,
  inner,
  width_by_width3,
  width_by_width,
  width_by_inner,
  inner_by_width
};

enum class Kind : std::uint8_t { weight, bias };

struct LayerSlot {
  std::string_view name;
  TensorView Gpt2Layer::*view;
  Shape shape;
  Kind kind;
};

constexpr std::array kLayerSlots = {
    LayerSlot{"ln_1.weight", &Gpt2Layer::ln1_w, Shape::width, Kind::weight},
    LayerSlot{"ln_1.bias", &Gpt2Layer::ln1_b, Shape::width, Kind::bias},
    LayerSlot{"attn.c_attn.weight", &Gpt2Layer::attn_w, Shape::width_by_width3, Kind::weight},
    LayerSlot{"attn.c_attn.bias", &Gpt2Layer::attn_b, Shape::width3, Kind::bias},
    LayerSlot{"attn.c_proj.weight", &Gpt2Layer::proj_w, Shape::width_by_width, Kind::weight},
    LayerSlot{"attn.c_proj.bias", &Gpt2Layer::proj_b, Shape::width, Kind::bias},
    LayerSlot{"ln_2.weight", &Gpt2Layer::ln2_w, Shape::width, Kind::weight},
    LayerSlot{"ln_2.bias", &Gpt2Layer::ln2_b, Shape::width, Kind::bias},
    LayerSlot{"mlp.c_fc.weight", &Gpt2Layer::fc_w, Shape::width_by_inner, Kind::weight},
    LayerSlot{"mlp.c_fc.bias", &Gpt2Layer::fc_b, Shape::inner, Kind::bias},
    LayerSlot{"mlp.c_proj.weight", &Gpt2Layer::fcproj_w, Shape::inner_by_width, Kind::weight},
    LayerSlot{"mlp.c_proj.bias", &Gpt2Layer::fcproj_b, Shape::width, Kind::bias},
};

// Causal masks that old checkpoints carry as buffers; the engine masks by position.
constexpr std::array<std::string_view, 2> kIgnored = {"attn.bias", "attn.masked_bias"};

// What wrappers put before a name, in any order and number.
constexpr std::array<std::string_view, 3> kPrefixes = {"transformer.", "module.", "_orig_mod."};

std::string_view without_prefixes(std::string_view name) {
  for (bool stripped = true; stripped;) {
    stripped = false;
    for (const std::string_view prefix : kPrefixes) {
      if (!name.starts_with(prefix)) continue;
      name.remove_prefix(prefix.size());
      stripped = true;
    }
  }
  return name;
}

struct LayerName {
  std::int64_t layer;
  std::string_view rest;
};

// "h.12.ln_1.weight" → {12, "ln_1.weight"}. "h.012." and "h.-1." are no layers.
std::optional<LayerName> parse_layer(std::string_view name) {
  if (!name.starts_with("h.")) return std::nullopt;
  name.remove_prefix(2);
  const std::size_t dot = name.find('.');
  if (dot == name.npos || dot == 0 || (name[0] == '0' && dot > 1) || name[0] == '-') return std::nullopt;
  std::int64_t layer = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + dot, layer);
  if (error != std::errc() || end != name.data() + dot || layer >= kMaxLayers) return std::nullopt;
  return LayerName{layer, name.substr(dot + 1)};
}

std::string list(std::initializer_list<std::int64_t> shape) {
  return TensorView(nullptr, DType::f32, shape).shape_string();
}

// Of a file that is wrong throughout, the first problems are the telling ones.
constexpr std::int64_t kNamed = 8;

class Matcher {
 public:
  Matcher(std::span<const NamedTensor* const> tensors, ModelConfig& config, BiasRule rule,
          std::string_view name)
      : config_(config), rule_(rule), name_(name) {
    for (const NamedTensor* tensor : tensors) place(*tensor);
  }

  Result<Gpt2Tensors> match() {
    derive();
    if (problems_ == 0) {
      if (const auto fine = config_.validate(); !fine) {
        return Error(Code::malformed, std::string(name_) + ": " + fine.error().message());
      }
      match_embeddings();
      out_.layers.resize(static_cast<std::size_t>(config_.n_layer));
      choose_layout();
      for (std::int64_t layer = 0; layer < config_.n_layer; ++layer) match_layer(layer);
      refuse_leftovers();
    }
    if (problems_ > 0) return error();
    if (rule_ == BiasRule::as_found) config_.bias = biases_.empty() ? Bias::absent : Bias::present;
    config_.head = out_.lm_head.data == nullptr ? Head::tied : Head::separate;
    return std::move(out_);
  }

 private:
  void place(const NamedTensor& tensor) {
    const std::string_view name = without_prefixes(tensor.name);
    const auto layer = parse_layer(name);
    if (layer && std::ranges::find(kIgnored, layer->rest) != kIgnored.end()) return;
    if (layer) layers_found_ = std::max(layers_found_, layer->layer + 1);
    const auto [at, fresh] = slots_.try_emplace(std::string(name), &tensor);
    if (!fresh) {
      problem(tensor.name, "one tensor of that meaning", "also " + shown(at->second->name));
    }
    if (name.ends_with(".bias")) biases_.emplace(layer ? layer->rest : name);
  }

  const NamedTensor* peek(const std::string& name) const {
    const auto at = slots_.find(name);
    return at != slots_.end() ? at->second : nullptr;
  }

  bool wants_bias(std::string_view kind) const {
    return rule_ == BiasRule::as_found ? biases_.contains(kind) : config_.bias == Bias::present;
  }

  // Fills what the config leaves open from the shapes that tell it.
  void derive() {
    const auto extent = [this](std::int64_t& value, const std::string& name, std::size_t rank,
                               std::size_t axis) {
      if (value != 0) return;
      const NamedTensor* tensor = peek(name);
      if (tensor != nullptr && tensor->view.rank == rank) {
        value = tensor->view.shape[axis];
      } else {
        problem(name, "a tensor of rank " + std::to_string(rank) + " to take extents from",
                tensor != nullptr ? tensor->view.shape_string() : "none");
      }
    };
    const bool open = config_.n_embd == 0;
    extent(config_.n_embd, "wte.weight", 2, 1);
    extent(config_.vocab_size, "wte.weight", 2, 0);
    extent(config_.n_positions, "wpe.weight", 2, 0);
    if (config_.n_layer == 0) config_.n_layer = layers_found_;
    if (open && config_.n_inner == 0) derive_inner();
  }

  // n_inner = 0 already means 4·C, so this speaks only where C was open too.
  void derive_inner() {
    const NamedTensor* fc = peek("h.0.mlp.c_fc.weight");
    if (fc == nullptr || fc->view.rank != 2) return;
    const auto [rows, columns] = std::pair(fc->view.shape[0], fc->view.shape[1]);
    const std::int64_t inner = rows == config_.n_embd ? columns : rows;
    if (inner != 4 * config_.n_embd) config_.n_inner = inner;
  }

  void match_embeddings() {
    const std::int64_t width = config_.n_embd;
    out_.wte = take_vocabulary("wte.weight");
    out_.wpe = take("wpe.weight", {config_.n_positions, width});
    out_.lnf_w = take("ln_f.weight", {width});
    if (wants_bias("ln_f.bias")) out_.lnf_b = take("ln_f.bias", {width});
    if (config_.head == Head::separate || peek("lm_head.weight") != nullptr) {
      out_.lm_head = take_vocabulary("lm_head.weight");
      if (same_tensor(out_.lm_head, out_.wte)) out_.lm_head = {};
    }
  }

  // (V,C), of which the file may have more rows than V.
  TensorView take_vocabulary(const std::string& name) {
    const std::int64_t vocab = config_.vocab_size, width = config_.n_embd;
    const NamedTensor* tensor = peek(name);
    if (tensor != nullptr && tensor->view.rank == 2) {
      const std::int64_t rows = tensor->view.shape[0];
      if (rows >= vocab && rows <= vocab + kMaxVocabPadding) {
        TensorView view = take(name, {rows, width});
        if (name == "wte.weight") out_.vocab_rows = rows;
        view.shape[0] = vocab;
        return view;
      }
    }
    return take(name, {vocab, width});
  }

  // Compares bytes: files that keep the tied head twice do exist. Different tensors differ within a page.
  static bool same_tensor(const TensorView& a, const TensorView& b) {
    return a.data != nullptr && b.data != nullptr && a.dtype == b.dtype && a.shape == b.shape &&
           (a.data == b.data || std::memcmp(a.data, b.data, a.nbytes()) == 0);
  }

  // (C,3C) against (3C,C) is never in doubt; the square matrices follow.
  void choose_layout() {
    const NamedTensor* attn = peek("h.0.attn.c_attn.weight");
    const bool turned = attn != nullptr && attn->view.rank == 2 && attn->view.shape[0] == 3 * config_.n_embd;
    out_.layout = turned ? MatrixLayout::out_in : MatrixLayout::in_out;
  }

  void match_layer(std::int64_t layer) {
    const std::string prefix = "h." + std::to_string(layer) + '.';
    for (const LayerSlot& slot : kLayerSlots) {
      if (slot.kind == Kind::bias && !wants_bias(slot.name)) continue;
      TensorView& view = out_.layers[static_cast<std::size_t>(layer)].*slot.view;
      view = take_slot(prefix + std::string(slot.name), slot.shape);
    }
  }

  TensorView take_slot(const std::string& name, Shape shape) {
    const std::int64_t c = config_.n_embd, i = config_.inner();
    const auto matrix = [&](std::int64_t in, std::int64_t out) {
      return out_.layout == MatrixLayout::in_out ? take(name, {in, out}) : take(name, {out, in});
    };
    switch (shape) {
      case Shape::width:
        return take(name, {c});
      case Shape::width3:
        return take(name, {3 * c});
      case Shape::inner:
        return take(name, {i});
      case Shape::width_by_width3:
        return matrix(c, 3 * c);
      case Shape::width_by_width:
        return matrix(c, c);
      case Shape::width_by_inner:
        return matrix(c, i);
      case Shape::inner_by_width:
        return matrix(i, c);
    }
    return {};
  }

  // Removes the tensor of a slot from slots_ and returns its view, or notes why there is none.
  TensorView take(const std::string& name, std::initializer_list<std::int64_t> shape) {
    const auto at = slots_.find(name);
    if (at == slots_.end()) return problem(name, list(shape), "none"), TensorView();
    const NamedTensor& tensor = *at->second;
    slots_.erase(at);
    const TensorView& view = tensor.view;
    if (!std::ranges::equal(std::span(view.shape.data(), view.rank),
                            std::span(shape.begin(), shape.size()))) {
      return problem(tensor.name, list(shape), view.shape_string()), TensorView();
    }
    if (view.dtype != DType::f32 && view.dtype != DType::f16 && view.dtype != DType::bf16) {
      return problem(tensor.name, "f32, f16 or bf16", dtype_name(view.dtype)), TensorView();
    }
    return view;
  }

  void refuse_leftovers() {
    for (const auto& [name, tensor] : slots_) {
      const auto layer = parse_layer(name);
      std::string expected = "no such tensor";
      if (layer && layer->layer >= config_.n_layer) {
        expected += " in " + std::to_string(config_.n_layer) + " layers";
      } else if (config_.bias == Bias::absent && rule_ == BiasRule::as_stated && name.ends_with(".bias")) {
        expected = "no biases, as the config says";
      }
      problem(tensor->name, expected, tensor->view.shape_string());
    }
  }

  void problem(std::string_view field, std::string_view expected, std::string_view got) {
    if (++problems_ > kNamed) return;
    if (!text_.empty()) text_ += "; ";
    text_ += shown(field);
    text_.append(": expected ").append(expected).append(", got ").append(got);
  }

  Error error() const {
    std::string message = std::string(name_) + ": " + text_;
    if (problems_ > kNamed) message += "; and " + std::to_string(problems_ - kNamed) + " more";
    return Error(Code::malformed, message);
  }

  ModelConfig& config_;
  BiasRule rule_;
  std::string_view name_;
  // By name without prefixes; taken ones are gone.
  std::map<std::string, const NamedTensor*, std::less<>> slots_;
  std::int64_t layers_found_ = 0;
  std::set<std::string_view> biases_;  // kinds that any layer has: "ln_f.bias", "attn.c_attn.bias"
  Gpt2Tensors out_;
  std::string text_;
  std::int64_t problems_ = 0;
};

}  // namespace

Result<Gpt2Tensors> match_gpt2(std::span<const NamedTensor* const> tensors, ModelConfig& config,
                               BiasRule rule, std::string_view name) {
  return weights::guarded(
      name, [&]() -> Result<Gpt2Tensors> { return Matcher(tensors, config, rule, name).match(); });
}

}  // namespace inkling
