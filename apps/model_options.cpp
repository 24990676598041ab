#include "apps/model_options.h"

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <utility>

#include "weights/sha256.h"

namespace inkling::app {
namespace fs = std::filesystem;
namespace {

// Of an installed program, share/inkling/sample beside its bin; of a build, weights/sample of the source
// tree.
std::optional<fs::path> find_sample() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  for (const fs::path& folder :
       {program.parent_path().parent_path() / "share" / "inkling" / "sample", fs::path(INKLING_SAMPLE_DIR)}) {
    if (fs::exists(folder / "config.json", error)) return folder;
  }
  return std::nullopt;
}

Setter device(Device& target, int& ordinal) {
  return [&target, &ordinal](const std::string& value) {
    int number = 0;
    if (value == "auto") {
      target = Device::automatic;
    } else if (value == "cpu") {
      target = Device::cpu;
    } else if (value == "cuda" || (value.starts_with("cuda:") &&
                                   parse_number(std::string_view(value).substr(5), number) && number >= 0)) {
      target = Device::cuda;
      ordinal = number;
    } else {
      refuse("auto, cpu, cuda or cuda:N", value);
    }
  };
}

Result<Model> load(const fs::path& path, ExecContext& context, const ModelOptions& options,
                   const Console& console) {
  if (!options.verify.empty()) {
    if (Result<void> verified = verify(path, options.verify); !verified)
      return about_flag(verified.error(), "verify");
  }
  Progress progress(console, "loading " + path.filename().string());
  LoadOptions load;
  load.dtype = options.dtype;
  load.quant = options.quant;
  load.max_memory = options.max_memory;
  load.packed_cache = cache_folder(options);
  load.progress = [&](double share) { progress.update(share); };
  return Model::load(path, context, load);
}

void add_model(Options& options, ModelOptions& model) {
  options.group("Model", Options::Layers::all);
  options.add("-m,--model", "PATH", "model folder or safetensors file [the sample]", path(model.model));
}

void add_tokenizer(Options& options, ModelOptions& model) {
  options.add("--tokenizer", "PATH", "tokenizer folder or file [the model's]", path(model.tokenizer));
}

}  // namespace

void add_tokenizer_options(Options& options, ModelOptions& model) {
  add_model(options, model);
  add_tokenizer(options, model);
}

Setter backends(std::vector<SdpaBackend>& target) {
  return [&target](const std::string& value) {
    target.clear();
    if (value == "auto") return;
    for (std::size_t at = 0; at <= value.size();) {
      const std::size_t comma = std::min(value.find(',', at), value.size());
      const auto backend = parse_sdpa_backend(std::string_view(value).substr(at, comma - at));
      if (!backend || std::ranges::find(target, *backend) != target.end()) {
        refuse("auto, or some of flash, decode and math, each once", value);
      }
      target.push_back(*backend);
      at = comma + 1;
    }
  };
}

void add_device_options(Options& options, ModelOptions& model) {
  options.group("Model", Options::Layers::all);
  options.add("--device", "NAME", "auto, cpu or cuda[:N] [auto]", device(model.device, model.ordinal));
  options.add("-t,--threads", "N", "0: every CPU of this process [0]", whole(model.threads, 0, 1024));
}

void add_model_options(Options& options, ModelOptions& model) {
  add_weight_options(options, model);
  add_tokenizer(options, model);
}

void add_weight_options(Options& options, ModelOptions& model) {
  add_model(options, model);
  add_device_options(options, model);
  options.add("--dtype", "TYPE", "of the weights: auto (as stored), f32, bf16 or f16 [auto]",
              choice<WeightType>(model.dtype, {{"auto", WeightType::automatic},
                                               {"f32", WeightType::f32},
                                               {"bf16", WeightType::bf16},
                                               {"f16", WeightType::f16}}));
  options.add("--quant", "TYPE", "quantise the weights: none, int8 or int4 [none]",
              choice<Quantisation>(model.quant, {{"none", Quantisation::none},
                                                 {"int8", Quantisation::int8},
                                                 {"int4", Quantisation::int4}}));
  options.add("-c,--ctx-size", "N", "positions to use; 0: all that the model has [0]",
              whole<std::int64_t>(model.context, 0, kMaxPositions));
  options.add("--attn", "NAME,..", "attention by flash, decode and math, in this order [auto]",
              backends(model.attn));
  options.add("--verify", "HASH", "sha256:HEX or a sha256sum manifest that the weights must match",
              text(model.verify));
  options.add("--cache-dir", "DIR", "what the next start can map, or none [~/.cache/inkling]",
              text(model.cache_dir));
  options.add("--max-memory", "SIZE", "most bytes of weights, keys and values, e.g. 2G",
              bytes(model.max_memory));
}

fs::path cache_folder(const ModelOptions& options) {
  if (options.cache_dir == "none") return {};
  if (options.cache_dir != "auto") return options.cache_dir;
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg != nullptr && *xdg == '/')
    return fs::path(xdg) / "inkling";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/')
    return fs::path(home) / ".cache/inkling";
  return {};
}

