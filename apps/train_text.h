// The text of a run: which part of it is for training, and how it becomes ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "apps/console.h"
#include "apps/documents.h"
#include "tokenizer/tokenizer.h"

namespace inkling::app {

/// A document, or the first or last part of one.
struct TextPart {
  std::string_view text;
  std::string_view name;   ///< of the document, for errors
  std::size_t offset = 0;  ///< in it
};

/// Views into the documents.
struct SplitText {
  std::vector<TextPart> training, validation;
  std::size_t bytes = 0;
};

/// As nanoGPT does: for training are nine tenths of one text's characters, or of many documents' bytes.
/// Throws Error{input} "DATA: expected text, got none".
SplitText split(const Documents& documents, const std::filesystem::path& data);

/// Text to files of ids (token_data.h).
class TextEncoder {
 public:
  /// `total` bytes are to come, for the progress that is shown. Tokenizer and console outlive it.
  TextEncoder(const Tokenizer& tokenizer, const Console& console, std::size_t total)
      : tokenizer_(tokenizer), progress_(console, "tokenising"), total_(total) {}

  enum class End : std::uint8_t { none, token };
  /// A document of ids for each part, with the end token behind it if asked for and if there is one. Throws
  /// Error{input} "DOCUMENT: …" or "DOCUMENT: from byte N: …", Error{output}, Interrupted.
  void write(const std::filesystem::path& path, std::span<const TextPart> parts, End end,
             std::string_view source);

 private:
  void encode(const TextPart& part, std::vector<std::int32_t>& ids);

  const Tokenizer& tokenizer_;
  Progress progress_;
  std::size_t total_, done_ = 0;
};

}  // namespace inkling::app
