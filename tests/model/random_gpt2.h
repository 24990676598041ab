// Small random GPT-2s, the same as those of tests/golden/make_model_golden.py, written as model folders.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "engine/ops.h"
#include "tests/random.h"
#include "weights/config.h"
#include "weights/safetensors.h"

namespace inkling::test {

/// A folder that goes with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "inkling-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

enum class Naming : std::uint8_t { hugging_face, nanogpt };  ///< Conv1D (in,out), or nn.Linear (out,in)

/// Weights of `config` from generator `seed` in the order of the golden script, saved under `folder`.
class RandomGpt2 {
 public:
  RandomGpt2(const ModelConfig& config, std::uint64_t seed, Naming naming = Naming::hugging_face)
      : config_(config), random_(seed), naming_(naming) {
    const std::int64_t c = config.n_embd, inner = config.inner();
    add("transformer.wte.weight", {config.vocab_size, c}, 0.5);
    add("transformer.wpe.weight", {config.n_positions, c}, 0.3);
    for (std::int64_t l = 0; l < config.n_layer; ++l) {
      const std::string h = "transformer.h." + std::to_string(l) + ".";
      norm(h + "ln_1"), matrix(h + "attn.c_attn", c, 3 * c), matrix(h + "attn.c_proj", c, c);
      norm(h + "ln_2"), matrix(h + "mlp.c_fc", c, inner), matrix(h + "mlp.c_proj", inner, c);
    }
    norm("transformer.ln_f");
    if (config.head == Head::separate) add("lm_head.weight", {config.vocab_size, c}, 0.5);
  }

  /// Every matrix becomes what its integers stand for, as bf16.
  void quantise(ExecContext& context, WeightFormat format) {
    REQUIRE(naming_ == Naming::hugging_face);
    for (std::size_t i = 0; i < names_.size(); ++i) {
      const TensorView w = tensors_[i].view();
      if (w.rank != 2 || names_[i].find("wpe") != std::string::npos) continue;
      const bool table = names_[i].find("wte") != std::string::npos || names_[i].find("lm_head") == 0;
      const std::int64_t k = w.shape[table ? 1 : 0], n = w.shape[table ? 0 : 1];
      const std::int64_t k_stride = table ? 1 : n, n_stride = table ? k : 1;
      const PackedMatrix packed = pack(context, {w.data, DType::f32, k, n, k_stride, n_stride}, format);
      std::vector<float> column(static_cast<std::size_t>(k));
      for (std::int64_t c = 0; c < n; ++c) {
        unpack_column(context, packed, c, column.data());
        for (std::int64_t r = 0; r < k; ++r) {
          w.as<float>()[r * k_stride + c * n_stride] =
              static_cast<float>(bf16(column[static_cast<std::size_t>(r)]));
        }
      }
    }
  }

  void save(const std::filesystem::path& folder) const {
    std::vector<NamedTensor> named;
    for (std::size_t i = 0; i < names_.size(); ++i) named.push_back({names_[i], tensors_[i].view()});
    write_safetensors(folder / "model.safetensors", named).value();
    std::ofstream(folder / "config.json") << to_config_json(config_);
  }

 private:
  float* add(const std::string& name, std::initializer_list<std::int64_t> shape, double scale,
             float offset = 0.0f) {
    Tensor tensor(DType::f32, shape);
    auto* out = tensor.as<float>();
    for (std::int64_t i = 0; i < tensor.numel(); ++i) {
      out[i] = static_cast<float>((2.0 * random_.uniform() - 1.0) * scale) + offset;
    }
    names_.push_back(name);
    tensors_.push_back(std::move(tensor));
    return out;
  }

  void norm(const std::string& name) {
    add(name + ".weight", {config_.n_embd}, 0.3, 1.0f);
    if (config_.bias == Bias::present) add(name + ".bias", {config_.n_embd}, 0.2);
  }

  void matrix(const std::string& name, std::int64_t in, std::int64_t out) {
    const float* w = add(name + ".weight", {in, out}, 1.7 / std::sqrt(static_cast<double>(in)));
    if (naming_ == Naming::nanogpt) {
      Tensor transposed(DType::f32, {out, in});
      auto* t = transposed.as<float>();
      for (std::int64_t i = 0; i < in; ++i) {
        for (std::int64_t o = 0; o < out; ++o) t[o * in + i] = w[i * out + o];
      }
      tensors_.back() = std::move(transposed);
    }
    if (config_.bias == Bias::present) add(name + ".bias", {out}, 0.1);
  }

  ModelConfig config_;
  Random random_;
  Naming naming_;
  std::vector<std::string> names_;
  std::vector<Tensor> tensors_;
};

}  // namespace inkling::test
