// inkling eval: perplexity of a text, log-probabilities of given tokens.
#include <memory>

#include "apps/jsonl.h"
#include "apps/session.h"
#include "apps/terminal.h"
#include "model/score.h"

namespace inkling::app {
namespace {

struct Eval {
  ModelFlags model;
  BatchFlags batch;
  std::string perplexity_file, score_file, output = "text";
  std::int64_t stride = 0, context = 0;
};

ScoreOptions score_options(const Eval& flags, Progress& progress) {
  ScoreOptions options;
  options.max_batch = flags.batch.batch;
  options.prefill_chunk = flags.batch.prefill_chunk;
  options.progress = [&](std::int64_t done, std::int64_t total) {
    progress.show(static_cast<double>(done) / static_cast<double>(total));
  };
  return options;
}

void score_file(const Eval& flags, ExecContext& context, const Model& model) {
  std::optional<Tokenizer> tokenizer;  // needed by records of text alone
  std::vector<std::vector<std::int32_t>> sequences;
  const std::vector<Record> records = read_records(flags.score_file);
  for (const Record& record : records) {
    if (record.has("ids")) {
      sequences.push_back(record.ids("ids"));
    } else if (record.has("text")) {
      if (!tokenizer) tokenizer = load_tokenizer(flags.model), check_vocabulary(*tokenizer, model);
      auto ids = tokenizer->encode(record.text("text"));
      if (!ids) record.fail("text: " + ids.error().message());
      sequences.push_back(*ids);
    } else {
      record.fail("expected a field 'ids' or 'text'");
    }
    const auto length = static_cast<std::int64_t>(sequences.back().size());
    if (length > model.config().n_positions) {
      record.fail(std::to_string(length) + " tokens, but the model has " +
                  std::to_string(model.config().n_positions) + " positions");
    }
    for (const std::int32_t id : sequences.back()) {
      if (id >= model.config().vocab_size) {
        record.fail("ids: expected ids below " + std::to_string(model.config().vocab_size) + ", got " +
                    std::to_string(id));
      }
    }
  }
  Progress progress("scoring", !flags.model.quiet);
  const auto logprobs = score(model, context, sequences, score_options(flags, progress));
  Output out;
  for (std::size_t i = 0; i < records.size(); ++i) {
    std::string line = "{\"id\":" + (records[i].has("id") ? records[i].at("id").dump() : std::to_string(i));
    line += ",\"ids\":" + id_list(sequences[i]) + ",\"logprobs\":[";
    for (std::size_t t = 0; t < logprobs[i].size(); ++t) line += (t == 0 ? "" : ",") + number(logprobs[i][t]);
    out.line(line + "]}");
  }
}

void perplexity_file(const Eval& flags, ExecContext& context, const Model& model) {
  const Tokenizer tokenizer = load_tokenizer(flags.model);
  check_vocabulary(tokenizer, model);
  const auto ids = tokenizer.encode(read_text(flags.perplexity_file)).value();
  const std::int64_t window = flags.context != 0 ? flags.context : model.config().n_positions;
  Progress progress("scoring", !flags.model.quiet);
  const Perplexity result = perplexity(model, context, ids, window, flags.stride != 0 ? flags.stride : window,
                                       score_options(flags, progress));
  char text[256];
  const char* form = flags.output == "text" ? "perplexity %.9g\nnll %.9g\ntokens %lld\n"
                                            : "{\"perplexity\":%.9g,\"nll\":%.9g,\"tokens\":%lld}\n";
  std::snprintf(text, sizeof text, form, result.value, result.nll, static_cast<long long>(result.tokens));
  Output().write(text);
}

void eval(const Eval& flags) {
  require(flags.perplexity_file.empty() != flags.score_file.empty(), Code::usage,
          [] { return "eval: expected one of --perplexity FILE and --score FILE"; });
  ExecContext context(exec_options(flags.model));
  const Model model = load_model(flags.model, context);
  flags.score_file.empty() ? perplexity_file(flags, context, model) : score_file(flags, context, model);
}

}  // namespace

void add_eval(CLI::App& app, int&) {
  auto flags = std::make_shared<Eval>();
  CLI::App* command = app.add_subcommand("eval", "perplexity, log-probabilities of given tokens");
  add_model_flags(*command, flags->model);
  add_batch_flags(*command, flags->batch);
  command->add_option("--perplexity", flags->perplexity_file, "a text; - is standard input")
      ->type_name("FILE");
  command->add_option("--stride", flags->stride, "tokens from window to window [a whole window]")
      ->check(CLI::Range(0, 1 << 30));
  command->add_option("-c,--ctx-size", flags->context, "tokens in a window [all positions]")
      ->check(CLI::Range(0, 1 << 30));
  command->add_option("--score", flags->score_file, "JSON lines with ids or text")->type_name("FILE");
  command->add_option("--output", flags->output, "text, json or jsonl")
      ->check(CLI::IsMember({"text", "json", "jsonl"}));
  command->callback([flags] { eval(*flags); });
}

}  // namespace inkling::app
