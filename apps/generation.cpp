#include "apps/generation.h"

#include <algorithm>
#include <random>
#include <utility>

#include "apps/signals.h"
#include "tokenizer/utf8.h"

namespace inkling::app {

struct Generation::Job {
  std::string id;
  std::shared_ptr<const Prompt> prompt;
  std::uint32_t sample = 0;
  TextStream stream;
  std::vector<std::int32_t> ids;
  std::string text, logprobs;
  Finish finish = Finish::none;
  std::int64_t dropped = 0;
};

Generation::Generation(const GenerateOptions& options, Workspace& workspace, const Console& console)
    : options_(options),
      workspace_(workspace),
      console_(console),
      config_(options.sampling.resolve(workspace.model().published_generation(),
                                       workspace.model().config().vocab_size)),
      generator_(workspace.model(), workspace.context(),
                 {.max_batch = options.batch.batch.value_or(std::max<std::int64_t>(kBatch, options.samples)),
                  .prefill_chunk = options.batch.prefill_chunk,
                  .context = workspace.positions(),
                  .kv_max_bytes = workspace.kv_max_bytes()}),
      rows_(options.output == Output::jsonl ? JsonRows::Shape::lines : JsonRows::Shape::array) {
  // Ids alone can be continued without a tokenizer; text cannot be shown, nor stop strings seen.
  const bool text = options.output == Output::text || options.prompts.empty() || !config_.stop.empty();
  tokenizer_ = text ? &workspace.tokenizer() : workspace.tokenizer_or_null();
  if (!config_.seed) config_.seed = std::random_device()();  // 32 bits are easy to type again
}

Generation::~Generation() = default;

void Generation::add(Prompt prompt) {
  GenerationRequest request;
  request.prompt = prompt.ids;
  request.config = config_;
  request.config.max_tokens = prompt.max_tokens;
  request.seed = prompt.seed;
  request.samples = options_.samples;
  request.overflow = options_.overflow;
  const auto shared = std::make_shared<const Prompt>(std::move(prompt));
  const std::size_t first = jobs_.size();
  request.on_token = [this, first](const TokenEvent& event) {
    return take(*jobs_[first + event.sample], event);
  };
  generator_.submit(std::move(request));
  const TextForm form = options_.raw_bytes ? TextForm::raw : TextForm::utf8;
  for (std::uint32_t sample = 0; sample < options_.samples; ++sample) {
    jobs_.push_back(std::make_unique<Job>(Job{
        shared->id, shared, sample, TextStream(tokenizer_, shared->ids, config_.stop, form), {}, {}, {}}));
    if (shared->max_tokens == 0) jobs_.back()->finish = Finish::length;
  }
  prompt_tokens_ += static_cast<std::int64_t>(shared->ids.size());
  expected_ += shared->max_tokens * options_.samples;
}

void Generation::run() {
  start_ = now();
  if (!jobs_.empty()) begin_text(*jobs_[0]);
  emit_finished();
  {
    Progress progress(console_, "generating");
    while (pending_signal() == 0 && generator_.step()) {
      if (options_.output == Output::text) continue;
      progress.update(static_cast<double>(new_tokens_) / static_cast<double>(expected_));
    }
  }
  const double seconds = now() - start_;
  for (; turn_ < jobs_.size(); emit_finished()) {
    if (jobs_[turn_]->ids.empty()) break;  // interrupted before it began
    complete(*jobs_[turn_], Finish::cancelled);
  }
  if (options_.output == Output::json) rows_.finish();
  report(seconds);
  check_interrupt();
}

Continue Generation::take(Job& job, const TokenEvent& event) {
  if (new_tokens_++ == 0) first_ = now();
  dropped_ += event.dropped - std::exchange(job.dropped, event.dropped);
  job.ids.push_back(event.id);
  if (event.logprob) {
    std::string top;
    for (const TokenLogprob& each : event.top) {
      top += (top.empty() ? "[" : ",[") + std::to_string(each.id) + "," + json_number(each.logprob) + "]";
    }
    job.logprobs += (job.logprobs.empty() ? "{\"id\":" : ",{\"id\":") + std::to_string(event.id) +
                    ",\"logprob\":" + json_number(*event.logprob) + ",\"top\":[" + top + "]}";
  }
  if (event.finish != Finish::eos) show(job, job.stream.push(event.id));
  const Finish finish = job.stream.stopped() ? Finish::stop : event.finish;
  if (finish == Finish::none) return Continue::yes;
  complete(job, finish);
  emit_finished();
  return Continue::stop;
}

void Generation::show(Job& job, std::string_view text) {
  job.text += text;
  if (options_.output == Output::text && &job == jobs_[turn_].get()) Console::write(text);
}

void Generation::complete(Job& job, Finish finish) {
  show(job, job.stream.finish());
  job.finish = finish;
}

// The prompt and what the job has so far.
void Generation::begin_text(const Job& job) {
  if (options_.output != Output::text) return;
  const bool show_prompt = !options_.no_display_prompt;
  Console::write(show_prompt ? job.prompt->text + job.text : job.text);
}

void Generation::emit_finished() {
  while (turn_ < jobs_.size() && jobs_[turn_]->finish != Finish::none) {
    const Job& job = *jobs_[turn_];
    if (options_.output != Output::text) {
      rows_.write(json(job));
    } else if (!options_.raw_bytes) {
      const std::string& shown =
          job.text.empty() && !options_.no_display_prompt ? job.prompt->text : job.text;
      if (!shown.ends_with('\n')) Console::write("\n");
    }
    *jobs_[turn_] =
        Job{job.id, job.prompt, job.sample, job.stream, {}, {}, {}, job.finish};  // let its memory go
    if (++turn_ == jobs_.size() || options_.output != Output::text) continue;
    if (jobs_[turn_]->ids.empty() && pending_signal() != 0) continue;
    if (!options_.raw_bytes) Console::write("---\n");
    begin_text(*jobs_[turn_]);
  }
}

std::string Generation::json(const Job& job) const {
  std::string line = "{\"id\":" + job.id;
  if (options_.samples > 1) line += ",\"sample\":" + std::to_string(job.sample);
  line += ",\"prompt_ids\":" + id_list(job.prompt->ids) + ",\"ids\":" + id_list(job.ids) +
          ",\"text\":" + json_string(to_valid_utf8(job.text)) + ",\"finish_reason\":\"" +
          std::string(finish_name(job.finish)) + "\",\"seed\":" + std::to_string(job.prompt->seed);
  if (config_.logprobs >= 0) line += ",\"logprobs\":[" + job.logprobs + "]";
  if (job.dropped > 0) line += ",\"dropped\":" + std::to_string(job.dropped);
  return line + "}";
}

void Generation::report(double seconds) const {
  if (dropped_ > 0) {
    Console::say("inkling: warning: --on-overflow: the context holds " +
                 std::to_string(generator_.context_length()) + " positions; " + std::to_string(dropped_) +
                 " tokens were dropped" +
                 (options_.overflow == Overflow::slide ? " and what was left was encoded anew" : ""));
  }
  const std::string seed = "seed " + std::to_string(*config_.seed);
  if (console_.quiet()) {  // a seed that nobody knows must be told all the same
    if (config_.temperature > 0 && !options_.sampling.has("seed")) Console::say("inkling: " + seed);
    return;
  }
  std::string line = "inkling: " + seed + ", " + std::to_string(prompt_tokens_) + " prompt tokens, " +
                     std::to_string(new_tokens_) + " new in " + format("%.2f s", seconds);
  if (new_tokens_ > 0) {
    line += format(" (%.0f/s", static_cast<double>(new_tokens_) / std::max(seconds, 1e-9)) +
            format(", first after %.0f ms)", (first_ - start_) * 1e3);
  }
  Console::say(line + format(", load %.0f ms", workspace_.load_ms()));
}

}  // namespace inkling::app
