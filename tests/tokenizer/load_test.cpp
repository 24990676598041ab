// Folders and files: every format by its names, which of several is taken, and memory that runs out.
#include "tests/tokenizer/fixtures.h"
#include "tests/weights/allocation_meter.h"

using namespace inkling;
using namespace inkling::test;

namespace {

struct Folder {
  std::filesystem::path path;
  explicit Folder(const char* name) : path(std::filesystem::temp_directory_path() / name) {
    std::filesystem::remove_all(path);
    std::filesystem::create_directories(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  void put(const char* name, std::string_view content) const {
    std::ofstream(path / name, std::ios::binary) << content;
  }
};

/// A vocabulary of `extra` more tokens than tiny_vocab(), to tell files apart.
std::string vocab_of(int extra) {
  Json vocab = tiny_vocab();
  for (int i = 0; i < extra; ++i) vocab[std::string(static_cast<std::size_t>(i) + 2, 'q')] = 262 + i;
  return vocab.dump();
}

}  // namespace

TEST_CASE("load: GPT-2's tokenizer as vocab.json + merges.txt or encoder.json + vocab.bpe, by either file") {
  const Folder folder("inkling-test-load-pairs");
  const std::pair<const char*, const char*> pairs[] = {{"vocab.json", "merges.txt"},
                                                       {"encoder.json", "vocab.bpe"}};
  for (const auto& [vocab, merges] : pairs) {
    folder.put(vocab, tiny_vocab().dump());
    folder.put(merges, kTinyMerges);
    for (const auto& path : {folder.path, folder.path / vocab, folder.path / merges}) {
      CAPTURE(path.string());
      const Tokenizer tokenizer = Tokenizer::load(path).value();
      CHECK(tokenizer.vocab_size() == 262);
      CHECK(tokenizer.encode("hello w<|endoftext|>").value() == std::vector<std::int32_t>{259, 260, 261});
      CHECK(tokenizer.eos_id() == 261);
      CHECK(tokenizer.is_special(261));
    }
    std::filesystem::remove(folder.path / merges);
    const auto half = Tokenizer::load(folder.path);
    REQUIRE(!half);
    CHECK(half.error().code() == Code::file);
    CHECK(half.error().message().find(merges) != std::string::npos);
    std::filesystem::remove(folder.path / vocab);
  }
}

TEST_CASE("load: of several files in a folder the first of the documented order is taken") {
  const Folder folder("inkling-test-load-order");
  const auto size = [&] { return Tokenizer::load(folder.path).value().vocab_size(); };
  folder.put("meta.json", R"({"stoi": {"a": 0}})");
  CHECK(size() == 1);
  TinyModel model;
  folder.put("one.model", model.str());
  CHECK(size() == 8);
  folder.put("two.model", model.str());
  const auto several = Tokenizer::load(folder.path);
  REQUIRE(!several);
  CHECK(several.error().code() == Code::file);
  CHECK(several.error().message().find("several *.model") != std::string::npos);
  model.pieces.push_back({"c", -3});
  folder.put("tokenizer.model", model.str());
  CHECK(size() == 9);
  folder.put("encoder.json", vocab_of(1));
  folder.put("vocab.bpe", kTinyMerges);
  CHECK(size() == 263);
  folder.put("vocab.json", vocab_of(2));
  folder.put("merges.txt", kTinyMerges);
  CHECK(size() == 264);
  folder.put("tokenizer.json", tiny_tokenizer().dump());
  CHECK(size() == 262);
}

TEST_CASE("load: memory running out at any allocation is a clean error, and the next try succeeds") {
  const Folder folder("inkling-test-load-memory");
  folder.put("tokenizer.json", tiny_tokenizer().dump());
  CHECK(fail_each_allocation([&] { return Tokenizer::load(folder.path); }) > 100);
  const std::string vocab = tiny_vocab().dump(), meta = R"({"stoi": {"a": 0, "b": 1}})";
  CHECK(fail_each_allocation([&] { return Tokenizer::from_vocab_and_merges(vocab, "v", kTinyMerges, "m"); }) >
        30);
  CHECK(fail_each_allocation([&] { return Tokenizer::from_characters(meta, "m"); }) > 5);
  const Tokenizer tokenizer = tiny();
  const std::string text = "hello wörld " + std::string(300, 'h') + "<|endoftext|>";
  const auto ids = tokenizer.encode(text).value();
  CHECK(fail_each_allocation([&] { return tokenizer.encode(text); }) > 3);
  CHECK(fail_each_allocation([&] { return tokenizer.encode_with_offsets(text); }) > 3);
  CHECK(fail_each_allocation([&] { return tokenizer.decode(ids); }) > 1);
}
