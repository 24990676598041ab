#include "tokenizer/byte_level_bpe.h"

#include <utility>

#include "engine/base/shown.h"
#include "tokenizer/byte_alphabet.h"
#include "tokenizer/utf8.h"

namespace inkling {
namespace {

std::vector<Token> with_bytes(ByteLevelSpec& spec) {
  for (const AddedTokens::Entry& entry : spec.added) {
    Token& token = spec.tokens[static_cast<std::size_t>(entry.id)];
    token.bytes = entry.text;  // added tokens are text as it is, not in the byte alphabet
    token.special = entry.special;
  }
  for (Token& token : spec.tokens) {
    if (!token.bytes.empty()) continue;
    auto bytes = from_byte_alphabet(token.text);
    if (!bytes || bytes->empty() || bytes->size() > ByteLevelBpe::kMaxTokenBytes) {
      throw Error(Code::malformed, spec.file + ": vocab: " + in_quotes(token.text) + ": expected 1.." +
                                       std::to_string(ByteLevelBpe::kMaxTokenBytes) +
                                       " characters of the byte alphabet");
    }
    token.bytes = *std::move(bytes);
  }
  return std::move(spec.tokens);
}

}  // namespace

ByteLevelBpe::ByteLevelBpe(ByteLevelSpec spec)
    : TokenModel(Vocabulary(with_bytes(spec), spec.file)),
      add_prefix_space_(spec.add_prefix_space),
      ignore_merges_(spec.ignore_merges),
      added_(spec.added),
      merges_(resolve(spec)) {
  if (const auto twice = merges_.duplicate()) {
    throw Error(Code::malformed, spec.merges_file + ": merges[" + std::to_string(*twice) +
                                     "]: expected a new pair, got one that ranks before");
  }
  std::vector<std::int32_t> byte_ids(256);
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const auto piece = to_byte_alphabet(std::string(1, static_cast<char>(byte)));
    const auto id = vocabulary().id_of(piece);
    if (!id) {
      throw Error(Code::malformed,
                  spec.file + ": vocab: expected a token for each of the 256 bytes, got none for \"" + piece +
                      "\" (byte " + std::to_string(byte) + ")");
    }
    byte_ids[byte] = *id;
  }
  byte_ids_ = FlatArray(std::move(byte_ids));
  index_words(spec.file);
}

std::vector<MergeRule> ByteLevelBpe::resolve(const ByteLevelSpec& spec) const {
  std::vector<MergeRule> rules;
  rules.reserve(spec.merges.size());
  std::string joined;
  for (std::size_t i = 0; i < spec.merges.size(); ++i) {
    const auto& [left, right] = spec.merges[i];
    const auto id = [&](std::string_view piece) {
      if (const auto found = vocabulary().id_of(piece)) return *found;
      throw Error(Code::malformed, spec.merges_file + ": merges[" + std::to_string(i) +
                                       "]: expected tokens of the vocabulary, got " + in_quotes(piece));
    };
    joined.assign(left).append(right);
    rules.push_back({id(left), id(right), id(joined)});
  }
  return rules;
}

// Added tokens are no words: they were cut out before.
void ByteLevelBpe::index_words(const std::string& file) {
  words_ = StringIndex(static_cast<std::size_t>(vocabulary().size()));
  known_ = std::vector<std::atomic<Merges>>(static_cast<std::size_t>(vocabulary().size()));
  std::vector<bool> added(static_cast<std::size_t>(vocabulary().size()));
  added_.for_each_id([&](std::int32_t id) { added[static_cast<std::size_t>(id)] = true; });
  for (std::int32_t id = 0; id < vocabulary().size(); ++id) {
    if (added[static_cast<std::size_t>(id)]) continue;
    if (!words_.insert(id, vocabulary().bytes())) {
      throw Error(Code::malformed, file + ": vocab: expected each token's bytes once, got those of " +
                                       in_quotes(vocabulary()[id].text) + " twice");
    }
  }
}

std::string ByteLevelBpe::description() const {
  std::string text = "byte-level BPE, " + std::to_string(vocabulary().size()) + " tokens (" +
                     std::to_string(added_.size()) + " added), " + std::to_string(merges_.size()) + " merges";
  if (add_prefix_space_) text += ", prefix space";
  return text;
}