fs::path model_path(const ModelOptions& options) {
  if (!options.model.empty()) return options.model;
  if (const auto sample = find_sample()) return *sample;
  throw Error(Code::file,
              "--model: expected a path, since the sample model was not found beside this program");
}

fs::path tokenizer_path(const ModelOptions& options) {
  if (!options.tokenizer.empty()) return options.tokenizer;
  const fs::path model = model_path(options);
  std::error_code ignored;
  const fs::file_status status = fs::status(model, ignored);
  if (fs::is_directory(status) || !fs::exists(status)) return model;  // what is not there is named as it is
  return model.has_parent_path() ? model.parent_path() : fs::path(".");
}

Result<void> check_fits(const Tokenizer& tokenizer, const ModelConfig& config, const fs::path& path) {
  if (tokenizer.vocab_size() <= config.vocab_size) return {};
  return Error(Code::malformed, path.string() + ": vocabulary: expected at most the model's " +
                                    std::to_string(config.vocab_size) + " tokens, got " +
                                    std::to_string(tokenizer.vocab_size()));
}

ExecOptions exec_options(const ModelOptions& options, const Console& console) {
  ExecOptions exec;
  exec.device = options.device;
  exec.ordinal = options.ordinal;
  exec.threads = options.threads;
  exec.log = console.log();
  exec.profiler = console.profiler();
  return exec;
}

ExecOptions cpu_options(const ModelOptions& options, const Console& console, const char* command) {
  ExecOptions exec = exec_options(options, console);
  if (exec.device == Device::cuda)
    throw Error(Code::device, std::string("--device: ") + command + " runs on the CPU alone, got cuda");
  exec.device = Device::cpu;
  return exec;
}

Workspace::Workspace(const ModelOptions& options, ReadTokenizer read, const Console& console)
    : options_(options),
      console_(console),
      path_(model_path(options)),
      tokenizer_cache_(cache_folder(options), tokenizer_path(options)),
      // Where no thread can be had, when needed.
      reading_(std::async(
          read == ReadTokenizer::at_once ? std::launch::async | std::launch::deferred : std::launch::deferred,
          [this] { return tokenizer_cache_.load(); })),
      context_(exec_options(options, console)) {
  if (!options.attn.empty()) attn_.emplace(context_, SdpaPolicy{options.attn});
  const double start = now();
  model_ = within_memory([&] { return load(path_, context_, options, console).value(); });
  load_ms_ = (now() - start) * 1e3;
  if (const std::int64_t most = model_->config().n_positions; options.context > most) {
    throw Error(Code::usage, "--ctx-size: expected at most the model's " + std::to_string(most) +
                                 " positions, got " + std::to_string(options.context));
  }
}

Workspace::~Workspace() {
  if (!model_ || std::uncaught_exceptions() > 0) return;
  try {
    if (tokenizer_ && *tokenizer_) tokenizer_cache_.keep(**tokenizer_);  // the smaller first
    keep_packed_weights();
  } catch (const std::exception& error) {
    console_.log().warn(std::string("for the next start: ") + error.what());
  }
}

// After the work, which should not wait for it. What packs in a moment needs none.
void Workspace::keep_packed_weights() const {
  constexpr std::uint64_t kSmall = std::uint64_t{16} << 20;
  const fs::path folder = cache_folder(options_);
  if (folder.empty() || model_->device() != Device::cpu || model_->from_packed_cache() ||
      model_->nbytes() < kSmall)
    return;
  console_.note(
      format("inkling: keeping %.0f MB of packed weights in ", static_cast<double>(model_->nbytes()) / 1e6) +
      folder.string() + " for the next start (--cache-dir none: never)");
  model_->write_packed_cache().value();
}

std::int64_t Workspace::positions() const noexcept {
  return options_.context != 0 ? options_.context : model_->config().n_positions;
}

std::string Workspace::name() const {
  std::error_code ignored;
  const fs::path whole = fs::weakly_canonical(path_, ignored);
  return (ignored ? path_ : whole).filename().string();
}

std::size_t Workspace::kv_max_bytes() const {
  if (options_.max_memory == 0) return 0;
  if (options_.max_memory == model_->nbytes())
    throw Error(Code::out_of_memory, "kv cache: expected room for keys and values, got 0 bytes");
  return static_cast<std::size_t>(options_.max_memory - model_->nbytes());
}

Error Workspace::with_limit(const Error& error) const {
  return Error(error.code(),
               error.message() + " (--max-memory " + std::to_string(options_.max_memory) +
                   (model_ ? ", of which weights take " + std::to_string(model_->nbytes()) : "") + ')');
}

const Tokenizer& Workspace::tokenizer() {
  if (!tokenizer_) tokenizer_ = reading_.get();
  const Tokenizer& tokenizer = tokenizer_->value();
  check_fits(tokenizer, model_->config(), tokenizer_path(options_)).value();
  return tokenizer;
}

const Tokenizer* Workspace::tokenizer_or_null() {
  if (!tokenizer_) tokenizer_ = reading_.get();
  return *tokenizer_ ? &tokenizer() : nullptr;
}

}  // namespace inkling::app
