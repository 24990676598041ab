#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <system_error>
#include <utility>

#include "tokenizer/to_result.h"
#include "tokenizer/token_model.h"
#include "tokenizer/vocabulary_files.h"

namespace inkling {
namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  std::error_code failure;
  const auto size = fs::file_size(path, failure);
  if (failure) throw Error(Code::file, path.string() + ": cannot be read: " + failure.message());
  if (size > kMaxVocabularyBytes) {
    throw Error(Code::malformed, path.string() + ": size: expected at most " +
                                     std::to_string(kMaxVocabularyBytes) + " bytes, got " +
                                     std::to_string(size));
  }
  std::string content(static_cast<std::size_t>(size), '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(content.data(), static_cast<std::streamsize>(content.size()))) {
    throw Error(Code::file, path.string() + ": cannot be read");
  }
  return content;
}

constexpr std::array<std::pair<std::string_view, std::string_view>, 2> kPairs{
    {{"vocab.json", "merges.txt"}, {"encoder.json", "vocab.bpe"}}};

using Files = std::vector<fs::path>;  // one, or a vocabulary and its merges

Files files_with(const fs::path& path) {
  const std::string name = path.filename().string();
  for (const auto& [vocab, merges] : kPairs) {
    if (name == vocab || name == merges) return {path.parent_path() / vocab, path.parent_path() / merges};
  }
  return {path};
}

Files files_in(const fs::path& folder) {
  if (fs::exists(folder / "tokenizer.json")) return {folder / "tokenizer.json"};
  for (const auto& [vocab, merges] : kPairs) {
    if (fs::exists(folder / vocab) || fs::exists(folder / merges)) return {folder / vocab, folder / merges};
  }
  if (fs::exists(folder / "tokenizer.model")) return {folder / "tokenizer.model"};
  Files models;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".model") models.push_back(entry.path());
  }
  if (models.size() == 1) return models;
  if (models.empty() && fs::exists(folder / "meta.json")) return {folder / "meta.json"};
  throw Error(Code::file, folder.string() +
                              ": expected tokenizer.json, vocab.json + merges.txt, encoder.json + " +
                              "vocab.bpe, tokenizer.model, one *.model or meta.json, got " +
                              (models.empty() ? "none of them" : "several *.model"));
}

Files files_of(const fs::path& folder_or_file) {
  return fs::is_directory(folder_or_file) ? files_in(folder_or_file) : files_with(folder_or_file);
}

std::shared_ptr<const TokenModel> read_files(const Files& files) {
  const fs::path& path = files[0];
  const std::string content = read_file(path);
  if (files.size() == 2)
    return read_vocab_and_merges(content, path.string(), read_file(files[1]), files[1].string());
  if (path.extension() == ".model") return read_sentencepiece(content, path.string());
  if (path.filename() == "meta.json") return read_characters(content, path.string());
  if (path.extension() == ".json") return read_tokenizer_json(content, path.string());
  throw Error(Code::malformed, path.string() + ": name: expected *.json, *.model, merges.txt or vocab.bpe");
}

/// The border for what looks at files.
template <class Make>
auto with_files(const fs::path& folder_or_file, Make&& make) {
  return to_result([&] {
    try {
      return make(files_of(folder_or_file));
    } catch (const fs::filesystem_error& error) {
      throw Error(Code::file, folder_or_file.string() + ": cannot be read: " + error.code().message());
    }
  });
}

}  // namespace

Tokenizer::Tokenizer(std::shared_ptr<const TokenModel> model) : model_(std::move(model)) {}

Result<Tokenizer> Tokenizer::load(const fs::path& folder_or_file) {
  return with_files(folder_or_file, [](const Files& files) { return Tokenizer(read_files(files)); });
}

Result<Files> Tokenizer::files(const fs::path& folder_or_file) {
  return with_files(folder_or_file, [](const Files& files) { return files; });
}

std::vector<std::byte> Tokenizer::image() const {
  return model_->image();
}

Result<Tokenizer> Tokenizer::from_image(std::span<const std::byte> image, std::shared_ptr<const void> owner) {
  return to_result([&] { return Tokenizer(read_image(image, std::move(owner))); });
}

Result<Tokenizer> Tokenizer::from_tokenizer_json(std::string_view text, std::string_view name) {
  return to_result([&] { return Tokenizer(read_tokenizer_json(text, name)); });
}

Result<Tokenizer> Tokenizer::from_vocab_and_merges(std::string_view vocab, std::string_view vocab_name,
                                                   std::string_view merges, std::string_view merges_name) {
  return to_result([&] { return Tokenizer(read_vocab_and_merges(vocab, vocab_name, merges, merges_name)); });
}

Result<Tokenizer> Tokenizer::from_sentencepiece(std::string_view bytes, std::string_view name) {
  return to_result([&] { return Tokenizer(read_sentencepiece(bytes, name)); });
}

Result<Tokenizer> Tokenizer::from_characters(std::string_view text, std::string_view name) {
  return to_result([&] { return Tokenizer(read_characters(text, name)); });
}

namespace {
void require_fits(std::string_view text, const TokenModel& model) {
  require(text.size() <= model.max_input_bytes(), Code::input, [&] {
    return "encode: text: expected at most " + std::to_string(model.max_input_bytes()) + " bytes, got " +
           std::to_string(text.size());
  });
}
}  // namespace

Result<std::vector<std::int32_t>> Tokenizer::encode(std::string_view utf8, EncodeOptions options) const {
  return to_result([&] {
    require_fits(utf8, *model_);
    return model_->encode(utf8, options);
  });
}

Result<std::vector<TokenSpan>> Tokenizer::encode_with_offsets(std::string_view utf8,
                                                              EncodeOptions options) const {
  return to_result([&] {
    require_fits(utf8, *model_);
    return model_->encode_with_offsets(utf8, options);
  });
}

Result<std::string> Tokenizer::decode(std::span<const std::int32_t> ids) const {
  return to_result([&] {
    std::string text;
    bool at_start = true;
    for (const std::int32_t id : ids) {
      if (!model_->vocabulary().has(id)) throw model_->vocabulary().out_of_range(id, "decode");
      text += model_->surface(id, at_start);
    }
    return text;
  });
}

std::string_view Tokenizer::token_bytes(std::int32_t id) const {
  return model_->vocabulary().at(id).bytes;
}
std::string_view Tokenizer::token_text(std::int32_t id) const {
  return model_->vocabulary().at(id).text;
}
bool Tokenizer::is_special(std::int32_t id) const {
  return model_->vocabulary().at(id).special;
}
std::optional<std::int32_t> Tokenizer::id_of(std::string_view piece) const {
  return model_->vocabulary().id_of(piece);
}
std::int32_t Tokenizer::vocab_size() const noexcept {
  return model_->vocabulary().size();
}
std::optional<std::int32_t> Tokenizer::eos_id() const noexcept {
  return model_->eos_id();
}
std::optional<std::int32_t> Tokenizer::bos_id() const noexcept {
  return model_->bos_id();
}
std::size_t Tokenizer::max_input_bytes() const noexcept {
  return model_->max_input_bytes();
}
TokenizerKind Tokenizer::kind() const noexcept {
  return model_->kind();
}
std::string Tokenizer::description() const {
  return model_->description();
}

}  // namespace inkling
