// inkling detokenize: ids → text.
#include <algorithm>
#include <memory>

#include "apps/input.h"
#include "apps/model_options.h"
#include "apps/program.h"
#include "tokenizer/utf8.h"

namespace inkling::app {
namespace {

struct DetokenizeOptions {
  ModelOptions model;
  std::vector<std::string> words;
  bool raw_bytes = false;
};

std::string input_text(const DetokenizeOptions& o) {
  const bool dash = std::ranges::find(o.words, "-") != o.words.end();
  if (dash && o.words.size() > 1) throw Error(Code::usage, "expected ids or - (standard input), got both");
  if (dash || o.words.empty()) return read_text("-");
  std::string text;
  for (const std::string& word : o.words) text += word + ' ';
  return text;
}

void detokenize(const DetokenizeOptions& o) {
  const std::string text = input_text(o);
  const Tokenizer tokenizer = Tokenizer::load(tokenizer_path(o.model)).value();
  const std::string bytes = tokenizer.decode(parse_ids(text)).value();
  Console::write(o.raw_bytes ? bytes : to_valid_utf8(bytes));
  if (!o.raw_bytes && stdout_is_terminal()) Console::write("\n");
}

}  // namespace

void add_detokenize(Program& program) {
  auto o = std::make_shared<DetokenizeOptions>();
  Options& options =
      program.command("detokenize", "token ids to text", [o](const Console&) { detokenize(*o); });
  options.group("Ids and output", Options::Layers::command_line);
  options.words("[ID..]", "ids, or a JSON array of them; none or - alone: standard input", o->words);
  options.flag("--raw-bytes", "the tokens' bytes as they are, even if no UTF-8", o->raw_bytes);
  add_tokenizer_options(options, o->model);
}

}  // namespace inkling::app
