#include "apps/train_data.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "apps/documents.h"
#include "apps/input.h"
#include "apps/signals.h"
#include "apps/vocabulary.h"
#include "weights/atomic_file.h"
#include "weights/sha256.h"

namespace inkling::app {
namespace fs = std::filesystem;
namespace {

constexpr const char *kTrainFile = "train.tokens", *kValidationFile = "val.tokens";
constexpr std::int64_t kNanoGptVocab = 50304;  // GPT-2's, padded
constexpr const char* kTokenizerFiles[] = {"tokenizer.json", "vocab.json", "merges.txt",     "encoder.json",
                                           "vocab.bpe",      "meta.json",  "tokenizer.model"};

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// "bpe:4096" as options; none for a path.
std::optional<VocabularyOptions> vocabulary_of(const std::string& spec) {
  const std::size_t colon = std::min(spec.find(':'), spec.size());
  VocabularyOptions options;
  try {
    vocabulary_type(options.type)(spec.substr(0, colon));
  } catch (const Error&) {
    return std::nullopt;
  }
  const bool characters = options.type == VocabularyType::characters;
  if (characters != (colon == spec.size()) ||
      (!characters && !parse_number(std::string_view(spec).substr(colon + 1), options.vocab_size))) {
    throw Error(Code::usage,
                "--tokenizer: expected char, bpe:N, unigram:N, sp-bpe:N or a path, got '" + spec + "'");
  }
  return options;
}

// The files of a tokenizer, side by side in the out folder.
void take_tokenizer(const fs::path& from, const fs::path& out) {
  std::error_code ignored;
  if (!fs::is_directory(from, ignored)) {
    const bool model = from.extension() == ".model";
    write_file(out / (model ? fs::path("tokenizer.model") : from.filename()), read_text(from)).value();
    return;
  }
  bool any = false;
  for (const char* name : kTokenizerFiles) {
    if (!is_there(from / name)) continue;
    write_file(out / name, read_text(from / name)).value();
    any = true;
  }
  if (!any) throw Error(Code::file, from.string() + ": expected a tokenizer's files, got none");
}

std::string hash_of(const Documents& documents, const fs::path& out) {
  Sha256 hash;
  hash.update(std::as_bytes(std::span(documents.sha256)));
  for (const char* name : kTokenizerFiles) {
    if (!is_there(out / name)) continue;
    const std::string content = read_text(out / name);
    hash.update(std::as_bytes(std::span(content)));
  }
  return hash.finish();
}

bool begins_character(char c) {
  return (static_cast<unsigned char>(c) & 0xc0u) != 0x80u;
}

// Nine tenths of the characters, and the rest.
std::pair<std::string_view, std::string_view> split_text(std::string_view text) {
  const auto count = std::ranges::count_if(text, begins_character);
  auto left = static_cast<std::int64_t>(static_cast<double>(count) * 0.9);
  std::size_t at = 0;
  while (at < text.size() && !(begins_character(text[at]) && left-- == 0)) ++at;
  return {text.substr(0, at), text.substr(at)};
}

// How many of the documents are for training: nine tenths of the bytes, and not all.
std::size_t split_documents(const std::vector<std::string_view>& texts) {
  std::size_t total = 0, before = 0;
  for (const std::string_view text : texts) total += text.size();
  for (std::size_t i = 0; i + 1 < texts.size(); ++i) {
    before += texts[i].size();
    if (static_cast<double>(before) >= 0.9 * static_cast<double>(total)) return i + 1;
  }
  return texts.size() - 1;
}

// Up to `most` bytes: after a line end between two characters that are no white space, since there no
// tokenizer joins what it sees; failing that, between two characters.
std::size_t piece_of(std::string_view text, std::size_t most) {
  if (text.size() <= most) return text.size();
  const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  for (std::size_t at = most - 1; at > 0; --at) {
    if (text[at] == '\n' && !is_space(text[at - 1]) && !is_space(text[at + 1])) return at + 1;
  }
  std::size_t count = most;
  while (count > 1 && !begins_character(text[count])) --count;
  return count;
}

class Encoder {
 public:
  Encoder(const Tokenizer& tokenizer, bool with_end, const Console& console, std::size_t total)
      : tokenizer_(tokenizer), with_end_(with_end), progress_(console, "tokenising"), total_(total) {}

  void write(const fs::path& path, std::span<const std::string_view> texts, const std::string& source) {
    std::vector<std::int32_t> ids;
    std::vector<std::int64_t> ends;
    for (const std::string_view text : texts) {
      encode(text, ids);
      if (with_end_ && tokenizer_.eos_id()) ids.push_back(*tokenizer_.eos_id());
      ends.push_back(static_cast<std::int64_t>(ids.size()));
    }
    write_token_data(path, ids, ends, source).value();
  }