template <class OnStretch, class OnToken>
void ByteLevelBpe::cut(std::string_view text, EncodeOptions options, OnStretch&& on_stretch,
                       OnToken&& on_token) const {
  for (std::size_t at = 0; at < text.size();) {
    const TokenSpan token = added_.find(text, at, options.special);
    if (token.begin > at) on_stretch(text.substr(at, token.begin - at), at);
    if (token.id >= 0) on_token(token);
    at = token.end;
  }
}

std::vector<std::int32_t> ByteLevelBpe::encode(std::string_view text, EncodeOptions options) const {
  std::vector<std::int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  cut(
      text, options, [&](std::string_view stretch, std::size_t) { encode_stretch(stretch, ids); },
      [&](const TokenSpan& token) { ids.push_back(token.id); });
  return ids;
}

// Tokens of a stretch cover it without gaps, so their lengths give the offsets; the added space has no place
// in the text.
std::vector<TokenSpan> ByteLevelBpe::encode_with_offsets(std::string_view text, EncodeOptions options) const {
  std::vector<TokenSpan> spans;
  std::vector<std::int32_t> ids;
  cut(
      text, options,
      [&](std::string_view stretch, std::size_t begin) {
        ids.clear();
        encode_stretch(stretch, ids);
        std::size_t at = begin;
        std::size_t borrowed = wants_prefix(stretch) ? 1 : 0;
        for (const std::int32_t id : ids) {
          const std::size_t end = at + vocabulary()[id].bytes.size() - borrowed;
          borrowed = 0;
          spans.push_back({id, at, end});
          at = end;
        }
      },
      [&](const TokenSpan& token) { spans.push_back(token); });
  return spans;
}

bool ByteLevelBpe::wants_prefix(std::string_view stretch) const noexcept {
  return add_prefix_space_ && !stretch.starts_with(' ');
}

void ByteLevelBpe::encode_stretch(std::string_view stretch, std::vector<std::int32_t>& ids) const {
  if (wants_prefix(stretch)) {
    encode_bytes(' ' + std::string(stretch), ids);
  } else {
    encode_bytes(stretch, ids);
  }
}

// Valid UTF-8 goes to the pre-tokeniser; a run of bytes that are not is one word.
void ByteLevelBpe::encode_bytes(std::string_view text, std::vector<std::int32_t>& ids) const {
  while (!text.empty()) {
    const std::size_t good = valid_utf8_prefix(text);
    Pretokenizer::Words words(pretokenizer_, text.substr(0, good));
    for (auto word = words.next(); !word.empty(); word = words.next()) encode_word(word, ids);
    text.remove_prefix(good);
    std::size_t bad = 0;
    while (bad < text.size() && valid_utf8_prefix(text.substr(bad, 4)) == 0) ++bad;
    if (bad > 0) encode_word(text.substr(0, bad), ids);
    text.remove_prefix(bad);
  }
}

void ByteLevelBpe::encode_word(std::string_view word, std::vector<std::int32_t>& ids) const {
  const std::int32_t id = words_.find(word, vocabulary().bytes());
  if (id < 0 || !is_word(word, id, ids)) merge_word(word, ids);
}

// Whether `word`, the bytes of token `id`, is that token; then adds it to `ids`. A token whose bytes merge
// into something else (it can be in a vocabulary, if in none that training made) must not short-cut the
// merges. Merging tells, once per token: of a vocabulary few are ever asked for, and asking for all of them
// would be a quarter of the time that loading takes.
bool ByteLevelBpe::is_word(std::string_view word, std::int32_t id, std::vector<std::int32_t>& ids) const {
  std::atomic<Merges>& known = known_[static_cast<std::size_t>(id)];
  Merges merges = ignore_merges_ ? Merges::to_token : known.load(std::memory_order_relaxed);
  if (merges == Merges::unknown) {
    const std::size_t begin = ids.size();
    merges = merge_word(word, ids) == 1 && ids[begin] == id ? Merges::to_token : Merges::to_others;
    ids.resize(begin);
    known.store(merges, std::memory_order_relaxed);  // whoever comes first, all find the same
  }
  if (merges == Merges::to_token) ids.push_back(id);
  return merges == Merges::to_token;
}

std::size_t ByteLevelBpe::merge_word(std::string_view word, std::vector<std::int32_t>& ids) const {
  const std::size_t begin = ids.size();
  for (const char c : word) ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
  const std::size_t length = merges_.apply(std::span(ids).subspan(begin));
  ids.resize(begin + length);
  return length;
}

}  // namespace inkling
