// The image (image.h) of a byte-level BPE: its members one after another.
#include <utility>

#include "tokenizer/byte_level_bpe.h"
#include "tokenizer/vocabulary_files.h"

namespace inkling {
namespace {

void write_flag(bool flag, ImageWriter& image) {
  const std::uint8_t byte = flag ? 1 : 0;
  image.add(std::span(&byte, 1));
}

bool read_flag(ImageReader& image) {
  return image.take<std::uint8_t>(1)[0] != 0;
}

// Their texts are the bytes of their tokens.
std::vector<AddedTokens::Entry> read_added(ImageReader& image, const Vocabulary& vocabulary) {
  std::vector<AddedTokens::Entry> entries;
  std::vector<bool> seen(vocabulary.bytes().size());
  for (const std::int32_t id : image.take<std::int32_t>()) {
    ImageReader::check(vocabulary.has(id), "an added token outside the vocabulary");
    ImageReader::check(!seen[static_cast<std::size_t>(id)], "an added token twice");
    seen[static_cast<std::size_t>(id)] = true;
    const TokenView token = vocabulary[id];
    ImageReader::check(!token.bytes.empty() && token.bytes.size() <= AddedTokens::kMaxLength,
                       "an added token of another length");
    entries.push_back({std::string(token.bytes), id, token.special});
  }
  return entries;
}

}  // namespace

std::vector<std::byte> ByteLevelBpe::image() const {
  ImageWriter image;
  vocabulary().write(image);
  write_flag(add_prefix_space_, image);
  write_flag(ignore_merges_, image);
  std::vector<std::int32_t> added;
  added_.for_each_id([&](std::int32_t id) { added.push_back(id); });
  image.add(std::span<const std::int32_t>(added));
  merges_.write(image);
  image.add(byte_ids_.elements());
  words_.write(image);
  return image.finish();
}

ByteLevelBpe::ByteLevelBpe(ImageReader& image, std::shared_ptr<const void> owner)
    : TokenModel(Vocabulary(image)),
      owner_(std::move(owner)),
      add_prefix_space_(read_flag(image)),
      ignore_merges_(read_flag(image)),
      added_(read_added(image, vocabulary())),
      merges_(image),
      byte_ids_(image.take<std::int32_t>(256)),
      words_(image, vocabulary().bytes().size()),
      known_(vocabulary().bytes().size()) {
  image.check_end();
  check_image();
}

// That tokens are what they are made of: every word is then covered by its tokens, byte for byte, and merging
// ends.
void ByteLevelBpe::check_image() const {
  const StringTable& bytes = vocabulary().bytes();
  ImageReader::check(bytes.size() <= kMaxTokens, "too many tokens");
  bool fine = true;
  for (std::size_t id = 0; id < bytes.size(); ++id) {
    fine &= bytes[id].size() - 1 < kMaxTokenBytes;  // 0 wraps around
  }
  ImageReader::check(fine, "a token of another length");
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const std::int32_t id = byte_ids_[byte];
    ImageReader::check(vocabulary().has(id) && bytes(id) == std::string(1, static_cast<char>(byte)),
                       "a byte without a token");
  }
  for (const MergeRule& rule : merges_.rules()) {
    ImageReader::check(
        vocabulary().has(rule.left) && vocabulary().has(rule.right) && vocabulary().has(rule.merged),
        "a merge of no tokens");
    const std::string_view merged = bytes(rule.merged);
    ImageReader::check(
        merged.starts_with(bytes(rule.left)) && merged.substr(bytes(rule.left).size()) == bytes(rule.right),
        "a merge into another token");
  }
}

std::shared_ptr<const TokenModel> read_image(std::span<const std::byte> bytes,
                                             std::shared_ptr<const void> owner) {
  ImageReader image(bytes);
  return std::make_shared<ByteLevelBpe>(image, std::move(owner));
}

}  // namespace inkling
