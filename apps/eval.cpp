// inkling eval: perplexity of a text, log-probabilities of given tokens.
#include <algorithm>
#include <memory>

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

ScoreOptions score_options(const EvalOptions& o, Progress& progress, std::int64_t before,
                           std::int64_t total) {
  ScoreOptions options;
  options.max_batch = o.batch.batch;
  options.prefill_chunk = o.batch.prefill_chunk;
  options.progress = [&progress, before, total](std::int64_t done, std::int64_t all) {
    check_interrupt();
    progress.update(static_cast<double>(before + done) / static_cast<double>(std::max(total, all)));
  };
  return options;
}

struct Scored {
  std::string id;
  std::vector<std::int32_t> ids;
};

Scored read_sequence(const Record& record, std::size_t index, Workspace& workspace, std::int64_t most) {
  Scored scored{record.id(index), {}};
  if (record.has("ids") == record.has("text")) record.fail("expected one of the fields ids and text");
  const char* field = record.has("ids") ? "ids" : "text";
  scored.ids = record.has("ids") ? record.ids(field) : record.located(field, [&] {
    return workspace.tokenizer().encode(record.text("text")).value();
  });
  const auto length = static_cast<std::int64_t>(scored.ids.size());
  if (length > most) {
    record.fail(std::string(field) + ": expected at most the context's " + std::to_string(most) +
                " tokens, got " + std::to_string(length));
  }
  const std::int64_t vocab = workspace.model().config().vocab_size;
  for (const std::int32_t id : scored.ids) {
    if (id >= vocab)
      record.fail("ids: expected ids below " + std::to_string(vocab) + ", got " + std::to_string(id));
  }
  return scored;
}

std::string line(const Scored& scored, const std::vector<float>& logprobs) {
  std::string text = "{\"id\":" + scored.id + ",\"ids\":" + id_list(scored.ids) + ",\"logprobs\":[";
  for (std::size_t i = 0; i < logprobs.size(); ++i) text += (i == 0 ? "" : ",") + json_number(logprobs[i]);
  return text + "]}";
}

// A few hundred sequences at a time: results appear as they are made, and memory does not grow with the file.
void score_file(const EvalOptions& o, Workspace& workspace, const Console& console) {
  constexpr std::size_t kAtOnce = 256;
  const std::int64_t most = workspace.positions();
  std::vector<Scored> all;
  std::int64_t total = 0, before = 0;
  for (const Record& record : read_records(o.score, {"id", "ids", "text"})) {
    all.push_back(read_sequence(record, all.size(), workspace, most));
    total += static_cast<std::int64_t>(all.back().ids.size());
  }
  JsonRows rows(o.output == Output::json ? JsonRows::Shape::array : JsonRows::Shape::lines);
  Progress progress(console, "scoring");
  for (std::size_t begin = 0; begin < all.size(); begin += kAtOnce) {
    const std::size_t end = std::min(begin + kAtOnce, all.size());
    std::vector<std::vector<std::int32_t>> part;
    for (std::size_t i = begin; i < end; ++i) part.push_back(all[i].ids);
    const auto logprobs =
        score(workspace.model(), workspace.context(), part, score_options(o, progress, before, total));
    for (std::size_t i = begin; i < end; ++i) {
      rows.write(line(all[i], logprobs[i - begin]));
      before += static_cast<std::int64_t>(all[i].ids.size());
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
  const Perplexity result = located(o.perplexity.string(), [&] {
    const auto ids = workspace.tokenizer().encode(text).value();
    Progress progress(console, "scoring");
    return perplexity(workspace.model(), workspace.context(), ids, window, stride,
                      score_options(o, progress, 0, 0));
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
  o.score.empty() ? perplexity_of_file(o, workspace, console) : score_file(o, workspace, console);
}

}  // namespace

void add_eval(Program& program) {
  auto o = std::make_shared<EvalOptions>();
  Options& options = program.command("eval", "perplexity, or log-probabilities of given tokens",
                                     [o](const Console& console) { eval(*o, console); });
  options.group("What and how", Options::Layers::command_line);
  options.add("--perplexity", "FILE", "of this text; - is standard input", path(o->perplexity));
  options.add("--stride", "N", "tokens from one window to the next [a whole window]",
              whole<std::int64_t>(o->stride, 1, kMaxPositions));
  options.add("--score", "FILE", "log-probabilities of JSON lines {id, ids or text}", path(o->score));
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
