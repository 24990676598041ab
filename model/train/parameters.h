// Parameters: every trainable number of a GPT-2 in one flat buffer, so that the optimiser, the gradient's
// norm and an exchange among processes are one pass over memory each.
//
// Matrices come first (those decay), then biases and norms. Each tensor starts at a multiple of 16 floats;
// the floats between are zero and stay zero. Matrices are (in, out), as Hugging Face's GPT-2 stores them.
//
// Behind the rows of a matrix there is room up to a multiple of 8 of them. The head multiplies with those
// rows of the table too: V is 50257, odd, and the fast products of GPUs want lines of whole 16 bytes
// (engine/cuda/cublas_lt.h). Their logits are 0, no loss sees them, so their gradients are 0 and they stay
// 0. A file has none of them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/tensor.h"
#include "weights/config.h"
#include "weights/gpt2_source.h"
#include "weights/safetensors.h"

namespace inkling {

/// Where each tensor lies. Immutable.
class ParameterLayout {
 public:
  explicit ParameterLayout(const ModelConfig& config);

  struct Entry {
    std::string name;     ///< Hugging Face's: "transformer.h.0.attn.c_attn.weight"
    TensorView layout;    ///< f32, contiguous; data is null
    std::int64_t offset;  ///< in floats
  };
  const std::vector<Entry>& entries() const noexcept { return entries_; }
  /// Floats of a buffer, those between the tensors included.
  std::int64_t size() const noexcept { return size_; }
  /// The first of them: matrices, which weight decay applies to (as in nanoGPT, embeddings too).
  std::int64_t matrices() const noexcept { return matrices_; }

  /// Of the tables, with the zeros behind V.
  std::int64_t vocab_rows() const noexcept;

  /// The tensors of a buffer of size() numbers of `dtype`, by role.
  Gpt2Tensors tensors(void* buffer, DType dtype = DType::f32) const;
  /// The tensors of a buffer by name, each with `prefix`, for a file.
  std::vector<NamedTensor> named(float* buffer, std::string_view prefix = {}) const;

 private:
  ModelConfig config_;
  std::vector<Entry> entries_;
  std::int64_t size_ = 0, matrices_ = 0;
};

/// Writes the start of training: matrices from N(0, 0.02²), the two projections onto the residual stream of
/// each layer from N(0, (0.02 / √(2L))²) (Radford et al. 2019 §2.3), biases 0, norms 1. Tensor t draws from
/// the stream t of `seed` (engine/random_normal.h).
void initialise(const ParameterLayout& layout, const ModelConfig& config, std::uint64_t seed, float* buffer);

/// Copies a model on disk, whatever its layout and dtypes. A bias that it lacks and the config has is 0.
void copy_parameters(const Gpt2Source& source, const ParameterLayout& layout, float* buffer);

}  // namespace inkling
