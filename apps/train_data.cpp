#include "apps/train_data.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "apps/documents.h"
#include "apps/input.h"
#include "apps/signals.h"
#include "apps/train_text.h"
#include "apps/vocabulary.h"
#include "weights/atomic_file.h"
#include "weights/sha256.h"

namespace inkling::app {
namespace fs = std::filesystem;
namespace {

constexpr const char *kTrainFile = "train.tokens", *kValidationFile = "val.tokens";
constexpr const char *kTrainBinary = "train.bin", *kValidationBinary = "val.bin";
constexpr const char *kText = "text", *kIds = "nanogpt";  // kinds of data, in TrainData::source
constexpr std::int32_t kGpt2EndOfText = 50256;

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

// The files of a tokenizer, by the names that they have in a model's folder.
std::vector<VocabularyFile> read_tokenizer(const fs::path& folder_or_file) {
  std::vector<VocabularyFile> files;
  for (const fs::path& path : Tokenizer::files(folder_or_file).value()) {
    const bool model = path.extension() == ".model";
    files.push_back({model ? "tokenizer.model" : path.filename().string(), read_text(path)});
  }
  return files;
}

// Of the training part alone, but for characters, of which each must have an id.
std::vector<VocabularyFile> make_vocabulary(const std::string& spec,
                                            std::span<const std::string_view> training,
                                            std::span<const std::string_view> all, const Console& console) {
  const auto options = vocabulary_of(spec);
  if (!options) return read_tokenizer(spec);
  Progress progress(console, "vocabulary");
  const bool characters = options->type == VocabularyType::characters;
  try {
    return train_vocabulary(characters ? all : training, *options, [&](double share) {
      check_interrupt();
      progress.update(share);
    });
  } catch (const Error& error) {
    if (error.code() != Code::usage) throw;
    throw Error(Code::usage, "--tokenizer " + spec + ": " + error.message());
  }
}

// Other files of a tokenizer could be taken in place of these, by this run and by whoever opens the model.
void place_tokenizer(const std::vector<VocabularyFile>& files, const fs::path& out) {
  if (const auto there = Tokenizer::files(out)) {
    const auto same = [](const fs::path& path, const VocabularyFile& file) {
      return path.filename() == file.name;
    };
    if (!std::ranges::equal(*there, files, same)) {
      throw Error(Code::usage, "--out-dir: expected a folder without another tokenizer, got " + out.string() +
                                   " with " + there->front().filename().string());
    }
  }
  if (!files.empty()) write_vocabulary(out, files);
}

void add_tokenizer(const fs::path& folder_or_file, Sha256& hash) {
  for (const fs::path& path : Tokenizer::files(folder_or_file).value()) {
    const std::string content = read_text(path);
    hash.update(std::as_bytes(std::span(content)));
  }
}

void require_same(const TrainSource& source, const std::string& got) {
  if (source.begin != Begin::resumed || got == source.began_with) return;
  throw Error(Code::input, source.data.string() + ": expected what the run in " + source.out.string() +
                               " began with, " + source.began_with +
                               " (kind, SHA-256 of data and vocabulary)" + ", got " + got);
}

// Shows every id once, before the first iteration: one outside the vocabulary would end the run in the
// middle.
class IdCheck {
 public:
  IdCheck(std::int64_t vocab_size, std::int64_t total, const Console& console)
      : vocab_size_(vocab_size), total_(total), progress_(console, "reading ids") {}

  /// Calls visit(bytes) with the ids as they lie in the file, piece by piece.
  template <class Visit>
  void read(const fs::path& path, const TokenData& data, const Visit& visit) {
    constexpr std::int64_t kPiece = 1 << 20;
    for (std::int64_t begin = 0; begin < data.size(); begin += kPiece) {
      check_interrupt();
      const std::int64_t end = std::min(begin + kPiece, data.size());
      if (const auto at = data.first_outside(begin, end, vocab_size_)) {
        throw Error(Code::malformed, path.string() + ": id " + std::to_string(*at) + ": expected 0 to " +
                                         std::to_string(vocab_size_ - 1) + ", got " +
                                         std::to_string(data.id(*at)));
      }
      visit(data.bytes(begin, end));
      progress_.update(static_cast<double>(done_ += end - begin) / static_cast<double>(total_));
    }
  }

