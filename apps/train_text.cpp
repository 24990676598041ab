#include "apps/train_text.h"

#include <algorithm>
#include <utility>

#include "apps/input.h"
#include "apps/signals.h"
#include "model/train/token_data.h"

namespace inkling::app {
namespace {

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

}  // namespace

SplitText split(const Documents& documents, const std::filesystem::path& data) {
  const std::vector<std::string_view> texts = documents.views();
  SplitText parts;
  for (const std::string_view text : texts) parts.bytes += text.size();
  if (parts.bytes == 0) throw Error(Code::input, data.string() + ": expected text, got none");
  if (texts.size() == 1) {
    const auto [first, rest] = split_text(texts[0]);
    parts.training.push_back({first, documents.names[0]});
    parts.validation.push_back({rest, documents.names[0], first.size()});
    return parts;
  }
  const std::size_t for_training = split_documents(texts);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    (i < for_training ? parts.training : parts.validation).push_back({texts[i], documents.names[i]});
  }
  return parts;
}

void TextEncoder::write(const std::filesystem::path& path, std::span<const TextPart> parts, End end,
                        std::string_view source) {
  std::vector<std::int32_t> ids;
  std::vector<std::int64_t> ends;
  for (const TextPart& part : parts) {
    encode(part, ids);
    if (end == End::token && tokenizer_.eos_id()) ids.push_back(*tokenizer_.eos_id());
    ends.push_back(static_cast<std::int64_t>(ids.size()));
  }
  write_token_data(path, ids, ends, source).value();
}

// In pieces, where a text is longer than the tokenizer takes at once.
void TextEncoder::encode(const TextPart& part, std::vector<std::int32_t>& ids) {
  for (std::size_t at = 0, count = 0; at < part.text.size(); at += count) {
    check_interrupt();
    const std::string_view rest = part.text.substr(at);
    count = piece_of(rest, tokenizer_.max_input_bytes());
    const std::size_t begin = part.offset + at;
    const std::string where = begin == 0 ? std::string() : ": from byte " + std::to_string(begin);
    const auto piece = located(std::string(part.name) + where, [&] {
      return tokenizer_.encode(rest.substr(0, count), {SpecialTokens::literal}).value();
    });
    ids.insert(ids.end(), piece.begin(), piece.end());
    progress_.update(static_cast<double>(done_ += count) / static_cast<double>(total_));
  }
}

}  // namespace inkling::app
