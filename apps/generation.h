// Generation: prompts in, continuations out, in the order of the prompts however they finish.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "apps/console.h"
#include "apps/json_text.h"
#include "apps/model_options.h"
#include "apps/sampling_options.h"
#include "apps/text_stream.h"
#include "model/generator.h"

namespace inkling::app {

enum class Output : std::uint8_t { text, json, jsonl };

struct GenerateOptions {
  ModelOptions model;
  SamplingOptions sampling;
  BatchOptions batch;
  std::vector<std::string> prompt, words;  ///< texts, and "-": one in all, and then neither file nor prompts
  std::filesystem::path file, prompts;
  std::uint32_t samples = 1;
  Output output = Output::text;
  bool no_display_prompt = false, raw_bytes = false;
  Overflow overflow = Overflow::error;
};

/// What one prompt asks for.
struct Prompt {
  std::string id;    ///< JSON
  std::string text;  ///< to show; may be empty
  std::vector<std::int32_t> ids;
  std::uint64_t seed = 0;
  std::int64_t max_tokens = 0;
};

/// One run. The text of the first unfinished continuation is shown as it comes; of the later ones, once it is
/// their turn.
class Generation {
 public:
  Generation(const GenerateOptions& options, Workspace& workspace, const Console& console);

  ~Generation();

  const GenerationConfig& config() const noexcept { return config_; }
  /// Throws Error{input} for a prompt that does not fit.
  void add(Prompt prompt);
  /// Throws Interrupted after showing what there is, Error and ReaderGone.
  void run();

 private:
  struct Job;
  Continue take(Job& job, const TokenEvent& event);
  void show(Job& job, std::string_view text);
  void complete(Job& job, Finish finish);
  void begin_text(const Job& job);
  void emit_finished();
  std::string json(const Job& job) const;
  void report(double seconds) const;

  const GenerateOptions& options_;
  Workspace& workspace_;
  const Console& console_;
  const Tokenizer* tokenizer_;
  GenerationConfig config_;
  Generator generator_;
  JsonRows rows_;
  std::vector<std::unique_ptr<Job>> jobs_;
  std::size_t turn_ = 0;  // the job whose text is shown as it comes
  std::int64_t prompt_tokens_ = 0, new_tokens_ = 0, expected_ = 0, dropped_ = 0;
  double start_ = 0, first_ = 0;
};

}  // namespace inkling::app
