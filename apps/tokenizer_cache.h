// The tokenizer's image between runs, beside the packed weights: GPT-2's JSON takes 30 to 40 ms to
// read, its image is used where it is mapped.
//
// File: "INKLTOKF", a line of each source file's identity, NUL, zeros up to a multiple of 64 bytes, the
// image. It is taken when the lines are those of the files as they are now and the image is whole
// (tokenizer.h).
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include "tokenizer/tokenizer.h"

namespace inkling::app {

/// One tokenizer's way in. One thread at a time.
class TokenizerCache {
 public:
  /// Without a `folder`, and for files that are read in a moment, it finds and keeps nothing.
  TokenizerCache(std::filesystem::path folder, std::filesystem::path tokenizer)
      : folder_(std::move(folder)), tokenizer_(std::move(tokenizer)) {}

  /// Maps the image of the files as they are now; reads them when there is none that fits, whatever the
  /// reason. Errors as of Tokenizer::load().
  Result<Tokenizer> load();
  /// Leaves the image of what load() gave for the next start, unless it came from there. Throws
  /// Error{output}.
  void keep(const Tokenizer& tokenizer) const;

 private:
  void locate();
  std::optional<Tokenizer> find() const;

  std::filesystem::path folder_, tokenizer_;
  std::filesystem::path file_;  // of the image; empty: nowhere
  std::string header_;          // what it begins with
  bool found_ = false;
};

}  // namespace inkling::app
