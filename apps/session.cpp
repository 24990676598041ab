#include "apps/session.h"

#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

#include "apps/terminal.h"
#include "weights/sha256.h"

namespace inkling::app {
namespace fs = std::filesystem;

fs::path model_path(const ModelFlags& flags) {
  if (!flags.model.empty()) return flags.model;
  for (const char* folder : {INKLING_SAMPLE_DIR, INKLING_SHARE_DIR}) {
    if (fs::exists(fs::path(folder) / "config.json")) return folder;
  }
  throw Error(Code::file,
              "--model: the sample model was not found in " INKLING_SAMPLE_DIR " or " INKLING_SHARE_DIR);
}

ExecOptions exec_options(const ModelFlags& flags) {
  ExecOptions options;
  options.device = flags.device == "cuda"  ? Device::cuda
                   : flags.device == "cpu" ? Device::cpu
                                           : Device::automatic;
  options.threads = flags.threads;
  LogLevel level = LogLevel::warn;
  parse_log_level(flags.log_level, level);
  options.log = Log::to_stderr(flags.quiet ? LogLevel::error : level);
  return options;
}

LoadOptions load_options(const ModelFlags& flags) {
  LoadOptions options;
  if (flags.dtype == "f32") options.dtype = WeightType::f32;
  if (flags.dtype == "bf16") options.dtype = WeightType::bf16;
  if (flags.dtype == "f16") options.dtype = WeightType::f16;
  if (flags.quant == "int8") options.quant = Quantisation::int8;
  if (flags.quant == "int4") options.quant = Quantisation::int4;
  options.max_memory = flags.max_memory;
  return options;
}

Model load_model(const ModelFlags& flags, ExecContext& context) {
  const fs::path path = model_path(flags);
  if (!flags.verify.empty()) verify(path, flags.verify).value();
  LoadOptions options = load_options(flags);
  Progress progress("loading", !flags.quiet);
  options.progress = [&](double share) { progress.show(share); };
  return Model::load(path, context, options).value();
}

Tokenizer load_tokenizer(const ModelFlags& flags) {
  if (!flags.tokenizer.empty()) return Tokenizer::load(flags.tokenizer).value();
  const fs::path path = model_path(flags);
  return Tokenizer::load(fs::is_directory(path) ? path : path.parent_path()).value();
}

void check_vocabulary(const Tokenizer& tokenizer, const Model& model) {
  require(tokenizer.vocab_size() <= model.config().vocab_size, Code::malformed, [&] {
    return "tokenizer: expected at most the model's " + std::to_string(model.config().vocab_size) +
           " tokens, got " + std::to_string(tokenizer.vocab_size());
  });
}

std::string read_text(const std::string& path) {
  if (path == "-") return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
  std::ifstream file(path, std::ios::binary);
  require(file.good() && !fs::is_directory(path), Code::file, [&] { return path + ": cannot be read"; });
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

}  // namespace inkling::app
