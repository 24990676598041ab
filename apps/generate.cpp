// inkling generate: text from a prompt, or from many in one packed batch.
#include <chrono>
#include <memory>
#include <random>

#include "apps/jsonl.h"
#include "apps/session.h"
#include "apps/terminal.h"
#include "model/generator.h"
#include "tokenizer/stop_matcher.h"
#include "tokenizer/stream_decoder.h"
#include "tokenizer/utf8.h"

namespace inkling::app {
namespace {

struct Generate {
  ModelFlags model;
  SamplingFlags sampling;
  BatchFlags batch;
  std::string prompt, file, prompts_file, output = "text", overflow = "error";
  std::int64_t context = 0;
  std::uint32_t samples = 1;
  bool has_prompt = false, no_display_prompt = false, raw_bytes = false;
};

/// One sample's text as it grows: token → bytes → valid UTF-8 → no stop string.
class Writer {
 public:
  Writer(const Tokenizer& tokenizer, const std::vector<std::string>& stop, bool raw)
      : tokenizer_(tokenizer), decoder_(tokenizer), matcher_(StopMatcher::create(stop).value()), raw_(raw) {}

  /// What may be shown now. `stopped` tells whether a stop string has come.
  std::string_view push(std::int32_t id) {
    return matcher_.push(raw_ ? tokenizer_.token_bytes(id) : decoder_.push(id).value());
  }
  std::string finish() {
    std::string rest(matcher_.push(raw_ ? std::string_view() : decoder_.finish()));
    return rest += matcher_.finish();
  }
  bool stopped() const { return matcher_.matched().has_value(); }

 private:
  const Tokenizer& tokenizer_;
  StreamDecoder decoder_;
  StopMatcher matcher_;
  bool raw_;
};

/// One continuation: what was asked and what came.
struct Job {
  std::string id, prompt;
  std::vector<std::int32_t> prompt_ids, ids;
  std::string text, logprobs;
  Finish finish = Finish::none;
  std::uint64_t seed = 0;
  std::int64_t dropped = 0;
  std::unique_ptr<Writer> writer;
};

std::uint64_t fresh_seed() {
  std::random_device device;  // 32 bits are easy to type again
  return device();
}

Overflow overflow_policy(const std::string& name) {
  return name == "truncate-left" ? Overflow::truncate_left
         : name == "slide"       ? Overflow::slide
                                 : Overflow::error;
}

class Runner {
 public:
  Runner(const Generate& flags, ExecContext& context, const Model& model, const Tokenizer& tokenizer)
      : flags_(flags),
        config_(flags.sampling.resolve(model.published_generation())),
        tokenizer_(tokenizer),
        generator_(model, context,
                   {.max_batch = std::max<std::int64_t>(flags.batch.batch, flags.samples),
                    .prefill_chunk = flags.batch.prefill_chunk,
                    .context = flags.context}) {
    if (!config_.seed) config_.seed = fresh_seed();
  }

  int run() {
    const InterruptGuard guard;
    flags_.prompts_file.empty() ? add_prompt() : add_prompts();
    start_ = std::chrono::steady_clock::now();
    Progress progress("generating", !flags_.model.quiet && !streaming());
    while (InterruptGuard::signal() == 0 && generator_.step()) {
      if (!streaming()) progress.show(static_cast<double>(tokens_) / static_cast<double>(expected_));
    }
    for (auto& job : jobs_) {
      if (job->finish == Finish::none)
        complete(*job, job->ids.empty() && config_.max_tokens == 0 ? Finish::length : Finish::cancelled);
    }
    print();
    out_.flush();
    report_run();
    return InterruptGuard::signal() == 0 ? 0 : 128 + InterruptGuard::signal();
  }

 private:
  bool streaming() const { return flags_.output == "text" && jobs_.size() == 1; }

  void add_prompt() {
    std::string prompt = !flags_.file.empty()   ? read_text(flags_.file)
                         : flags_.prompt == "-" ? read_text("-")
                                                : flags_.prompt;
    if (!flags_.has_prompt && flags_.file.empty()) prompt = read_text("-");
    auto ids = encode(prompt);
    submit(prompt, std::move(ids), *config_.seed, config_, flags_.samples);
    if (streaming() && !flags_.no_display_prompt) out_.write(prompt), out_.flush();
  }

