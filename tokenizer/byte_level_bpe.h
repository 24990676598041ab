// GPT-2's tokenizer: added tokens → words (pretokenizer.h) → bytes → merges (bpe_merges.h).
// Radford et al. 2019, "Language models are unsupervised multitask learners", §2.2.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe_merges.h"
#include "tokenizer/pretokenizer.h"
#include "tokenizer/token_model.h"

namespace inkling {

/// What the readers of tokenizer.json and vocab.json + merges.txt agree on. Ids are 0…n−1 without holes.
struct ByteLevelSpec {
  std::string file;
  std::string merges_file;
  std::vector<Token> tokens{};  // by id; bytes are set by the model
  /// In rank order, in the byte alphabet; views into the file's text or tree, which outlive the spec.
  std::vector<std::pair<std::string_view, std::string_view>> merges{};
  std::vector<AddedTokens::Entry> added{};
  bool add_prefix_space = false;  ///< a space goes before each stretch of text that begins with none
  bool ignore_merges = false;     ///< a word in the vocabulary is its token, even if no merges lead there
};

class ByteLevelBpe final : public TokenModel {
 public:
  static constexpr std::size_t kMaxTokens = std::size_t{1} << 22;
  static constexpr std::size_t kMaxTokenBytes = 4096;

  /// Throws Code::malformed naming file and field.
  explicit ByteLevelBpe(ByteLevelSpec spec);
  /// Of an image (byte_level_image.cpp), used where it is; `owner` keeps it there. Throws Code::malformed for
  /// one that could do harm.
  ByteLevelBpe(ImageReader& image, std::shared_ptr<const void> owner);
  std::vector<std::byte> image() const override;

  TokenizerKind kind() const noexcept override { return TokenizerKind::byte_level_bpe; }
  std::string description() const override;
  std::size_t max_input_bytes() const noexcept override { return std::size_t{128} << 20; }
  std::optional<std::int32_t> eos_id() const noexcept override { return vocabulary().id_of("<|endoftext|>"); }
  std::optional<std::int32_t> bos_id() const noexcept override { return eos_id(); }
  std::vector<std::int32_t> encode(std::string_view text, EncodeOptions options) const override;
  std::vector<TokenSpan> encode_with_offsets(std::string_view text, EncodeOptions options) const override;

 private:
  /// Calls on_stretch(text, offset) for plain stretches and on_token(span) for added tokens, in order.
  template <class OnStretch, class OnToken>
  void cut(std::string_view text, EncodeOptions options, OnStretch&& on_stretch, OnToken&& on_token) const;
  bool wants_prefix(std::string_view stretch) const noexcept;
  void encode_stretch(std::string_view stretch, std::vector<std::int32_t>& ids) const;
  void encode_bytes(std::string_view text, std::vector<std::int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const;
  std::size_t merge_word(std::string_view word, std::vector<std::int32_t>& ids) const;
  bool is_word(std::string_view word, std::int32_t id, std::vector<std::int32_t>& ids) const;
  void index_words(const std::string& file);
  void check_image() const;

  std::vector<MergeRule> resolve(const ByteLevelSpec& spec) const;

  std::shared_ptr<const void> owner_;  // of an image
  bool add_prefix_space_;
  bool ignore_merges_;
  AddedTokens added_;
  BpeMerges merges_;
  Pretokenizer pretokenizer_;
  FlatArray<std::int32_t> byte_ids_;                                  // 256
  enum class Merges : std::uint8_t { unknown, to_token, to_others };  // what merging a token's bytes leads to
  StringIndex words_;  // bytes of a token → its id: most words are tokens and need no merging
  mutable std::vector<std::atomic<Merges>> known_;  // by id
};

}  // namespace inkling
