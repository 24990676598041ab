// inkling eval: perplexity of a text, log-probabilities of given tokens.
#include <algorithm>
#include <memory>
#include <span>

#include "apps/generation.h"
#include "apps/input.h"
#include "apps/json_text.h"
#include "apps/program.h"
#include "apps/signals.h"
#include "model/score.h"

namespace inkling::app {
namespace {

struct EvalOptions {
  ModelOptions model;
  BatchOptions batch;
  std::filesystem::path perplexity, score;
  std::int64_t stride = 0;
  std::optional<Output> output;
};

ScoreOptions score_options(const EvalOptions& o, const Workspace& workspace) {
  ScoreOptions options;
  options.max_batch = o.batch.batch.value_or(kBatch);
  options.prefill_chunk = o.batch.prefill_chunk;
  options.kv_max_bytes = workspace.kv_max_bytes();
  return options;
}

/// For score(): `before` tokens were done by earlier calls, of `total` in all.
auto shown(Progress& progress, std::int64_t before, std::int64_t total) {
  return [&progress, before, total](std::int64_t done, std::int64_t all) {
    check_interrupt();
    progress.update(static_cast<double>(before + done) / static_cast<double>(std::max(total, all)));
  };
}

std::vector<std::int32_t> encode(const Record& record, Workspace& workspace) {
  const std::string text = record.text("text");
  const Tokenizer& tokenizer = workspace.tokenizer();  // its failure is not the record's
  return record.located("text", [&] { return tokenizer.encode(text).value(); });
}

std::vector<std::int32_t> read_sequence(const Record& record, Workspace& workspace, std::int64_t most) {
  const char* field = record.one_of("ids", "text");
  std::vector<std::int32_t> ids = record.has("ids") ? record.ids(field, workspace.model().config().vocab_size)
                                                    : encode(record, workspace);
  const auto length = static_cast<std::int64_t>(ids.size());
  if (length > most) {
    record.fail(std::string(field) + ": expected at most the context's " + std::to_string(most) +
                " tokens, got " + std::to_string(length));
  }
  return ids;
}

std::string line(const std::string& id, const std::vector<std::int32_t>& ids,
                 const std::vector<float>& logprobs) {
  std::string text = "{\"id\":" + id + ",\"ids\":" + id_list(ids) + ",\"logprobs\":[";
  for (std::size_t i = 0; i < logprobs.size(); ++i) text += (i == 0 ? "" : ",") + json_number(logprobs[i]);
  return text + "]}";
}

// A few hundred sequences at a time: results appear as they are made, and memory does not grow with the file.
void score_file(const EvalOptions& o, Workspace& workspace, const Console& console) {
  constexpr std::size_t kAtOnce = 256;
  const std::int64_t most = workspace.positions();
  std::vector<std::string> names;
  std::vector<std::vector<std::int32_t>> all;
  std::int64_t total = 0, before = 0;
  for (const Record& record : read_records(o.score, {"id", "ids", "text"})) {
    names.push_back(record.id(names.size()));
    all.push_back(read_sequence(record, workspace, most));
    total += static_cast<std::int64_t>(all.back().size());
  }
  ScoreOptions options = score_options(o, workspace);
  check_scorable(workspace.model(), workspace.context(), all, options);
  JsonRows rows(o.output == Output::json ? JsonRows::Shape::array : JsonRows::Shape::lines);
  Progress progress(console, "scoring");
  for (std::size_t begin = 0; begin < all.size(); begin += kAtOnce) {
    const std::size_t end = std::min(begin + kAtOnce, all.size());
    options.progress = shown(progress, before, total);
    const auto logprobs =
        score(workspace.model(), workspace.context(), std::span(all).subspan(begin, end - begin), options);
    for (std::size_t i = begin; i < end; ++i) {
      rows.write(line(names[i], all[i], logprobs[i - begin]));
      before += static_cast<std::int64_t>(all[i].size());
    }
  }
  rows.finish();
}

void perplexity_of_file(const EvalOptions& o, Workspace& workspace, const Console& console) {
  const std::string text = read_text(o.perplexity);
  const std::int64_t window = workspace.positions();
  const std::int64_t stride = o.stride != 0 ? o.stride : window;
  if (stride > window) {
    throw Error(Code::usage, "--stride: expected at most the window's " + std::to_string(window) +
                                 " tokens, got " + std::to_string(stride));
  }
  const Perplexity result = located(input_name(o.perplexity), [&] {
    const auto ids = workspace.tokenizer().encode(text).value();
    Progress progress(console, "scoring");
    ScoreOptions options = score_options(o, workspace);
    options.progress = shown(progress, 0, 0);
    return perplexity(workspace.model(), workspace.context(), ids, window, stride, options);
  });
  if (o.output.value_or(Output::text) == Output::text) {
    Console::write("perplexity " + json_number(result.value) + "\nnll " + json_number(result.nll) +
                   "\ntokens " + std::to_string(result.tokens) + "\nwindow " + std::to_string(window) +
                   "\nstride " + std::to_string(stride) + '\n');
  } else {
    Console::write("{\"perplexity\":" + json_number(result.value) + ",\"nll\":" + json_number(result.nll) +
                   ",\"tokens\":" + std::to_string(result.tokens) + ",\"window\":" + std::to_string(window) +
                   ",\"stride\":" + std::to_string(stride) + "}\n");
  }
}

void eval(const EvalOptions& o, const Console& console) {
  if (o.perplexity.empty() == o.score.empty()) {
    throw Error(Code::usage, std::string("expected one of --perplexity FILE and --score FILE, got ") +
                                 (o.score.empty() ? "none" : "both"));
  }
  if (!o.score.empty() && o.stride != 0) {
    throw Error(Code::usage, "--stride: expected --perplexity beside it, got --score");
  }
  if (!o.score.empty() && o.output == Output::text) {
    throw Error(Code::usage, "--output: expected jsonl or json with --score, got 'text'");
  }
  Workspace workspace(o.model, o.score.empty() ? ReadTokenizer::at_once : ReadTokenizer::when_needed,
                      console);
  workspace.within_memory([&] {
    o.score.empty() ? perplexity_of_file(o, workspace, console) : score_file(o, workspace, console);
  });
}

}  // namespace

void add_eval(Program& program) {
  auto o = std::make_shared<EvalOptions>();
  Options& options = program.command("eval", "perplexity, or log-probabilities of given tokens",
                                     [o](const Console& console) { eval(*o, console); });
  options.group("What and how", Options::Layers::command_line);
  options.add("--perplexity", "FILE", "of this text; - is standard input", input_path(o->perplexity));
  options.add("--stride", "N", "tokens from one window to the next [a whole window]",
              whole<std::int64_t>(o->stride, 1, kMaxPositions));
  options.add("--score", "FILE", "log-probabilities of JSON lines {id, ids or text}", input_path(o->score));
  options.add(
      "--output", "FORM", "text, json or jsonl [text; jsonl with --score]", [o](const std::string& value) {
        Output output{};
        choice<Output>(output,
                       {{"text", Output::text}, {"json", Output::json}, {"jsonl", Output::jsonl}})(value);
        o->output = output;
      });
  add_batch_options(options, o->batch);
  add_model_options(options, o->model);
}

}  // namespace inkling::app
