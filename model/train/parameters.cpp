#include "model/train/parameters.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/random_normal.h"

namespace inkling {
namespace {

constexpr std::int64_t kAlignment = 16;  // floats: a cache line
constexpr std::int64_t kRows = 8;        // a matrix has room for a multiple of them

std::int64_t round_up(std::int64_t n, std::int64_t to) {
  return (n + to - 1) / to * to;
}

struct Slot {
  std::string name;
  TensorView* view;
  std::vector<std::int64_t> shape;
};

// The tensors that `config` has, in the order of the buffer. Resizes tensors.layers.
std::vector<Slot> slots(Gpt2Tensors& tensors, const ModelConfig& config) {
  const std::int64_t c = config.n_embd, inner = config.inner();
  tensors.layers.resize(static_cast<std::size_t>(config.n_layer));
  const auto prefix = [](std::size_t layer) { return "transformer.h." + std::to_string(layer) + '.'; };

  std::vector<Slot> all = {{"transformer.wte.weight", &tensors.wte, {config.vocab_size, c}},
                           {"transformer.wpe.weight", &tensors.wpe, {config.n_positions, c}}};
  if (config.head == Head::separate)
    all.push_back({"lm_head.weight", &tensors.lm_head, {config.vocab_size, c}});
  for (std::size_t i = 0; i < tensors.layers.size(); ++i) {
    Gpt2Layer& l = tensors.layers[i];
    all.push_back({prefix(i) + "attn.c_attn.weight", &l.attn_w, {c, 3 * c}});
    all.push_back({prefix(i) + "attn.c_proj.weight", &l.proj_w, {c, c}});
    all.push_back({prefix(i) + "mlp.c_fc.weight", &l.fc_w, {c, inner}});
    all.push_back({prefix(i) + "mlp.c_proj.weight", &l.fcproj_w, {inner, c}});
  }
  const auto vector = [&](std::string name, TensorView& view, std::int64_t n) {
    if (config.bias == Bias::absent && name.ends_with(".bias")) return;
    all.push_back({std::move(name), &view, {n}});
  };
  for (std::size_t i = 0; i < tensors.layers.size(); ++i) {
    Gpt2Layer& l = tensors.layers[i];
    vector(prefix(i) + "ln_1.weight", l.ln1_w, c);
    vector(prefix(i) + "ln_1.bias", l.ln1_b, c);
    vector(prefix(i) + "attn.c_attn.bias", l.attn_b, 3 * c);
    vector(prefix(i) + "attn.c_proj.bias", l.proj_b, c);
    vector(prefix(i) + "ln_2.weight", l.ln2_w, c);
    vector(prefix(i) + "ln_2.bias", l.ln2_b, c);
    vector(prefix(i) + "mlp.c_fc.bias", l.fc_b, inner);
    vector(prefix(i) + "mlp.c_proj.bias", l.fcproj_b, c);
  }
  vector("transformer.ln_f.weight", tensors.lnf_w, c);
  vector("transformer.ln_f.bias", tensors.lnf_b, c);
  return all;
}

template <class T>
void copy_elements(const TensorView& from, bool transposed, const TensorView& to) {
  const auto* in = static_cast<const T*>(from.data);
  auto* out = to.as<float>();
  const std::int64_t rows = to.rank == 2 ? to.shape[0] : 1,
                     columns = to.numel() / std::max<std::int64_t>(rows, 1);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      out[i * columns + j] = static_cast<float>(in[transposed ? j * rows + i : i * columns + j]);
    }
  }
}

void copy_tensor(const TensorView& from, bool transposed, const TensorView& to) {
  if (from.dtype == DType::bf16) return copy_elements<bf16>(from, transposed, to);
  if (from.dtype == DType::f16) return copy_elements<f16>(from, transposed, to);
  copy_elements<float>(from, transposed, to);
}

}  // namespace

ParameterLayout::ParameterLayout(const ModelConfig& config) : config_(config) {
  Gpt2Tensors tensors;
  for (Slot& slot : slots(tensors, config)) {
    const TensorView layout(nullptr, DType::f32, slot.shape);
    entries_.push_back({std::move(slot.name), layout, size_});
    const bool matrix = layout.rank == 2;
    size_ +=
        round_up(matrix ? round_up(layout.shape[0], kRows) * layout.shape[1] : layout.numel(), kAlignment);
    if (matrix) matrices_ = size_;
  }
}

std::int64_t ParameterLayout::vocab_rows() const noexcept {
  return round_up(config_.vocab_size, kRows);
}

Gpt2Tensors ParameterLayout::tensors(void* buffer, DType dtype) const {
  Gpt2Tensors tensors;
  const std::vector<Slot> all = slots(tensors, config_);
  for (std::size_t i = 0; i < all.size(); ++i) {
    *all[i].view = entries_[i].layout;
    all[i].view->dtype = dtype;
    all[i].view->data =
        static_cast<std::byte*>(buffer) + entries_[i].offset * static_cast<std::int64_t>(dtype_size(dtype));
  }
  tensors.vocab_rows = vocab_rows();
  return tensors;
}

std::vector<NamedTensor> ParameterLayout::named(float* buffer, std::string_view prefix) const {
  std::vector<NamedTensor> all;
  for (const Entry& entry : entries_) {
    NamedTensor tensor{std::string(prefix) + entry.name, entry.layout};
    tensor.view.data = buffer + entry.offset;
    all.push_back(std::move(tensor));
  }
  return all;
}

void initialise(const ParameterLayout& layout, const ModelConfig& config, std::uint64_t seed, float* buffer) {
  constexpr double kDeviation = 0.02;
  const double onto_stream = kDeviation / std::sqrt(2.0 * static_cast<double>(config.n_layer));
  std::fill_n(buffer, layout.size(), 0.0f);
  std::uint32_t number = 0;
  for (const ParameterLayout::Entry& entry : layout.entries()) {
    const std::span to(buffer + entry.offset, static_cast<std::size_t>(entry.layout.numel()));
    if (entry.layout.rank == 2) {
      fill_normal(to, entry.name.ends_with("c_proj.weight") ? onto_stream : kDeviation, seed, number);
    } else if (entry.name.ends_with(".weight")) {
      std::ranges::fill(to, 1.0f);
    }
    ++number;
  }
}

void copy_parameters(const Gpt2Source& source, const ParameterLayout& layout, float* buffer) {
  std::fill_n(buffer, layout.size(), 0.0f);
  Gpt2Tensors from = source.tensors(), to = layout.tensors(buffer);
  const std::vector<Slot> sources = slots(from, source.config()), targets = slots(to, source.config());
  for (std::size_t i = 0; i < targets.size(); ++i) {
    if (sources[i].view->data == nullptr) continue;
    const bool matrix = sources[i].name.find(".h.") != std::string::npos && sources[i].view->rank == 2;
    copy_tensor(*sources[i].view, matrix && from.layout == MatrixLayout::out_in, *targets[i].view);
  }
}

}  // namespace inkling
