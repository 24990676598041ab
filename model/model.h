// Model: a GPT-2's weights, packed for the kernels of one device. Immutable once loaded; any number of
// threads and generators may share it, each with an ExecContext of the same instruction set. On a GPU the
// context that it was loaded with outlives it.
//
//   ExecContext context;
//   Result<Model> model = Model::load("weights/sample", context);
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "engine/exec_context.h"
#include "engine/packed_matrix.h"
#include "model/packed_cache.h"
#include "weights/config.h"
#include "weights/gpt2_source.h"

namespace inkling {

/// How weights are held. automatic: the type of the file's own matrices (f32, f16 or bf16).
enum class WeightType : std::uint8_t { automatic, f32, f16, bf16 };
enum class Quantisation : std::uint8_t { none, int8, int4 };
constexpr std::string_view weight_type_name(WeightType type) noexcept {
  constexpr std::string_view kNames[] = {"auto", "f32", "f16", "bf16"};
  return kNames[static_cast<std::size_t>(type)];
}
constexpr std::string_view quantisation_name(Quantisation quant) noexcept {
  constexpr std::string_view kNames[] = {"none", "int8", "int4"};
  return kNames[static_cast<std::size_t>(quant)];
}

struct LoadOptions {
  WeightType dtype = WeightType::automatic;
  Quantisation quant = Quantisation::none;  ///< of the matrices; embeddings of positions and norms stay f32
  std::uint64_t max_memory =
      0;  ///< the most that nbytes() may be, and what is copied of the file; 0: no limit
  std::optional<ModelConfig> config;  ///< in place of config.json
  std::filesystem::path
      packed_cache;  ///< folder of packed weights to take these from, on the CPU; empty: none
  std::function<void(double)> progress;  ///< called with the share done, 0 … 1, on the loading thread
};

/// y = norm-free part of a linear layer: weight (K,N) and bias (N) or none.
struct LinearWeights {
  PackedMatrix weight;
  Tensor bias;
  const float* bias_data() const noexcept { return static_cast<const float*>(bias.view().data); }
};

struct NormWeights {
  Tensor weight, bias;  // (C); bias may be absent
};

struct LayerWeights {
  NormWeights ln1;
  LinearWeights qkv;   // (C,3C)
  LinearWeights proj;  // (C,C)
  NormWeights ln2;
  LinearWeights fc;      // (C,I)
  LinearWeights fcproj;  // (I,C)
};

/// What all tensors of one kind take.
struct MemoryUse {
  std::string_view name;
  std::int64_t count = 0;
  std::vector<std::int64_t> shape;  ///< of each; empty where they differ
  WeightFormat format = WeightFormat::f32;
  std::uint64_t bytes = 0;  ///< of all
};

class Model {
 public:
  /// Opens, checks and packs a model folder or file. Source pages are let go as they are packed, so that
  /// memory never holds the model twice. Error{file}, Error{malformed}, Error{out_of_memory}.
  static Result<Model> load(const std::filesystem::path& path, ExecContext& context,
                            const LoadOptions& options = {});

  /// Whether LoadOptions::packed_cache had these weights, as this machine reads them and of the same files.
  bool from_packed_cache() const noexcept { return !cached_.bytes().empty(); }
  /// Leaves the packed weights in that folder for the next load (packed_cache.h): a file of about nbytes()
  /// that takes the place of an older one of the same model, format and instruction set. Error{usage} for a
  /// model that was loaded without LoadOptions::packed_cache or on a GPU, Error{output}.
  Result<void> write_packed_cache() const;

  const ModelConfig& config() const noexcept { return config_; }
  const PublishedGeneration& published_generation() const noexcept { return generation_; }
  /// Tokens that end a text, each once: those of generation_config.json or, if it states none, config.json's.
  const std::vector<std::int32_t>& end_ids() const noexcept { return end_ids_; }
  /// What an empty text begins with: the bos_token_id of generation_config.json, else of config.json, else
  /// the first token that ends texts; or nothing.
  std::optional<std::int32_t> first_id() const noexcept;
  /// What the matrices are held as.
  WeightFormat format() const noexcept { return format_; }
  Isa isa() const noexcept { return embedding_.isa; }
  /// Whose memory holds it.
  Device device() const noexcept { return embedding_.device; }
  /// Bytes of all weights: the packed matrices, positions, norms and biases.
  std::uint64_t nbytes() const noexcept;
  /// One for each kind of tensor, for reports. Their bytes are nbytes() in all.
  std::vector<MemoryUse> memory_report() const;

  const PackedMatrix& embedding() const noexcept { return embedding_; }  ///< (C,V); the head too when tied
  const PackedMatrix& head() const noexcept { return head_ ? *head_ : embedding_; }
  const Tensor& positions() const noexcept { return positions_; }  ///< (T,C) f32
  const std::vector<LayerWeights>& layers() const noexcept { return layers_; }
  const NormWeights& final_norm() const noexcept { return final_norm_; }

 private:
  friend class ModelLoader;
  Model() = default;

  ModelConfig config_;
  PublishedGeneration generation_;
  std::vector<std::int32_t> end_ids_;
  WeightFormat format_ = WeightFormat::f32;
  std::filesystem::path cache_folder_;
  std::optional<PackedCacheKey> cache_key_;  // on the CPU, where a folder was given
  Buffer slab_;                              // the memory of every PackedMatrix below,
  weights::FileMap cached_;                  // or a file that holds it
  std::size_t slab_bytes_ = 0;
  PackedMatrix embedding_;
  std::optional<PackedMatrix> head_;
  Tensor positions_;
  std::vector<LayerWeights> layers_;
  NormWeights final_norm_;
};

}  // namespace inkling
