// What the tests of this folder share: temporary folders, files put together by hand, and tiny models.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "tests/data.h"
#include "weights/gpt2_source.h"

namespace inkling::test {

/// A fresh folder, removed with its content at the end of the scope.
class TempDir {
 public:
  TempDir() {
    static std::atomic<int> counter{0};
    path_ = std::filesystem::temp_directory_path() /
            ("inkling-weights-" + std::to_string(::getpid()) + '-' + std::to_string(counter++));
    std::filesystem::create_directories(path_);
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::filesystem::path path_;
};

inline void put(const std::filesystem::path& path, std::string_view content) {
  std::ofstream(path, std::ios::binary) << content;
}

inline std::string content_of(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

/// A safetensors file of this header and this data, true or not. `length` lies about the header's length.
inline std::string safetensors_file(std::string_view header, std::string_view data,
                                    std::optional<std::uint64_t> length = std::nullopt) {
  const std::uint64_t n = length.value_or(header.size());
  std::string file(sizeof n, '\0');
  std::memcpy(file.data(), &n, sizeof n);
  return file.append(header).append(data);
}

/// How a tiny GPT-2 is written down. The default is Hugging Face's way.
struct Style {
  std::string prefix = "transformer.";
  std::string head_prefix = "";  ///< before lm_head.weight
  MatrixLayout layout = MatrixLayout::in_out;
  Bias bias = Bias::present;
  DType dtype = DType::f32;
  std::int64_t padding = 0;  ///< rows of wte above the vocabulary
  enum class Lm : std::uint8_t { absent, copy_of_wte, own } head = Lm::absent;
  bool masks = false;  ///< attn.bias and attn.masked_bias buffers
};

/// V 7, positions 5, C 4, L 2, H 2, I 16.
inline ModelConfig tiny_config() {
  ModelConfig config;
  config.vocab_size = 7;
  config.n_positions = 5;
  config.n_embd = 4;
  config.n_layer = 2;
  config.n_head = 2;
  return config;
}

/// The tensors of a tiny GPT-2, every byte of them distinct enough to tell tensors apart.
class TinyModel {
 public:
  explicit TinyModel(const Style& style = {}, const ModelConfig& config = tiny_config()) : style_(style) {
    const std::int64_t c = config.n_embd, i = config.inner();
    add(style.prefix + "wte.weight", {config.vocab_size + style.padding, c});
    const NamedTensor wte = tensors.back();
    add(style.prefix + "wpe.weight", {config.n_positions, c});
    for (std::int64_t layer = 0; layer < config.n_layer; ++layer) {
      const std::string h = style.prefix + "h." + std::to_string(layer) + '.';
      add_pair(h + "ln_1", {c}, c);
      add_pair(h + "attn.c_attn", matrix(c, 3 * c), 3 * c);
      add_pair(h + "attn.c_proj", matrix(c, c), c);
      add_pair(h + "ln_2", {c}, c);
      add_pair(h + "mlp.c_fc", matrix(c, i), i);
      add_pair(h + "mlp.c_proj", matrix(i, c), c);
      if (style.masks) {
        add(h + "attn.bias", {1, 1, config.n_positions, config.n_positions}, DType::boolean);
        add(h + "attn.masked_bias", {}, DType::f32);
      }
    }
    add_pair(style.prefix + "ln_f", {c}, c);
    if (style.head == Style::Lm::copy_of_wte)
      tensors.push_back({style.head_prefix + "lm_head.weight", wte.view});
    if (style.head == Style::Lm::own) {
      add(style.head_prefix + "lm_head.weight", {config.vocab_size + style.padding, c});
    }
  }

  void add(const std::string& name, const std::vector<std::int64_t>& shape, std::optional<DType> dtype = {}) {
    Tensor& tensor = memory_.emplace_back(dtype.value_or(style_.dtype), std::span<const std::int64_t>(shape));
    auto* bytes = static_cast<unsigned char*>(tensor.view().data);
    for (std::size_t k = 0; k < tensor.nbytes(); ++k) {
      bytes[k] = static_cast<unsigned char>((memory_.size() * 31 + k * 7) % 64);  // small finite numbers
    }
    tensors.push_back({name, tensor.view()});
  }

  NamedTensor& at(std::string_view ending) {
    for (NamedTensor& tensor : tensors) {
      if (tensor.name.ends_with(ending)) return tensor;
    }
    throw std::runtime_error("no tensor " + std::string(ending));
  }
  void remove(std::string_view ending) {
    std::erase_if(tensors, [&](const NamedTensor& t) { return t.name.ends_with(ending); });
  }
  std::vector<const NamedTensor*> pointers() const {
    std::vector<const NamedTensor*> all;
    for (const NamedTensor& tensor : tensors) all.push_back(&tensor);
    return all;
  }
  void save(const std::filesystem::path& path) const { write_safetensors(path, tensors).value(); }

  std::vector<NamedTensor> tensors;

 private:
  std::vector<std::int64_t> matrix(std::int64_t in, std::int64_t out) const {
    return style_.layout == MatrixLayout::in_out ? std::vector{in, out} : std::vector{out, in};
  }
  void add_pair(const std::string& name, const std::vector<std::int64_t>& shape, std::int64_t bias) {
    add(name + ".weight", shape);
    if (style_.bias == Bias::present) add(name + ".bias", {bias});
  }

  Style style_;
  std::vector<Tensor> memory_;
};

inline bool same_bytes(const TensorView& a, const TensorView& b) {
  return a.dtype == b.dtype && a.shape_string() == b.shape_string() &&
         std::memcmp(a.data, b.data, a.nbytes()) == 0;
}

}  // namespace inkling::test