  void add_prompts() {
    for (const Record& record : read_records(flags_.prompts_file)) {
      GenerationConfig config = config_;
      std::uint64_t seed = *config_.seed;
      if (record.has("seed")) seed = record.count("seed");
      if (record.has("max_tokens")) config.max_tokens = static_cast<std::int64_t>(record.count("max_tokens"));
      std::string prompt;
      std::vector<std::int32_t> ids;
      if (record.has("ids")) {
        ids = record.ids("ids");
      } else if (record.has("prompt")) {
        prompt = record.text("prompt");
        auto encoded = tokenizer_.encode(prompt);
        if (!encoded) record.fail("prompt: " + encoded.error().message());
        ids = *encoded;
      } else {
        record.fail("expected a field 'prompt' or 'ids'");
      }
      const std::size_t first = jobs_.size();
      try {
        submit(prompt, std::move(ids), seed, config, 1);
      } catch (const Error& error) {
        throw Error(error.code(), record.where() + ": " + error.message());
      }
      jobs_[first]->id = record.has("id") ? record.at("id").dump() : std::to_string(first);
    }
  }

  std::vector<std::int32_t> encode(const std::string& prompt) const {
    auto ids = tokenizer_.encode(prompt);
    if (!ids) throw Error(ids.error().code(), "prompt: " + ids.error().message());
    // Something must come first: the end-of-text token begins a text in GPT-2.
    if (ids->empty() && tokenizer_.eos_id()) ids->push_back(*tokenizer_.eos_id());
    return *ids;
  }

  void submit(const std::string& prompt, std::vector<std::int32_t> ids, std::uint64_t seed,
              const GenerationConfig& config, std::uint32_t samples) {
    const std::size_t first = jobs_.size();
    for (std::uint32_t i = 0; i < samples; ++i) {
      auto job = std::make_unique<Job>();
      job->id = std::to_string(jobs_.size());
      job->prompt = prompt;
      job->prompt_ids = ids;
      job->seed = seed;
      job->writer = std::make_unique<Writer>(tokenizer_, config.stop, flags_.raw_bytes);
      jobs_.push_back(std::move(job));
    }
    expected_ += config.max_tokens * samples;
    GenerationRequest request;
    request.prompt = std::move(ids);
    request.config = config;
    request.seed = seed;
    request.samples = samples;
    request.overflow = overflow_policy(flags_.overflow);
    request.on_token = [this, first](const TokenEvent& event) {
      return take(*jobs_[first + event.sample], event);
    };
    generator_.submit(std::move(request));
  }

  Continue take(Job& job, const TokenEvent& event) {
    ++tokens_;
    job.dropped = event.dropped;
    job.ids.push_back(event.id);
    if (event.logprob) note_logprobs(job, event);
    if (event.finish != Finish::eos) show(job, job.writer->push(event.id));
    if (job.writer->stopped()) {
      complete(job, Finish::stop);
      return Continue::stop;
    }
    if (event.finish != Finish::none) complete(job, event.finish);
    return Continue::yes;
  }

  void show(Job& job, std::string_view text) {
    job.text += text;
    if (!streaming() || text.empty()) return;
    out_.write(text);
    out_.flush();
  }

  void complete(Job& job, Finish finish) {
    show(job, job.writer->finish());
    job.finish = finish;
  }

  void note_logprobs(Job& job, const TokenEvent& event) {
    job.logprobs += (job.logprobs.empty() ? "" : ",");
    job.logprobs +=
        "{\"id\":" + std::to_string(event.id) + ",\"logprob\":" + number(*event.logprob) + ",\"top\":[";
    for (std::size_t i = 0; i < event.top.size(); ++i) {
      job.logprobs +=
          (i == 0 ? "[" : ",[") + std::to_string(event.top[i].id) + "," + number(event.top[i].logprob) + "]";
    }
    job.logprobs += "]}";
  }

