// The model group of options, and what they open: a context, a model and its tokenizer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <future>
#include <optional>
#include <string>
#include <vector>

#include "apps/console.h"
#include "apps/options.h"
#include "apps/tokenizer_cache.h"
#include "attention/sdpa.h"
#include "engine/exec_context.h"
#include "model/model.h"
#include "tokenizer/tokenizer.h"

namespace inkling::app {

struct ModelOptions {
  std::filesystem::path model;      ///< empty: the sample model
  std::filesystem::path tokenizer;  ///< empty: the one beside the model
  Device device = Device::automatic;
  int ordinal = 0;  ///< of a GPU
  WeightType dtype = WeightType::automatic;
  Quantisation quant = Quantisation::none;
  int threads = 0;
  std::int64_t context = 0;        ///< positions; 0: all
  std::vector<SdpaBackend> attn;   ///< backends allowed, in order of preference; empty: automatic
  std::string verify;              ///< "sha256:HEX" or a manifest
  std::uint64_t max_memory = 0;    ///< bytes of weights, keys and values; 0: no limit
  std::string cache_dir = "auto";  ///< of packed weights and the tokenizer's image; or auto or none
};

/// Where packed weights and the tokenizer's image lie between runs: as asked for, else inkling/ in
/// $XDG_CACHE_HOME or ~/.cache. Empty: nowhere.
std::filesystem::path cache_folder(const ModelOptions& options);

/// "flash,math", or "auto" for an empty list.
Setter backends(std::vector<SdpaBackend>& target);
void add_model_options(Options& options, ModelOptions& model);
/// All but --tokenizer, for commands that see no text.
void add_weight_options(Options& options, ModelOptions& model);
/// --device and --threads alone.
void add_device_options(Options& options, ModelOptions& model);
/// --model and --tokenizer alone, for commands that compute nothing.
void add_tokenizer_options(Options& options, ModelOptions& model);

/// The model folder or file: what was asked for, or the sample beside the build or in the installed share
/// folder. Throws Error{file}.
std::filesystem::path model_path(const ModelOptions& options);
/// Folder or file of the tokenizer.
std::filesystem::path tokenizer_path(const ModelOptions& options);
/// Whether a model has all tokens of a tokenizer, which was read from `path`. Error{malformed} if not.
Result<void> check_fits(const Tokenizer& tokenizer, const ModelConfig& config,
                        const std::filesystem::path& path);

ExecOptions exec_options(const ModelOptions& options, const Console& console);
/// The same for a command that has no GPU form: auto means the CPU. Throws Error{device} for cuda.
ExecOptions cpu_options(const ModelOptions& options, const Console& console, const char* command);

/// When the tokenizer is read: beside the weights, by a thread of its own, or at the first need if there is
/// one.
enum class ReadTokenizer : std::uint8_t { at_once, when_needed };

/// What every computing command needs. Throws Error{usage} when --ctx-size is more than the model has.
class Workspace {
 public:
  Workspace(const ModelOptions& options, ReadTokenizer read, const Console& console);
  /// Leaves packed weights and the tokenizer's image for the next start, unless the work has failed or the
  /// model is small.
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  ExecContext& context() noexcept { return context_; }
  const Model& model() const noexcept { return *model_; }
  double load_ms() const noexcept { return load_ms_; }
  /// What --ctx-size asks for, or all that the model has.
  std::int64_t positions() const noexcept;
  const std::filesystem::path& path() const noexcept { return path_; }
  /// For reports: the folder's or the file's name.
  std::string name() const;
  /// Bytes that --max-memory leaves for keys and values; 0: no limit. Throws Error{out_of_memory} when it
  /// leaves none.
  std::size_t kv_max_bytes() const;
  /// Runs `work`. An Error{out_of_memory} that leaves it tells of --max-memory, if that is set.
  template <class Work>
  auto within_memory(Work&& work) const {
    try {
      return work();
    } catch (const Error& error) {
      if (options_.max_memory == 0 || error.code() != Code::out_of_memory) throw;
      throw with_limit(error);
    }
  }

  /// Throws the Error that reading it gave. Checked against the vocabulary of the model.
  const Tokenizer& tokenizer();
  /// The same, or null.
  const Tokenizer* tokenizer_or_null();

 private:
  void keep_packed_weights() const;
  Error with_limit(const Error& error) const;

  const ModelOptions& options_;
  const Console& console_;
  std::filesystem::path path_;
  TokenizerCache tokenizer_cache_;
  std::future<Result<Tokenizer>> reading_;  // a deferred one is read by get()
  ExecContext context_;
  std::optional<SdpaScope> attn_;
  std::optional<Model> model_;
  std::optional<Result<Tokenizer>> tokenizer_;
  double load_ms_ = 0;
};

}  // namespace inkling::app
