// inkling detokenize: ids → text.
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

// Numbers with anything of ", [ ]" and white space between them, so that a JSON array will do.
std::vector<std::int32_t> parse_ids(std::string_view text) {
  constexpr std::string_view kBetween = ", []\t\r\n";
  std::vector<std::int32_t> ids;
  for (std::size_t at = 0; (at = text.find_first_not_of(kBetween, at)) != std::string_view::npos;) {
    const std::size_t end = std::min(text.find_first_of(kBetween, at), text.size());
    const std::string_view word = text.substr(at, end - at);
    if (!parse_number(word, ids.emplace_back())) {
      throw Error(Code::input,
                  "ids: expected whole numbers, got '" + to_valid_utf8(word.substr(0, 40)) + "'");
    }
    at = end;
  }
  return ids;
}

void detokenize(const DetokenizeOptions& o) {
  std::string text;
  for (const std::string& word : o.words) text += word + ' ';
  if (o.words.empty() || o.words.front() == "-") text = read_text("-");
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
  options.words("[ID..]", "ids, or a JSON array of them; none or -: standard input", o->words);
  options.flag("--raw-bytes", "the tokens' bytes as they are, even if no UTF-8", o->raw_bytes);
  add_tokenizer_options(options, o->model);
}

}  // namespace inkling::app
