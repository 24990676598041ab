// inkling tokenize: text → ids.
#include <memory>

#include "apps/input.h"
#include "apps/json_text.h"
#include "apps/model_options.h"
#include "apps/program.h"
#include "tokenizer/utf8.h"

namespace inkling::app {
namespace {

struct TokenizeOptions {
  ModelOptions model;
  std::vector<std::string> words, prompt;
  std::filesystem::path file;
  bool ids = false, json = false, offsets = false, no_special = false;
};

struct Input {
  std::string name, text;  // its name in errors
};

Input read_input(const TokenizeOptions& o) {
  const std::size_t sources = o.words.size() + o.prompt.size() + (o.file.empty() ? 0 : 1);
  if (sources != 1) {
    throw Error(Code::usage, "expected one of TEXT, --prompt TEXT, --file FILE and - (standard input), got " +
                                 std::to_string(sources));
  }
  if (!o.file.empty()) return {input_name(o.file), read_text(o.file)};
  const std::string& text = o.words.empty() ? o.prompt.front() : o.words.front();
  if (text == "-") return {input_name("-"), read_text("-")};
  return {o.words.empty() ? "--prompt" : "TEXT", text};
}

std::string as_json(const TokenizeOptions& o, const Tokenizer& tokenizer,
                    const std::vector<TokenSpan>& spans) {
  std::string out = "[";
  for (const TokenSpan& span : spans) {
    if (out.size() > 1) out += o.ids && !o.offsets ? "," : ",\n";
    if (o.ids && !o.offsets) {
      out += std::to_string(span.id);
      continue;
    }
    out += "{\"id\":" + std::to_string(span.id);
    if (!o.ids) out += ",\"piece\":" + json_string(to_valid_utf8(tokenizer.token_text(span.id)));
    if (o.offsets) out += ",\"begin\":" + std::to_string(span.begin) + ",\"end\":" + std::to_string(span.end);
    out += '}';
  }
  return out + "]\n";
}

std::string as_text(const TokenizeOptions& o, const Tokenizer& tokenizer,
                    const std::vector<TokenSpan>& spans) {
  std::string out;
  for (const TokenSpan& span : spans) {
    if (o.ids && !o.offsets) {
      out += (out.empty() ? "" : " ") + std::to_string(span.id);
      continue;
    }
    out += std::to_string(span.id);
    if (o.offsets) out += '\t' + std::to_string(span.begin) + '\t' + std::to_string(span.end);
    if (!o.ids) out += '\t' + to_valid_utf8(tokenizer.token_text(span.id));
    out += '\n';
  }
  return o.ids && !o.offsets ? out + '\n' : out;
}

void tokenize(const TokenizeOptions& o) {
  const Input input = read_input(o);
  const Tokenizer tokenizer = Tokenizer::load(tokenizer_path(o.model)).value();
  const EncodeOptions encode{o.no_special ? SpecialTokens::literal : SpecialTokens::parse};
  const auto spans =
      located(input.name, [&] { return tokenizer.encode_with_offsets(input.text, encode).value(); });
  Console::write(o.json ? as_json(o, tokenizer, spans) : as_text(o, tokenizer, spans));
}

}  // namespace

void add_tokenize(Program& program) {
  auto o = std::make_shared<TokenizeOptions>();
  Options& options = program.command("tokenize", "text to token ids", [o](const Console&) { tokenize(*o); });
  options.group("Text and output", Options::Layers::command_line);
  options.words("[TEXT]", "the text; - is standard input", o->words);
  options.add("-p,--prompt", "TEXT", "the same", append(o->prompt));
  options.add("-f,--file", "FILE", "read it from a file", input_path(o->file));
  options.flag("--ids", "ids alone, on one line", o->ids);
  options.flag("--json", "a JSON array", o->json);
  options.flag("--offsets", "with the bytes [begin, end) of the text that each token covers", o->offsets);
  options.flag("--no-special", "special tokens written in the text are plain text", o->no_special);
  add_tokenizer_options(options, o->model);
}

}  // namespace inkling::app
