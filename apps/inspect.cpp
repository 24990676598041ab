// inkling inspect: what a model folder holds and how this machine would run it.
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/session.h"
#include "apps/terminal.h"
#include "attention/kv_cache.h"
#include "model/forward.h"
#include "weights/gpt2_source.h"
#include "weights/sha256.h"

namespace inkling::app {
namespace {

struct Inspect {
  ModelFlags model;
  bool explain = false, tensors = false, no_hash = false;
};

void line(const std::string& name, const std::string& value) {
  std::string padded = name;
  padded.resize(std::max<std::size_t>(name.size() + 1, 20), ' ');
  Output().line(padded + value);
}

void show_config(const ModelConfig& c) {
  line("architecture", "gpt2");
  line("parameters", std::to_string(c.parameter_count()));
  line("vocab_size", std::to_string(c.vocab_size));
  line("n_positions", std::to_string(c.n_positions));
  line("n_embd", std::to_string(c.n_embd));
  line("n_layer", std::to_string(c.n_layer));
  line("n_head", std::to_string(c.n_head));
  line("n_inner", std::to_string(c.inner()));
  line("activation", std::string(activation_name(c.activation)));
  line("bias", c.bias == Bias::present ? "yes" : "no");
  line("head", c.head == Head::tied ? "tied to the embedding" : "separate");
  if (c.eos_token_id) line("eos_token_id", std::to_string(*c.eos_token_id));
}

void explain(const Inspect& flags) {
  ExecContext context(exec_options(flags.model));
  const Model model = load_model(flags.model, context);
  Forward forward(model, context);
  Output out;
  out.line("\nhow it runs here");
  line("device", context.backend().description() + " (" + cpu_name() + ")");
  line("cuda", "refused: " + cuda_unavailable_reason());
  for (const auto& refusal : context.isa_choice().refused) {
    line(std::string(isa_name(refusal.isa)), "refused: " + refusal.reason);
  }
  line("attention", "cached attention over pages of 64 tokens, keys and values " +
                        std::string(dtype_name(forward.default_kv_dtype())));
  for (const std::string& text : model.memory_report()) line("weights", text);
  line("weights, all", std::to_string(model.nbytes()) + " bytes");
  const KvPool pool(forward.kv_shape(forward.default_kv_dtype()));
  line("kv cache", std::to_string(pool.bytes_for(1)) + " bytes per 64 tokens of a sequence, " +
                       std::to_string(pool.bytes_for(model.config().n_positions)) + " for the whole context");
}

void inspect(const Inspect& flags) {
  const auto path = model_path(flags.model);
  if (!flags.model.verify.empty()) verify(path, flags.model.verify).value();
  const Gpt2Source source = Gpt2Source::open(path).value();
  line("model", path.string());
  show_config(source.config());
  line("layout",
       source.tensors().layout == MatrixLayout::in_out ? "Conv1D [in, out]" : "nn.Linear [out, in]");
  line("tensor bytes", std::to_string(source.tensor_bytes()));
  if (!flags.no_hash) {
    const std::vector<FileHash> hashes = hash_weight_files(path).value();
    for (const FileHash& file : hashes) {
      line("sha256", file.sha256 + "  " + file.path.filename().string());
    }
  }
  if (const auto tokenizer =
          Tokenizer::load(std::filesystem::is_directory(path) ? path : path.parent_path())) {
    line("tokenizer", tokenizer->description());
  } else {
    line("tokenizer", "none: " + tokenizer.error().message());
  }
  if (flags.tensors) {
    for (const NamedTensor* tensor : source.files().tensors()) {
      line("tensor", tensor->name + " " + std::string(dtype_name(tensor->view.dtype)) + " " +
                         tensor->view.shape_string());
    }
  }
  if (flags.explain) explain(flags);
}

}  // namespace

void add_inspect(CLI::App& app, int&) {
  auto flags = std::make_shared<Inspect>();
  CLI::App* command = app.add_subcommand("inspect", "what a model holds and how it would run");
  add_model_flags(*command, flags->model);
  command->add_option("path", flags->model.model, "model folder or file");
  command->add_flag("--tensors", flags->tensors, "list every tensor");
  command->add_flag("--explain", flags->explain, "load it and say what was chosen, and why not the rest");
  command->add_flag("--no-hash", flags->no_hash, "skip sha256");
  command->callback([flags] { inspect(*flags); });
}

}  // namespace inkling::app
