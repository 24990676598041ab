// inkling inspect: what a model holds, what it would take, and how this machine would run it.
#include <cmath>
#include <memory>

#include "apps/attention_case.h"
#include "apps/facts.h"
#include "apps/generation.h"
#include "apps/json_text.h"
#include "apps/program.h"
#include "engine/cuda/cuda.h"
#include "model/forward.h"
#include "weights/sha256.h"

namespace inkling::app {
namespace {

struct InspectOptions {
  ModelOptions model;
  std::vector<std::string> words;
  Output output = Output::text;
  bool explain = false, tensors = false, no_hash = false;
  const Options* command_line = nullptr;
};

void config(const Gpt2Source& source, Facts& facts) {
  const ModelConfig& c = source.config();
  facts.section("config");
  facts.add("parameters", c.parameter_count());
  facts.add("vocab_size", c.vocab_size);
  facts.add("n_positions", c.n_positions);
  facts.add("n_embd", c.n_embd);
  facts.add("n_layer", c.n_layer);
  facts.add("n_head", c.n_head);
  facts.add("n_inner", c.inner());
  facts.add("activation", std::string(activation_name(c.activation)));
  facts.add("layer_norm_epsilon", c.layer_norm_epsilon);
  facts.add("bias", std::string(c.bias == Bias::present ? "present" : "absent"));
  facts.add("head", std::string(c.head == Head::tied ? "tied" : "separate"));
  if (c.bos_token_id) facts.add("bos_token_id", *c.bos_token_id);
  if (c.eos_token_id) facts.add("eos_token_id", *c.eos_token_id);
}

std::string tokenizer_of(const ModelOptions& options, const ModelConfig& config) {
  const std::filesystem::path path = tokenizer_path(options);
  const Result<Tokenizer> tokenizer = Tokenizer::load(path);
  if (!tokenizer) return "none: " + tokenizer.error().message();
  const Result<void> fits = check_fits(*tokenizer, config, path);
  return tokenizer->description() + (fits ? "" : "; refused: " + fits.error().message());
}

// As text, lines of a manifest for --verify.
void hashes(const std::filesystem::path& path, Facts& facts) {
  std::vector<std::pair<std::string, std::string>> members;
  std::vector<std::string> lines;
  const std::vector<FileHash> files = hash_weight_files(path).value();
  for (const FileHash& file : files) {
    const std::string name = file.path.filename().string();
    members.emplace_back(name, json_string(file.sha256));
    lines.push_back(file.sha256 + "  " + name);
  }
  facts.add("sha256", json_object(members), std::move(lines));
}

void files(const InspectOptions& o, const std::filesystem::path& path, const Gpt2Source& source,
           Facts& facts) {
  facts.section("files");
  facts.add("path", path.string());
  facts.add("layout", std::string(source.tensors().layout == MatrixLayout::in_out ? "Conv1D (in,out)"
                                                                                  : "nn.Linear (out,in)"));
  facts.add("tensor_bytes", source.tensor_bytes());
  if (!o.no_hash) hashes(path, facts);
  facts.add("tokenizer", tokenizer_of(o.model, source.config()));
}

void tensors(const Gpt2Source& source, Facts& facts) {
  facts.section("tensors");
  for (const NamedTensor* tensor : source.files().tensors()) {
    const TensorView& view = tensor->view;
    const std::string dtype(dtype_name(view.dtype));
    const std::string shape = json_list(std::span(view.shape.data(), view.rank));
    facts.add(tensor->name, json_object({{"dtype", json_string(dtype)}, {"shape", shape}}),
              {dtype + ' ' + shape});
  }
}

void generation(const Model& model, Facts& facts) {
  facts.section("generation");
  if (const auto first = model.first_id()) facts.add("first_id", *first);
  const std::string ends = id_list(model.end_ids());
  facts.add("end_ids", ends, {ends});
}

void memory(Workspace& workspace, Facts& facts) {
  const Model& model = workspace.model();
  const Forward forward(model, workspace.context());
  const KvPool pool(forward.kv_shape(forward.default_kv_dtype()));
  facts.section("memory");
  for (const MemoryUse& use : model.memory_report()) {
    const std::string shape = use.shape.empty() ? "" : json_list(use.shape),
                      format(weight_format_name(use.format));
    facts.add(std::string(use.name),
              json_object({{"count", std::to_string(use.count)},
                           {"shape", shape.empty() ? "null" : shape},
                           {"format", json_string(format)},
                           {"bytes", std::to_string(use.bytes)}}),
              {std::to_string(use.count) + " x " + (shape.empty() ? "" : shape + " ") + format + ", " +
               std::to_string(use.bytes) + " bytes"});
  }
  facts.add("all_weights", model.nbytes(), " bytes");
  const std::string dtype(dtype_name(forward.default_kv_dtype())), page = std::to_string(pool.bytes_for(1)),
                                                                   tokens = std::to_string(kKvPageTokens);
  facts.add("kv_page", json_object({{"tokens", tokens}, {"dtype", json_string(dtype)}, {"bytes", page}}),
            {dtype + ", " + page + " bytes per " + tokens + " tokens of a sequence"});
  facts.add("kv_whole_context", pool.bytes_for(model.config().n_positions), " bytes");
}

// What cached_attention() will take under --attn: sdpa() chooses by the same rule.
Choice attention_choice(Workspace& workspace, std::int64_t fresh, std::int64_t keys) {
  const ModelConfig& config = workspace.model().config();
  AttentionCase shape;
  shape.q_lengths = {fresh};
  shape.k_lengths = {keys};
  shape.heads = shape.kv_heads = config.n_head;
  shape.dim = config.head_size();
  shape.mask = MaskKind::causal_lower_right;
  const AttentionData data(shape, nullptr);
  const SdpaChoice choice = choose(workspace.context(), data.forward());
  return choice_of(choice.backend ? sdpa_backend_name(*choice.backend) : "", choice.refused,
                   [](const SdpaChoice::Refusal& r) { return std::string(sdpa_backend_name(r.backend)); });
}

void explain(Workspace& workspace, Facts& facts) {
  const ExecContext& context = workspace.context();
  facts.section("execution");
  facts.add("cpu", cpu_name());
  facts.add("device", context.backend().description());
  const std::string cuda = cuda_unavailable_reason();
  facts.add("cuda", cuda.empty() ? "available" : "refused: " + cuda);
  facts.add("kernels", choice_of(isa_name(context.isa()), context.isa_choice().refused,
                                 [](const IsaChoice::Refusal& r) { return std::string(isa_name(r.isa)); }));
  facts.add("threads", context.pool().size());
  facts.add("cpus", available_cpus());
  facts.add("matrices", std::string(weight_format_name(workspace.model().format())));
  // Over cached pages, in order: of a prompt that fills the context, and of the last token after it.
  const std::int64_t most = workspace.model().config().n_positions;
  facts.add("attention_of_prompt", attention_choice(workspace, most, most));
  facts.add("attention_of_token", attention_choice(workspace, 1, most));
  facts.add("load_ms", std::round(static_cast<float>(workspace.load_ms()) * 10) / 10);
}

void inspect(InspectOptions& o, const Console& console) {
  if (const std::size_t models = o.words.size() + (o.command_line->given("model") ? 1 : 0); models > 1) {
    throw Error(Code::usage, "expected one of MODEL and --model PATH, got " + std::to_string(models));
  }
  if (!o.words.empty()) o.model.model = o.words.front();
  const auto path = model_path(o.model);
  Facts facts;
  {
    const Gpt2Source source = Gpt2Source::open(path).value();
    files(o, path, source, facts);
    config(source, facts);
    if (o.tensors) tensors(source, facts);
  }
  Workspace workspace(o.model, ReadTokenizer::when_needed, console);
  generation(workspace.model(), facts);
  memory(workspace, facts);
  if (o.explain) explain(workspace, facts);
  o.output == Output::text ? facts.print_text() : facts.print_json();
}

}  // namespace

void add_inspect(Program& program) {
  auto o = std::make_shared<InspectOptions>();
  Options& options = program.command("inspect", "what a model holds, and how it would run here",
                                     [o](const Console& console) { inspect(*o, console); });
  o->command_line = &options;
  options.group("What and how", Options::Layers::command_line);
  options.words("[MODEL]", "the same as --model", o->words);
  options.flag("--explain", "what was chosen to run it, and why not the rest", o->explain);
  options.flag("--tensors", "every tensor of the files", o->tensors);
  options.flag("--no-hash", "leave out sha256", o->no_hash);
  options.add("--output", "FORM", "text or json [text]",
              choice<Output>(o->output, {{"text", Output::text}, {"json", Output::json}}));
  add_model_options(options, o->model);
}

}  // namespace inkling::app
