// inkling inspect: what a model holds, what it would take, and how this machine would run it.
#include <memory>

#include "apps/attention_case.h"
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
};

// Everything that is told: a section, a name, a value that is already JSON, and the value for people.
struct Fact {
  std::string section, name, json, text;
};

class Facts {
 public:
  void section(std::string name) { section_ = std::move(name); }
  void add(std::string name, const std::string& text) {
    facts_.push_back({section_, std::move(name), json_string(text), text});
  }
  template <class Number>
  requires std::is_arithmetic_v<Number>
  void add(std::string name, Number value, const std::string& unit = "") {
    facts_.push_back({section_, std::move(name), std::to_string(value), std::to_string(value) + unit});
  }

  void print_text() const {
    std::string last;
    for (const Fact& fact : facts_) {
      if (fact.section != last) Console::write((last.empty() ? "" : "\n") + fact.section + '\n');
      last = fact.section;
      std::string name = "  " + fact.name;
      name.resize(std::max<std::size_t>(name.size() + 1, 22), ' ');
      Console::write(name + fact.text + '\n');
    }
  }
  void print_json() const {
    std::string out, last;
    for (const Fact& fact : facts_) {
      if (fact.section != last) out += (last.empty() ? "{" : "},\n") + json_string(fact.section) + ":{";
      out += (fact.section == last ? "," : "") + json_string(fact.name) + ":" + fact.json;
      last = fact.section;
    }
    Console::write(out + "}}\n");
  }

 private:
  std::string section_;
  std::vector<Fact> facts_;
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
  facts.add("layer_norm_epsilon", format("%g", static_cast<double>(c.layer_norm_epsilon)));
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

void files(const InspectOptions& o, const std::filesystem::path& path, const Gpt2Source& source,
           Facts& facts) {
  facts.section("files");
  facts.add("path", path.string());
  facts.add("layout", std::string(source.tensors().layout == MatrixLayout::in_out ? "Conv1D (in,out)"
                                                                                  : "nn.Linear (out,in)"));
  facts.add("tensor_bytes", source.tensor_bytes());
  if (!o.no_hash) {
    const std::vector<FileHash> hashes = hash_weight_files(path).value();
    for (const FileHash& file : hashes) {
      facts.add(file.path.filename().string(), "sha256:" + file.sha256);
    }
  }
  facts.add("tokenizer", tokenizer_of(o.model, source.config()));
}

void tensors(const Gpt2Source& source, Facts& facts) {
  facts.section("tensors");
  for (const NamedTensor* tensor : source.files().tensors()) {
    facts.add(tensor->name, std::string(dtype_name(tensor->view.dtype)) + ' ' + tensor->view.shape_string());
  }
}

void memory(Workspace& workspace, Facts& facts) {
  const Model& model = workspace.model();
  const Forward forward(model, workspace.context());
  const KvPool pool(forward.kv_shape(forward.default_kv_dtype()));
  facts.section("memory");
  for (const std::string& line : model.memory_report()) {  // "name  shape  format  bytes"
    const std::size_t gap = line.find("  ");
    facts.add(line.substr(0, gap), line.substr(std::min(gap + 2, line.size())));
  }
  facts.add("all weights", model.nbytes(), " bytes");
  facts.add("kv cache", std::string(dtype_name(forward.default_kv_dtype())) + ", " +
                            std::to_string(pool.bytes_for(1)) + " bytes per " +
                            std::to_string(kKvPageTokens) + " tokens of a sequence");
  facts.add("kv, whole context", pool.bytes_for(model.config().n_positions), " bytes");
}

// What cached_attention() will take under --attn: sdpa() chooses by the same rule.
std::string attention_choice(Workspace& workspace, std::int64_t fresh, std::int64_t keys) {
  const ModelConfig& config = workspace.model().config();
  AttentionCase shape;
  shape.q_lengths = {fresh};
  shape.k_lengths = {keys};
  shape.heads = shape.kv_heads = config.n_head;
  shape.dim = config.head_size();
  shape.mask = MaskKind::causal_lower_right;
  const AttentionData data(shape, nullptr);
  const SdpaChoice choice = choose(workspace.context(), data.forward());
  std::string text = choice.backend ? std::string(sdpa_backend_name(*choice.backend)) : "none can run it";
  for (const SdpaChoice::Refusal& refusal : choice.refused) {
    text += "; " + std::string(sdpa_backend_name(refusal.backend)) + " refused: " + refusal.reason;
  }
  return text;
}

void explain(Workspace& workspace, Facts& facts) {
  const ExecContext& context = workspace.context();
  facts.section("how it runs here");
  facts.add("cpu", cpu_name());
  facts.add("device", context.backend().description());
  const std::string cuda = cuda_unavailable_reason();
  facts.add("cuda", cuda.empty() ? "available" : "refused: " + cuda);
  facts.add(std::string(isa_name(context.isa())), "chosen");
  for (const IsaChoice::Refusal& refusal : context.isa_choice().refused) {
    facts.add(std::string(isa_name(refusal.isa)), "refused: " + refusal.reason);
  }
  facts.add("threads",
            std::to_string(context.pool().size()) + " of " + std::to_string(available_cpus()) + " CPUs");
  facts.add("matrices", std::string(weight_format_name(workspace.model().format())));
  facts.add("attention", "over cached pages of " + std::to_string(kKvPageTokens) + " tokens, in order");
  const std::int64_t most = workspace.model().config().n_positions;
  facts.add("prompt of " + std::to_string(most), attention_choice(workspace, most, most));
  facts.add("one token more", attention_choice(workspace, 1, most));
  facts.add("load", format("%.0f ms", workspace.load_ms()));
}

void inspect(InspectOptions& o, const Console& console) {
  if (o.words.size() + (o.model.model.empty() ? 0 : 1) > 1) {
    throw Error(Code::usage, "expected one of MODEL and --model PATH, got " +
                                 std::to_string(o.words.size() + (o.model.model.empty() ? 0 : 1)));
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
  memory(workspace, facts);
  if (o.explain) explain(workspace, facts);
  o.output == Output::text ? facts.print_text() : facts.print_json();
}

}  // namespace

void add_inspect(Program& program) {
  auto o = std::make_shared<InspectOptions>();
  Options& options = program.command("inspect", "what a model holds, and how it would run here",
                                     [o](const Console& console) { inspect(*o, console); });
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
