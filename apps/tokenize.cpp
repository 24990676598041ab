// inkling tokenize, inkling detokenize: text ↔ ids.
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "apps/session.h"
#include "apps/terminal.h"
#include "tokenizer/utf8.h"

namespace inkling::app {
namespace {

struct Tokenize {
  ModelFlags model;
  std::string text, file;
  bool ids = false, json = false, offsets = false, literal = false;
};

void tokenize(const Tokenize& flags) {
  const Tokenizer tokenizer = load_tokenizer(flags.model);
  const std::string text = flags.file.empty() ? flags.text : read_text(flags.file);
  const EncodeOptions options{flags.literal ? SpecialTokens::literal : SpecialTokens::parse};
  const auto spans = tokenizer.encode_with_offsets(text, options).value();
  Output out;
  if (flags.json) {
    auto all = nlohmann::json::array();
    for (const TokenSpan& span : spans) {
      nlohmann::json token{{"id", span.id}, {"piece", to_valid_utf8(tokenizer.token_text(span.id))}};
      if (flags.offsets) token["begin"] = span.begin, token["end"] = span.end;
      all.push_back(token);
    }
    return out.line(all.dump());
  }
  if (flags.ids && !flags.offsets) {
    std::string line;
    for (const TokenSpan& span : spans) line += (line.empty() ? "" : " ") + std::to_string(span.id);
    return out.line(line);
  }
  for (const TokenSpan& span : spans) {
    std::string line = std::to_string(span.id);
    if (flags.offsets) line += "\t" + std::to_string(span.begin) + "\t" + std::to_string(span.end);
    out.line(line + "\t" + to_valid_utf8(tokenizer.token_text(span.id)));
  }
}

struct Detokenize {
  ModelFlags model;
  std::vector<std::int32_t> ids;
  bool raw_bytes = false;
};

void detokenize(Detokenize& flags) {
  const Tokenizer tokenizer = load_tokenizer(flags.model);
  if (flags.ids.empty()) {
    std::istringstream in(read_text("-"));
    std::string word;
    while (in >> word) {
      try {
        std::size_t used = 0;
        flags.ids.push_back(std::stoi(word, &used));
        if (used != word.size()) throw std::invalid_argument(word);
      } catch (const std::logic_error&) {
        throw Error(Code::input, "detokenize: expected ids, got '" + to_valid_utf8(word) + "'");
      }
    }
  }
  const std::string text = tokenizer.decode(flags.ids).value();
  Output().write(flags.raw_bytes ? text : to_valid_utf8(text) + "\n");
}

}  // namespace

void add_tokenize(CLI::App& app, int&) {
  auto flags = std::make_shared<Tokenize>();
  CLI::App* command = app.add_subcommand("tokenize", "text to ids");
  add_model_flags(*command, flags->model);
  auto* text = command->add_option("text,-p,--prompt", flags->text, "the text");
  command->add_option("-f,--file", flags->file, "read it from a file; - is standard input")->excludes(text);
  command->add_flag("--ids", flags->ids, "ids alone, on one line");
  command->add_flag("--json", flags->json, "a JSON array");
  command->add_flag("--offsets", flags->offsets, "with the bytes that each token covers");
  command->add_flag("--no-special", flags->literal, "special tokens in the text are plain text");
  command->callback([flags] { tokenize(*flags); });
}

void add_detokenize(CLI::App& app, int&) {
  auto flags = std::make_shared<Detokenize>();
  CLI::App* command = app.add_subcommand("detokenize", "ids to text");
  add_model_flags(*command, flags->model);
  command->add_option("ids", flags->ids, "ids [from standard input]")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_flag("--raw-bytes", flags->raw_bytes, "the tokens' bytes as they are, no newline added");
  command->callback([flags] { detokenize(*flags); });
}

}  // namespace inkling::app