 private:
  // In pieces, where a text is longer than the tokenizer takes at once.
  void encode(std::string_view text, std::vector<std::int32_t>& ids) {
    while (!text.empty()) {
      check_interrupt();
      const std::size_t count = piece_of(text, tokenizer_.max_input_bytes());
      const auto piece = tokenizer_.encode(text.substr(0, count), {SpecialTokens::literal}).value();
      ids.insert(ids.end(), piece.begin(), piece.end());
      text.remove_prefix(count);
      progress_.update(static_cast<double>(done_ += count) / static_cast<double>(total_));
    }
  }

  const Tokenizer& tokenizer_;
  bool with_end_;
  Progress progress_;
  std::size_t total_, done_ = 0;
};

TrainData open_both(const fs::path& folder, const char* train, const char* validation,
                    Result<TokenData> (*open)(const fs::path&)) {
  return {open(folder / train).value(), open(folder / validation).value(), {}, 0};
}

// Damaged ids are made anew, but not those of a run that goes on: it is not known that they would be the
// same.
bool up_to_date(const fs::path& path, const std::string& hash, const TrainSource& source) {
  if (!is_there(path)) return false;
  const Result<TokenData> data = TokenData::open(path);
  if (!data && (source.has_vocabulary || data.error().code() != Code::malformed)) throw data.error();
  return data && data->source() == hash;
}

// Of the training part alone, but for characters, of which each must have an id.
void make_vocabulary(const TrainSource& source, std::span<const std::string_view> training,
                     std::span<const std::string_view> all, const Console& console) {
  const auto vocabulary = vocabulary_of(source.tokenizer.empty() ? "char" : source.tokenizer);
  if (!vocabulary) return take_tokenizer(source.tokenizer, source.out);
  Progress progress(console, "vocabulary");
  const bool characters = vocabulary->type == VocabularyType::characters;
  write_vocabulary(source.out, train_vocabulary(characters ? all : training, *vocabulary, [&](double share) {
                     check_interrupt();
                     progress.update(share);
                   }));
}

TrainData from_text(const TrainSource& source, const Console& console) {
  const Documents documents = read_documents(std::span(&source.data, 1));
  std::vector<std::string_view> texts = documents.views();
  const bool many = texts.size() > 1;
  std::size_t bytes = 0;
  for (const std::string_view text : texts) bytes += text.size();
  if (bytes == 0) throw Error(Code::input, source.data.string() + ": expected text, got none");
  std::size_t for_training = 1;
  if (many) {
    for_training = split_documents(texts);
  } else {
    const auto [first, rest] = split_text(texts[0]);
    texts = {first, rest};
  }
  const std::span training = std::span(texts).first(for_training),
                  validation = std::span(texts).subspan(for_training);
  if (!source.has_vocabulary) make_vocabulary(source, training, texts, console);
  const Tokenizer tokenizer = Tokenizer::load(source.out).value();
  const std::string hash = hash_of(documents, source.out);
  const fs::path train_path = source.out / kTrainFile, validation_path = source.out / kValidationFile;
  if (!up_to_date(train_path, hash, source) || !up_to_date(validation_path, hash, source)) {
    if (source.has_vocabulary && is_there(train_path)) {
      throw Error(Code::input, source.data.string() + ": expected the text that the run in " +
                                   source.out.string() + " began with, got another");
    }
    Encoder encoder(tokenizer, many, console, bytes);
    encoder.write(train_path, training, hash);
    encoder.write(validation_path, validation, hash);
  }
  TrainData data = open_both(source.out, kTrainFile, kValidationFile, TokenData::open);
  data.vocab_size = tokenizer.vocab_size();
  data.tokenizer = tokenizer;
  return data;
}

TrainData from_nano_gpt(const TrainSource& source) {
  TrainData data = open_both(source.data, "train.bin", "val.bin", TokenData::open_u16);
  if (!source.has_vocabulary) {
    if (!source.tokenizer.empty()) {
      take_tokenizer(source.tokenizer, source.out);
    } else if (is_there(source.data / "meta.json")) {
      take_tokenizer(source.data, source.out);
    }
  }
  if (auto tokenizer = Tokenizer::load(source.out)) data.tokenizer = *tokenizer;
  data.vocab_size = data.tokenizer ? data.tokenizer->vocab_size() : kNanoGptVocab;
  return data;
}

}  // namespace

TrainData prepare_data(const TrainSource& source, const Console& console) {
  return is_there(source.data / "train.bin") ? from_nano_gpt(source) : from_text(source, console);
}

}  // namespace inkling::app
