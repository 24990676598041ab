#include "tokenizer/vocabulary_files.h"

#include <algorithm>
#include <initializer_list>

#include "engine/base/shown.h"
#include "tokenizer/byte_level_bpe.h"
#include "tokenizer/json_field.h"
#include "tokenizer/utf8.h"

namespace inkling {
namespace {

constexpr std::string_view kEndOfText = "<|endoftext|>";

// n tokens have ids in 0…n−1, each once, so there are no holes: rows of the embedding that no token stands
// for.
void add_token(std::vector<Token>& tokens, const std::string& text, std::int64_t id, const JsonField& where) {
  Token& token = tokens[static_cast<std::size_t>(id)];
  if (!token.text.empty()) {
    where.fail("an id for each",
               std::to_string(id) + " for " + in_quotes(token.text) + " and " + in_quotes(text));
  }
  token.text = text;
}

std::vector<Token> read_vocab(const JsonField& vocab, std::size_t extra) {
  const auto& members = vocab.members();
  const std::size_t count = members.size() + extra;
  if (members.empty() || count > ByteLevelBpe::kMaxTokens) {
    vocab.fail("1.." + std::to_string(ByteLevelBpe::kMaxTokens) + " tokens", std::to_string(count));
  }
  std::vector<Token> tokens(count);
  for (const auto& [text, value] : members) {
    if (text.empty()) vocab.fail("tokens", "an empty one");
    const auto limit = static_cast<std::int64_t>(count) - 1;
    const auto* id = value.scalar<std::int64_t>();
    // A field is only made to complain: its path would cost more than all the rest.
    if (id == nullptr || *id < 0 || *id > limit) vocab.child(value, text).integer(0, limit);
    add_token(tokens, text, *id, vocab);
  }
  return tokens;
}

using Merge = std::pair<std::string_view, std::string_view>;

Merge split_merge(std::string_view rule) {
  const std::size_t space = rule.find(' ');
  if (space == std::string_view::npos) return {};
  return {rule.substr(0, space), rule.substr(space + 1)};
}

bool is_merge(const Merge& pair) {
  return !pair.first.empty() && !pair.second.empty() && pair.second.find(' ') == std::string_view::npos;
}

std::vector<Merge> read_json_merges(const JsonField& merges) {
  std::vector<Merge> pairs;
  const auto& items = merges.items();
  if (items.size() > BpeMerges::kMaxRules) {
    merges.fail("at most " + std::to_string(BpeMerges::kMaxRules), std::to_string(items.size()));
  }
  pairs.reserve(items.size());
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (const auto* rule = items[i].scalar<std::string>()) {
      pairs.push_back(split_merge(*rule));
    } else {  // since tokenizers 0.20
      const JsonField pair = merges.child(items[i], std::to_string(i));
      if (pair.items().size() != 2) pair.fail("two tokens", std::to_string(pair.items().size()));
      pairs.emplace_back(pair.child(pair.items()[0], "0").string(),
                         pair.child(pair.items()[1], "1").string());
    }
    if (!is_merge(pairs.back())) {
      merges.child(items[i], std::to_string(i)).fail("two tokens", "something else");
    }
  }
  return pairs;
}

void refuse_unless_absent(const JsonField& owner, std::initializer_list<std::string_view> keys) {
  for (const std::string_view key : keys) {
    const auto field = owner.maybe(key);
    const auto* text = field ? field->value().scalar<std::string>() : nullptr;
    if (field && (text == nullptr || !text->empty()))
      field->fail("null (this setting is not supported)", "a value");
  }
}

bool flag(const JsonField& owner, std::string_view key, bool absent) {
  const auto field = owner.maybe(key);
  return field ? field->boolean() : absent;
}

void expect_type(const JsonField& owner, std::string_view type) {
  const JsonField field = owner.member("type");
  if (field.string() == type) return;
  field.fail(in_quotes(type) + " (no other is supported)", in_quotes(field.string()));
}

AddedTokens::Entry read_added_token(const JsonField& field, std::size_t limit) {
  AddedTokens::Entry entry;
  entry.text = field.member("content").string();
  entry.id = static_cast<std::int32_t>(field.member("id").integer(0, static_cast<std::int64_t>(limit) - 1));
  entry.special = flag(field, "special", false);
  if (entry.text.empty() || entry.text.size() > AddedTokens::kMaxLength) {
    field.member("content").fail("1.." + std::to_string(AddedTokens::kMaxLength) + " bytes",
                                 std::to_string(entry.text.size()));
  }
  for (const std::string_view key : {"single_word", "lstrip", "rstrip"}) {
    if (flag(field, key, false)) field.member(key).fail("false (this setting is not supported)", "true");
  }
  return entry;
}

// Added tokens are often in the vocabulary as well, with the same id; those that are not extend it.
void read_added_tokens(const JsonField& root, const JsonField& vocab, ByteLevelSpec& spec) {
  const auto list = root.maybe("added_tokens");
  const std::size_t count = list ? list->items().size() : 0;
  if (count > ByteLevelBpe::kMaxTokens) {
    list->fail("at most " + std::to_string(ByteLevelBpe::kMaxTokens), std::to_string(count));
  }
  const auto& members = vocab.members();
  spec.added.reserve(count);
  const auto text_of = [&](std::int32_t i) -> std::string_view {
    return spec.added[static_cast<std::size_t>(i)].text;
  };
  StringIndex added(count);  // few beside the vocabulary: they are looked for, not it
  for (std::size_t i = 0; i < count; ++i) {
    const JsonField field = list->child(list->items()[i], std::to_string(i));
    spec.added.push_back(read_added_token(field, members.size() + count));
    added.insert(static_cast<std::int32_t>(i), text_of);
  }
  std::size_t known = 0;
  for (const auto& member : members) known += added.find(member.key, text_of) < 0 ? 0 : 1;
  spec.tokens = read_vocab(vocab, count - std::min(known, count));
  std::vector<bool> seen(spec.tokens.size());
  for (std::size_t i = 0; i < count; ++i) {
    const JsonField field = list->child(list->items()[i], std::to_string(i));
    const AddedTokens::Entry& entry = spec.added[i];
    const auto id = static_cast<std::size_t>(entry.id);
    if (id >= spec.tokens.size()) {
      field.member("id").fail("less than " + std::to_string(spec.tokens.size()), std::to_string(id));
    }
    if (seen[id]) field.fail("each token once", in_quotes(entry.text) + " again");
    seen[id] = true;
    if (spec.tokens[id].text != entry.text) add_token(spec.tokens, entry.text, entry.id, field);
  }
}

}  // namespace

