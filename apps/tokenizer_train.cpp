// inkling tokenizer train: a vocabulary from text.
#include <algorithm>
#include <memory>

#include "apps/documents.h"
#include "apps/program.h"
#include "apps/signals.h"
#include "apps/vocabulary.h"
#include "tokenizer/tokenizer.h"

namespace inkling::app {
namespace {

struct TokenizerTrainOptions {
  VocabularyOptions vocabulary;
  bool sized = false;
  std::vector<std::string> inputs;
  std::filesystem::path output;
};

// An option that is out of range for the text is named as the command line has it.
std::vector<VocabularyFile> make(const Documents& documents, const VocabularyOptions& options,
                                 const Console& console) {
  Progress progress(console, "training");
  try {
    return train_vocabulary(documents.views(), options, [&](double share) {
      check_interrupt();
      progress.update(share);
    });
  } catch (const Error& error) {
    if (error.code() != Code::usage) throw;
    const std::string message = error.message();
    const std::size_t colon = std::min(message.find(':'), message.size());
    throw Error(Code::usage, "--" + flag_name(message.substr(0, colon)) + message.substr(colon));
  }
}

void train(const TokenizerTrainOptions& o, const Console& console) {
  if (o.inputs.empty())
    throw Error(Code::usage, "--input: expected a text file, JSON lines or a folder, got none");
  if (o.output.empty()) throw Error(Code::usage, "--output: expected a folder, got none");
  if (o.sized && o.vocabulary.type == VocabularyType::characters) {
    throw Error(Code::usage,
                "--vocab-size: expected another --type beside it; char has every character of the text");
  }
  const std::vector<std::filesystem::path> paths(o.inputs.begin(), o.inputs.end());
  const Documents documents = read_documents(paths);
  const double start = now();
  const std::vector<VocabularyFile> files = make(documents, o.vocabulary, console);
  write_vocabulary(o.output, files);
  const Tokenizer tokenizer = Tokenizer::load(o.output / files.front().name).value();
  console.note("inkling: " + o.output.string() + ": " + tokenizer.description() +
               format(", %.1f s", now() - start));
  if (o.sized && tokenizer.vocab_size() < o.vocabulary.vocab_size) {
    console.note("inkling: warning: the text has no more than " + std::to_string(tokenizer.vocab_size()) +
                 " tokens to give, fewer than --vocab-size " + std::to_string(o.vocabulary.vocab_size));
  }
}

Setter ratio(double& target, double least, double most) {
  return [&target, least, most](const std::string& value) {
    double parsed = 0;
    if (!parse_number(value, parsed) || !(parsed >= least && parsed <= most)) {
      refuse("a number from " + format("%g", least) + " to " + format("%g", most), value);
    }
    target = parsed;
  };
}

}  // namespace

void add_tokenizer(Program& program) {
  Options& parent = program.command("tokenizer", "train a vocabulary (tokenizer train)", [](const Console&) {
    throw Error(Code::usage, "expected the subcommand train, got none (see inkling tokenizer --help)");
  });
  auto o = std::make_shared<TokenizerTrainOptions>();
  Options& options = program.command(
      "train", "make a vocabulary from text", [o](const Console& console) { train(*o, console); }, &parent);
  options.group("Text and vocabulary", Options::Layers::command_line);
  options.add("--type", "NAME", "bpe (GPT-2's), unigram or sp-bpe (SentencePiece), or char [bpe]",
              vocabulary_type(o->vocabulary.type));
  options.add("--vocab-size", "N", "tokens in all [4096]", [o](const std::string& value) {
    whole<std::int64_t>(o->vocabulary.vocab_size, 1, 1 << 22)(value);
    o->sized = true;
  });
  options.add("--input", "FILE", "text, JSON lines {\"text\"}, or a folder of them; repeatable",
              append(o->inputs));
  options.words("[FILE]...", "more of them", o->inputs);
  options.add("--output", "FOLDER", "where to write the vocabulary's files", path(o->output));
  options.add("--min-frequency", "N", "bpe: join no pair that is rarer [2]",
              whole<std::int64_t>(o->vocabulary.min_frequency, 1, 1 << 30));
  options.add("--character-coverage", "X", "SentencePiece: characters beyond it are bytes [1]",
              ratio(o->vocabulary.character_coverage, 0.98, 1));
}

}  // namespace inkling::app