  std::string json(const Job& job) const {
    std::string line = "{\"id\":" + job.id + ",\"prompt_ids\":" + id_list(job.prompt_ids) +
                       ",\"ids\":" + id_list(job.ids) + ",\"text\":" + quoted(to_valid_utf8(job.text)) +
                       ",\"finish_reason\":\"" + std::string(finish_name(job.finish)) +
                       "\",\"seed\":" + std::to_string(job.seed);
    if (config_.logprobs >= 0) line += ",\"logprobs\":[" + job.logprobs + "]";
    return line + "}";
  }

  void print() {
    if (streaming()) {
      if (!flags_.raw_bytes) out_.write("\n");
      return;
    }
    if (flags_.output == "json") out_.write("[");
    for (std::size_t i = 0; i < jobs_.size(); ++i) {
      const Job& job = *jobs_[i];
      if (flags_.output == "text") {
        out_.write(std::string(i == 0 ? "" : "---\n") + (flags_.no_display_prompt ? "" : job.prompt) +
                   job.text + "\n");
      } else if (flags_.output == "json") {
        out_.write((i == 0 ? "" : ",\n") + json(job));
      } else {
        out_.line(json(job));
      }
    }
    if (flags_.output == "json") out_.write("]\n");
  }

  void report_run() const {
    std::int64_t dropped = 0;
    for (const auto& job : jobs_) dropped += job->dropped;
    if (dropped > 0) {
      std::fprintf(stderr, "inkling: warning: context of %lld positions: %lld tokens were dropped (%s)\n",
                   static_cast<long long>(generator_.context_length()), static_cast<long long>(dropped),
                   flags_.overflow.c_str());
    }
    if (flags_.model.quiet) return;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    std::fprintf(stderr, "seed %llu, %lld tokens in %.2f s, %.1f tokens/s\n",
                 static_cast<unsigned long long>(*config_.seed), static_cast<long long>(tokens_), seconds,
                 static_cast<double>(tokens_) / std::max(seconds, 1e-9));
  }

  const Generate& flags_;
  GenerationConfig config_;
  const Tokenizer& tokenizer_;
  std::vector<std::unique_ptr<Job>> jobs_;
  Generator generator_;
  Output out_;
  std::int64_t tokens_ = 0, expected_ = 0;
  std::chrono::steady_clock::time_point start_;
};

int generate(const Generate& flags) {
  flags.sampling.resolve({});  // a wrong flag is said before a large model is loaded
  ExecContext context(exec_options(flags.model));
  const Tokenizer tokenizer = load_tokenizer(flags.model);
  const Model model = load_model(flags.model, context);
  check_vocabulary(tokenizer, model);
  return Runner(flags, context, model, tokenizer).run();
}

}  // namespace

void add_generate(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<Generate>();
  CLI::App* command = app.add_subcommand("generate", "continue a text");
  auto* prompt = command->add_option("-p,--prompt", flags->prompt, "text to continue; - is standard input");
  auto* file = command->add_option("-f,--file", flags->file, "read it from a file")->excludes(prompt);
  command->add_option("--prompts", flags->prompts_file, "JSON lines with prompt or ids, as one packed batch")
      ->type_name("FILE")
      ->excludes(prompt)
      ->excludes(file);
  command->add_option("-N,--num-samples", flags->samples, "continuations of the prompt [1]")
      ->check(CLI::Range(1, 4096));
  command->add_option("--output", flags->output, "text, json or jsonl")
      ->check(CLI::IsMember({"text", "json", "jsonl"}));
  command->add_option("-c,--ctx-size", flags->context, "positions to use [all]")
      ->check(CLI::Range(0, 1 << 30));
  command->add_option("--on-overflow", flags->overflow, "error, truncate-left or slide [error]")
      ->check(CLI::IsMember({"error", "truncate-left", "slide"}));
  command->add_flag("--no-display-prompt", flags->no_display_prompt, "only what is new");
  command->add_flag("--raw-bytes", flags->raw_bytes, "the tokens' bytes as they are, even if no valid UTF-8");
  add_batch_flags(*command, flags->batch);
  add_sampling_flags(*command, flags->sampling);
  add_model_flags(*command, flags->model);
  command->callback([flags, prompt, &exit_code] {
    flags->has_prompt = prompt->count() > 0;
    exit_code = generate(*flags);
  });
}

}  // namespace inkling::app
