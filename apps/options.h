// The flags that commands share, and the commands themselves.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "model/generation_config.h"
#include "weights/config.h"

namespace inkling::app {

/// Flags of the model group.
struct ModelFlags {
  std::string model;      ///< folder or file; "" is the sample model
  std::string tokenizer;  ///< folder or file; "" is the model's folder
  std::string device = "auto", dtype = "auto", quant = "none";
  std::string verify;  ///< sha256:… or a manifest
  std::string log_level = "warn";
  std::uint64_t max_memory = 0;
  int threads = 0;
  bool quiet = false;
};
void add_model_flags(CLI::App& command, ModelFlags& flags);

/// Flags of the sampling group, kept as text until the model's own settings are known.
struct SamplingFlags {
  std::string preset;
  std::vector<std::pair<std::string, std::string>> set;  ///< option and value in order

  /// Built-in < the model's generation_config.json < preset < flags. Throws Error{usage}.
  GenerationConfig resolve(const PublishedGeneration& published) const;
};
void add_sampling_flags(CLI::App& command, SamplingFlags& flags);

/// How requests are packed; no result depends on them.
struct BatchFlags {
  std::int64_t batch = 8;
  std::int64_t prefill_chunk = 512;
};
void add_batch_flags(CLI::App& command, BatchFlags& flags);

/// The arguments of the program with those of the environment (INKLING_…) and of the config file put in
/// front, so that the last one wins. Throws Error.
std::vector<std::string> merged_arguments(const CLI::App& app, const std::vector<std::string>& given);

// Each adds its command to the app; its callback returns through `exit_code`.
void add_generate(CLI::App& app, int& exit_code);
void add_tokenize(CLI::App& app, int& exit_code);
void add_detokenize(CLI::App& app, int& exit_code);
void add_inspect(CLI::App& app, int& exit_code);
void add_eval(CLI::App& app, int& exit_code);
void add_bench(CLI::App& app, int& exit_code);
void add_doctor(CLI::App& app, int& exit_code);
void add_completion(CLI::App& app, int& exit_code);

}  // namespace inkling::app
