#include "apps/documents.h"

#include <algorithm>

#include "apps/input.h"
#include "tokenizer/utf8.h"
#include "weights/sha256.h"

namespace inkling::app {
namespace fs = std::filesystem;
namespace {

bool is_lines(const fs::path& path) {
  return path.extension() == ".jsonl";
}

std::vector<fs::path> files_of(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return {path};
  std::vector<fs::path> files;
  for (auto at = fs::recursive_directory_iterator(path, error); !error && at != fs::end(at);
       at.increment(error)) {
    std::error_code ignored;
    if (!at->is_regular_file(ignored)) continue;
    if (is_lines(at->path()) || at->path().extension() == ".txt") files.push_back(at->path());
  }
  if (error) throw Error(Code::file, path.string() + ": cannot read: " + error.message());
  if (files.empty()) throw Error(Code::file, path.string() + ": expected files *.txt or *.jsonl, got none");
  std::ranges::sort(files);
  return files;
}

// JSON's parser holds lines to UTF-8 by itself.
void require_utf8(const std::string& text, const std::string& name) {
  const std::size_t good = valid_utf8_prefix(text);
  if (good == text.size()) return;
  throw Error(Code::input,
              name + ": expected UTF-8, got an ill-formed byte at offset " + std::to_string(good));
}

void read(const fs::path& path, Documents& documents) {
  const std::string name = input_name(path);
  std::string content = read_text(path);
  if (!is_lines(path)) {
    require_utf8(content, name);
    documents.texts.push_back(std::move(content));
    documents.names.push_back(name);
    return;
  }
  for_each_record(content, name, {}, [&](const Record& record) {
    if (!record.has("text")) record.fail("expected the field 'text'");
    documents.texts.push_back(record.text("text"));
    documents.names.push_back(record.where());
  });
}

}  // namespace

Documents read_documents(std::span<const fs::path> paths) {
  Documents documents;
  for (const fs::path& path : paths) {
    for (const fs::path& file : files_of(path)) read(file, documents);
  }
  Sha256 hash;
  for (const std::string& text : documents.texts) {
    const std::string length = std::to_string(text.size()) + ':';
    hash.update(std::as_bytes(std::span(length)));
    hash.update(std::as_bytes(std::span(text)));
  }
  documents.sha256 = hash.finish();
  return documents;
}

}  // namespace inkling::app
