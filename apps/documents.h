// Documents: the texts that a model or a vocabulary learns from.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace inkling::app {

struct Documents {
  std::vector<std::string> texts;
  std::vector<std::string> names;  ///< of each for errors: "FILE" or "FILE: line N"
  std::string sha256;              ///< of all the texts and where each ends

  std::vector<std::string_view> views() const { return {texts.begin(), texts.end()}; }
};

/// A file *.jsonl has a document in each line, {"text": …} with any other fields beside it; any other file is
/// one document. A folder stands for its *.txt and *.jsonl, those of its folders too, by name. All are UTF-8.
/// Throws Error{file} for what cannot be read or holds no such file, Error{input} "FILE: expected UTF-8, got
/// …" with the byte's offset, or "FILE: line N: …" for a bad line.
Documents read_documents(std::span<const std::filesystem::path> paths);

}  // namespace inkling::app