 private:
  std::int64_t vocab_size_, total_, done_ = 0;
  Progress progress_;
};

// Damaged ids are made anew, but not those of a run that goes on: it is not known that they would be the
// same.
bool up_to_date(const fs::path& path, const std::string& hash, Begin begin) {
  if (!is_there(path)) return false;
  const Result<TokenData> data = TokenData::open(path);
  if (!data && (begin == Begin::resumed || data.error().code() != Code::malformed)) throw data.error();
  return data && data->source() == hash;
}

// The vocabulary and the ids of a text, in the out folder. Returns what they were made from.
std::string make_from_text(const TrainSource& source, const Console& console) {
  const Documents documents = read_documents(std::span(&source.data, 1));
  const SplitText parts = split(documents, source.data);
  const std::vector<std::string_view> all = documents.views();
  if (source.begin == Begin::fresh) {
    std::vector<std::string_view> training;
    for (const TextPart& part : parts.training) training.push_back(part.text);
    place_tokenizer(
        make_vocabulary(source.tokenizer.empty() ? "char" : source.tokenizer, training, all, console),
        source.out);
  }
  const Tokenizer tokenizer = Tokenizer::load(source.out).value();
  Sha256 sum;
  sum.update(std::as_bytes(std::span(documents.sha256)));
  add_tokenizer(source.out, sum);
  const std::string hash = sum.finish();
  const std::string made_from = std::string(kText) + ' ' + hash;
  require_same(source, made_from);
  const fs::path train = source.out / kTrainFile, validation = source.out / kValidationFile;
  if (!up_to_date(train, hash, source.begin) || !up_to_date(validation, hash, source.begin)) {
    const auto end = all.size() > 1 ? TextEncoder::End::token : TextEncoder::End::none;
    TextEncoder encoder(tokenizer, console, parts.bytes);
    encoder.write(train, parts.training, end, hash);
    encoder.write(validation, parts.validation, end, hash);
  }
  return made_from;
}

TrainData from_text(const TrainSource& source, const Console& console) {
  TrainData data;
  if (source.begin != Begin::follower) data.source = make_from_text(source, console);
  data.tokenizer = Tokenizer::load(source.out).value();
  data.vocab_size = data.tokenizer->vocab_size();
  const fs::path train = source.out / kTrainFile, validation = source.out / kValidationFile;
  data.train = TokenData::open(train).value();
  data.validation = TokenData::open(validation).value();
  if (source.begin == Begin::follower) return data;
  IdCheck check(data.vocab_size, data.train.size() + data.validation.size(), console);
  check.read(train, data.train, [](auto) {});
  check.read(validation, data.validation, [](auto) {});
  return data;
}

// Where the tokenizer of nanoGPT's ids lies, if they have one.
std::optional<fs::path> tokenizer_of_ids(const TrainSource& source) {
  if (source.begin != Begin::fresh) {
    return Tokenizer::files(source.out) ? std::optional(source.out) : std::nullopt;
  }
  if (vocabulary_of(source.tokenizer)) {
    throw Error(Code::usage, "--tokenizer: expected the path of one beside nanoGPT's ids, got " +
                                 source.tokenizer + ", which is made from text");
  }
  if (!source.tokenizer.empty()) return source.tokenizer;
  if (is_there(source.data / "meta.json")) return source.data / "meta.json";
  const fs::path pickle = source.data / "meta.pkl";
  if (is_there(pickle)) {
    throw Error(Code::file,
                (source.data / "meta.json").string() + ": expected it in place of " + pickle.string() +
                    ", a program that Python would run, got none; python3 -c \"import json, pickle; "
                    "json.dump(pickle.load(open('" +
                    pickle.string() + "', 'rb')), open('" + (source.data / "meta.json").string() +
                    "', 'w'))\" writes it");
  }
  return std::nullopt;
}

std::optional<std::int32_t> end_of_document(const TrainSource& source, const TrainData& data) {
  if (source.packing == Packing::blocks) return std::nullopt;
  if (data.tokenizer && data.tokenizer->eos_id()) return data.tokenizer->eos_id();
  if (!data.tokenizer && data.vocab_size > kGpt2EndOfText) return kGpt2EndOfText;
  throw Error(
      Code::usage,
      "--packed-documents: expected a vocabulary with an end of text, after which nanoGPT's ids are split "
      "into documents, got " +
          (data.tokenizer ? data.tokenizer->description() : std::to_string(data.vocab_size) + " ids"));
}

TrainData from_nano_gpt(const TrainSource& source, const Console& console) {
  const std::optional<fs::path> tokenizer = tokenizer_of_ids(source);
  TrainData data;
  if (tokenizer) data.tokenizer = Tokenizer::load(*tokenizer).value();
  data.vocab_size = data.tokenizer ? data.tokenizer->vocab_size() : source.vocab_size;
  const fs::path train = source.data / kTrainBinary, validation = source.data / kValidationBinary;
  const std::optional<std::int32_t> end = end_of_document(source, data);
  data.train = TokenData::open_u16(train, end).value();
  data.validation = TokenData::open_u16(validation, end).value();
  if (source.begin == Begin::follower) return data;
  IdCheck check(data.vocab_size, data.train.size() + data.validation.size(), console);
  Sha256 hash;
  const auto add = [&](std::span<const std::byte> ids) { hash.update(ids); };
  check.read(train, data.train, add);
  const std::string between = std::to_string(data.train.size()) + ':';
  hash.update(std::as_bytes(std::span(between)));
  check.read(validation, data.validation, add);
  if (tokenizer) add_tokenizer(*tokenizer, hash);
  data.source = std::string(kIds) + ' ' + hash.finish();
  require_same(source, data.source);
  if (source.begin == Begin::fresh) {
    place_tokenizer(tokenizer ? read_tokenizer(*tokenizer) : std::vector<VocabularyFile>(), source.out);
  }
  if (!tokenizer) {
    console.note("inkling: " + source.data.string() + " has no tokenizer: ids are taken as " +
                 std::to_string(data.vocab_size) + " tokens, no sample is drawn, and " + source.out.string() +
                 " is a model for ids alone; --tokenizer PATH brings one");
  }
  return data;
}

}  // namespace

bool has_nano_gpt_ids(const fs::path& data) {
  return is_there(data / kTrainBinary);
}

TrainData prepare_data(const TrainSource& source, const Console& console) {
  const bool ids = has_nano_gpt_ids(source.data);
  const std::string kind = ids ? kIds : kText;
  if (!source.began_with.starts_with(kind)) require_same(source, kind);  // before all is read
  return ids ? from_nano_gpt(source, console) : from_text(source, console);
}

}  // namespace inkling::app
