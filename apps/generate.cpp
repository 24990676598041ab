// inkling generate: text from a prompt, or from many in one packed batch.
#include <limits>
#include <memory>

#include "apps/generation.h"
#include "apps/input.h"
#include "apps/program.h"
#include "tokenizer/utf8.h"

namespace inkling::app {
namespace {

void check_sources(const GenerateOptions& o) {
  for (const std::string& word : o.words) {
    if (word != "-") throw Error(Code::usage, "expected - (standard input) or a flag, got '" + word + "'");
  }
  const std::size_t sources =
      o.prompt.size() + o.words.size() + (o.file.empty() ? 0 : 1) + (o.prompts.empty() ? 0 : 1);
  if (sources != 1) {
    throw Error(Code::usage, "expected one of --prompt TEXT, --file FILE, - and --prompts FILE.jsonl, got " +
                                 std::to_string(sources));
  }
  if (o.sampling.has("logprobs") && o.output == Output::text) {
    throw Error(Code::usage, "--logprobs: expected --output json or jsonl beside it, got text");
  }
  if (o.raw_bytes && o.output != Output::text) {
    throw Error(Code::usage, "--raw-bytes: expected --output text beside it, got JSON, which is UTF-8");
  }
  for (const auto& [name, value] : o.sampling.given) {
    if (name == "stop" && !is_valid_utf8(value))
      throw Error(Code::usage, "--stop: expected UTF-8, got other bytes");
  }
}

// Something must come first.
std::vector<std::int32_t> encode(const Tokenizer& tokenizer, const Model& model, std::string_view text) {
  std::vector<std::int32_t> ids = tokenizer.encode(text).value();
  if (const auto first = model.first_id(); ids.empty() && first) ids.push_back(*first);
  if (ids.empty()) {
    throw Error(Code::input,
                "expected a text, got none, and the model states no token that an empty one begins with");
  }
  return ids;
}

void add_one(const GenerateOptions& o, Workspace& workspace, Generation& generation) {
  const bool given = !o.prompt.empty() && o.prompt.front() != "-";
  const std::filesystem::path file = o.file.empty() ? "-" : o.file;
  const std::string text = given ? o.prompt.front() : read_text(file);
  Prompt prompt{"0", o.raw_bytes ? text : to_valid_utf8(text), {}, *generation.config().seed, 0};
  located(given ? "--prompt" : input_name(file), [&] {
    prompt.ids = encode(workspace.tokenizer(), workspace.model(), text);
    prompt.max_tokens = generation.config().max_tokens;
    generation.add(std::move(prompt));
  });
}

Prompt read_prompt(const Record& record, std::size_t index, Workspace& workspace) {
  Prompt prompt;
  prompt.id = record.id(index);
  const char* field = record.one_of("prompt", "ids");
  if (record.has("ids")) {
    prompt.ids = record.ids(field, workspace.model().config().vocab_size);
    if (prompt.ids.empty()) record.fail("ids: expected at least one, got none");
    const Tokenizer* tokenizer = workspace.tokenizer_or_null();
    if (tokenizer == nullptr) return prompt;
    if (const auto text = tokenizer->decode(prompt.ids); text) prompt.text = to_valid_utf8(*text);
  } else {
    prompt.text = record.text(field);
    const Tokenizer& tokenizer = workspace.tokenizer();  // its failure is not the record's
    prompt.ids = record.located(field, [&] { return encode(tokenizer, workspace.model(), prompt.text); });
  }
  return prompt;
}

void add_many(const GenerateOptions& o, Workspace& workspace, Generation& generation) {
  constexpr std::uint64_t kAny = std::numeric_limits<std::uint64_t>::max();
  std::size_t index = 0;
  for (const Record& record : read_records(o.prompts, {"id", "prompt", "ids", "seed", "max_tokens"})) {
    Prompt prompt = read_prompt(record, index++, workspace);
    prompt.seed = record.has("seed") ? record.count("seed", kAny) : *generation.config().seed;
    prompt.max_tokens = record.has("max_tokens")
                            ? static_cast<std::int64_t>(record.count("max_tokens", 1'000'000'000))
                            : generation.config().max_tokens;
    record.located("", [&] { generation.add(std::move(prompt)); });
  }
}

void generate(const GenerateOptions& options, const Console& console) {
  check_sources(options);
  Workspace workspace(options.model, ReadTokenizer::at_once, console);
  workspace.within_memory([&] {
    Generation generation(options, workspace, console);
    options.prompts.empty() ? add_one(options, workspace, generation)
                            : add_many(options, workspace, generation);
    generation.run();
  });
}

}  // namespace

void add_generate(Program& program) {
  auto o = std::make_shared<GenerateOptions>();
  Options& options = program.command("generate", "continue a text, or many",
                                     [o](const Console& console) { generate(*o, console); });
  options.group("Prompt and output", Options::Layers::command_line);
  options.add("-p,--prompt", "TEXT", "the text to continue", append(o->prompt));
  options.add("-f,--file", "FILE", "read it from a file", input_path(o->file));
  options.words("[-]", "read it from standard input", o->words);
  options.add("--prompts", "FILE", "JSON lines {id, prompt or ids, seed, max_tokens}, run together",
              input_path(o->prompts));
  options.add("-N,--num-samples", "N", "continuations of each prompt [1]",
              whole<std::uint32_t>(o->samples, 1, 4096));
  options.add(
      "--output", "FORM", "text, json or jsonl [text]",
      choice<Output>(o->output, {{"text", Output::text}, {"json", Output::json}, {"jsonl", Output::jsonl}}));
  options.flag("--no-display-prompt", "show what is new alone", o->no_display_prompt);
  options.flag("--raw-bytes", "the tokens' bytes as they are, even if no UTF-8", o->raw_bytes);
  options.add("--on-overflow", "POLICY", "context too short: error, truncate-left or slide [error]",
              choice<Overflow>(o->overflow, {{"error", Overflow::error},
                                             {"truncate-left", Overflow::truncate_left},
                                             {"slide", Overflow::slide}}));
  add_batch_options(options, o->batch);
  add_sampling_options(options, o->sampling);
  add_model_options(options, o->model);
}

}  // namespace inkling::app