std::shared_ptr<const TokenModel> read_tokenizer_json(std::string_view text, std::string_view file) {
  const JsonValue tree = parse_json(text, file, kMaxVocabularyBytes).value();
  const JsonField root(tree, file);
  ByteLevelSpec spec{.file = std::string(file), .merges_file = std::string(file)};

  refuse_unless_absent(root, {"normalizer"});
  const JsonField pre_tokenizer = root.member("pre_tokenizer");
  expect_type(pre_tokenizer, "ByteLevel");
  spec.add_prefix_space = flag(pre_tokenizer, "add_prefix_space", true);
  if (!flag(pre_tokenizer, "use_regex", true))
    pre_tokenizer.member("use_regex").fail("true (no other is supported)", "false");
  if (const auto post = root.maybe("post_processor")) expect_type(*post, "ByteLevel");
  if (const auto decoder = root.maybe("decoder")) expect_type(*decoder, "ByteLevel");

  const JsonField model = root.member("model");
  if (model.maybe("type")) expect_type(model, "BPE");
  refuse_unless_absent(model, {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"});
  if (flag(model, "byte_fallback", false)) {
    model.member("byte_fallback").fail("false (this setting is not supported)", "true");
  }
  spec.ignore_merges = flag(model, "ignore_merges", false);
  read_added_tokens(root, model.member("vocab"), spec);
  spec.merges = read_json_merges(model.member("merges"));
  return std::make_shared<ByteLevelBpe>(std::move(spec));
}

std::shared_ptr<const TokenModel> read_vocab_and_merges(std::string_view vocab, std::string_view vocab_file,
                                                        std::string_view merges,
                                                        std::string_view merges_file) {
  const JsonValue tree = parse_json(vocab, vocab_file, kMaxVocabularyBytes).value();
  const JsonField root(tree, vocab_file);
  ByteLevelSpec spec{.file = std::string(vocab_file), .merges_file = std::string(merges_file)};
  spec.tokens = read_vocab(root, 0);
  for (std::size_t id = 0; id < spec.tokens.size(); ++id) {
    if (spec.tokens[id].text == kEndOfText)
      spec.added.push_back({std::string(kEndOfText), static_cast<std::int32_t>(id), true});
  }
  std::size_t number = 0;
  while (!merges.empty()) {
    std::string_view line = merges.substr(0, merges.find('\n'));
    merges.remove_prefix(std::min(merges.size(), line.size() + 1));
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || (number == 1 && line.starts_with("#version"))) continue;
    spec.merges.push_back(split_merge(line));
    if (!is_merge(spec.merges.back()) || !is_valid_utf8(line) || spec.merges.size() > BpeMerges::kMaxRules) {
      throw Error(Code::malformed, std::string(merges_file) + ": line " + std::to_string(number) +
                                       ": expected two tokens and a space between them");
    }
  }
  return std::make_shared<ByteLevelBpe>(std::move(spec));
}

}  // namespace inkling
