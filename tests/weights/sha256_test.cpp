#include "weights/sha256.h"

#include <doctest/doctest.h>

#include <cctype>

#include "tests/weights/fixtures.h"

namespace inkling::test {
namespace {

const std::string kHashOfAbc =
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";  // FIPS 180-4
const std::string kHashOfEmpty =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";  // FIPS 180-4

TEST_CASE("published hashes, whole and in pieces") {
  TempDir dir;
  put(dir / "abc", "abc");
  put(dir / "empty", "");
  CHECK(*sha256_file(dir / "abc") == kHashOfAbc);
  CHECK(*sha256_file(dir / "empty") == kHashOfEmpty);
  CHECK(sha256_file(dir / "absent").error().code() == Code::file);
  Sha256 hash;
  for (const char* piece : {"a", "", "bc"}) hash.update(bytes_of(piece));
  CHECK(hash.finish() == kHashOfAbc);
  // A million times "a", over several read buffers (FIPS 180-4).
  put(dir / "million", std::string(1'000'000, 'a'));
  CHECK(*sha256_file(dir / "million") == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("verify against a hash") {
  TempDir dir;
  put(dir / "model.safetensors", "abc");
  std::string upper = kHashOfAbc;
  for (char& c : upper) c = static_cast<char>(std::toupper(c));
  for (const auto& path : {dir.path(), dir / "model.safetensors"}) {
    CHECK(verify(path, "sha256:" + kHashOfAbc));
    CHECK(verify(path, "sha256:" + upper));
    const auto wrong = verify(path, "sha256:" + kHashOfEmpty);
    REQUIRE(!wrong);
    CHECK(wrong.error().code() == Code::malformed);
    CHECK(wrong.error().message() == (dir / "model.safetensors").string() + ": sha256: expected " +
                                         kHashOfEmpty + ", got " + kHashOfAbc);
  }
  for (const std::string& bad : {std::string("sha256:"), std::string("sha256:12"),
                                 "sha256:" + kHashOfAbc + "0", "sha256:g" + kHashOfAbc.substr(1)}) {
    CHECK(verify(dir.path(), bad).error().code() == Code::usage);
  }
  CHECK(verify(dir / "absent", "sha256:" + kHashOfAbc).error().code() == Code::file);
}

TEST_CASE("verify against a manifest") {
  TempDir dir;
  put(dir / "model.safetensors", "abc");
  put(dir / "config.json", "");
  const std::string good = kHashOfAbc + "  model.safetensors\n" + kHashOfEmpty + " *config.json\n";
  const auto check = [&](const std::string& manifest, const std::filesystem::path& model) {
    put(dir / "SHA256SUMS", manifest);
    return verify(model, (dir / "SHA256SUMS").string());
  };
  for (const auto& model : {dir.path(), dir / "model.safetensors"}) {
    CHECK(check(good, model));
    CHECK(check("# made by sha256sum\r\n\n" + kHashOfAbc + "  ./model.safetensors\r\n", model));
    CHECK(check(kHashOfEmpty + "  model.safetensors\n", model).error().code() == Code::malformed);
    CHECK(check(kHashOfEmpty + "  config.json\n", model).error().message().find("a line for this file") !=
          std::string::npos);
  }
  CHECK(check(good + kHashOfAbc + "  absent.json\n", dir.path()).error().code() == Code::file);
  CHECK(check(kHashOfAbc + "  model.safetensors\n" + kHashOfAbc + "  config.json\n", dir.path())
            .error()
            .message()
            .find("config.json: sha256") != std::string::npos);
  for (const std::string& bad :
       {std::string("x"), kHashOfAbc, kHashOfAbc + " model.safetensors", kHashOfAbc + "  ",
        kHashOfAbc + "  ../model.safetensors", kHashOfAbc + "  /etc/passwd", kHashOfAbc + "  ..",
        "0" + kHashOfAbc + "  model.safetensors", "g" + kHashOfAbc.substr(1) + "  model.safetensors",
        good + good, std::string("\0", 1)}) {
    const auto refused = check(bad, dir.path());
    REQUIRE(!refused);
    CHECK(refused.error().code() == Code::malformed);
    CHECK(refused.error().message().find("SHA256SUMS: line ") != std::string::npos);
  }
  CHECK(verify(dir.path(), (dir / "absent").string()).error().code() == Code::file);
}

TEST_CASE("an index.json is verified as its shards are") {
  TempDir dir;
  const std::string index = R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})";
  const auto path = dir / "model.safetensors.index.json";
  put(dir / "one.safetensors", "abc");
  put(dir / "two.safetensors", "");
  put(path, index);
  const std::string shards = kHashOfAbc + "  one.safetensors\n" + kHashOfEmpty + "  two.safetensors\n";
  const auto check = [&](const std::string& manifest, const std::filesystem::path& model) {
    put(dir / "SUMS", manifest);
    return verify(model, (dir / "SUMS").string());
  };
  const std::string name = "  model.safetensors.index.json\n";
  CHECK(check(shards + *sha256_file(path) + name, path));
  CHECK(check(shards + *sha256_file(path) + name, dir.path()));
  CHECK(check(shards, dir.path()));  // of a folder, the files of weights want lines
  CHECK(check(shards + kHashOfAbc + name, dir.path()).error().code() == Code::malformed);
  const auto wrong = check(shards + kHashOfAbc + name, path);
  REQUIRE(!wrong);
  CHECK(wrong.error().message().starts_with(path.string() + ": sha256: expected " + kHashOfAbc));
  const auto none = check(shards, path);
  REQUIRE(!none);
  CHECK(none.error().message().find("index.json: expected a line for this file, got none") !=
        std::string::npos);
}

TEST_CASE("the sample model's card lists the files as they are, 8 MB at most") {
  const auto folder = source_dir() / "weights/sample";
  const std::string card = content_of(folder / "README.md");
  std::uintmax_t total = 0;
  for (const char* name : {"model.safetensors", "tokenizer.model", "config.json", "golden.json"}) {
    CAPTURE(name);
    const std::size_t row = card.find("| " + std::string(name) + " | ");
    REQUIRE(row != std::string::npos);
    const std::string line = card.substr(row, card.find('\n', row) - row);
    const std::uintmax_t bytes = std::filesystem::file_size(folder / name);
    std::string digits = std::to_string(bytes);
    for (std::size_t at = digits.size(); at > 3;) digits.insert(at -= 3, ",");
    CHECK(line == "| " + std::string(name) + " | " + digits + " | " + *sha256_file(folder / name) + " |");
    total += bytes;
  }
  CHECK(total <= 8'000'000);
}

TEST_CASE("hashes of all weight files of a folder") {
  TempDir dir;
  put(dir / "one.safetensors", "abc");
  put(dir / "two.safetensors", "");
  put(dir / "model.safetensors.index.json",
      R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}})");
  const auto hashes = hash_weight_files(dir.path());
  REQUIRE(hashes);
  REQUIRE(hashes->size() == 2);
  CHECK((*hashes)[0].path == dir / "one.safetensors");
  CHECK((*hashes)[0].sha256 == kHashOfAbc);
  CHECK((*hashes)[1].sha256 == kHashOfEmpty);
  CHECK(verify(dir.path(), "sha256:" + kHashOfAbc).error().code() == Code::usage);
}

}  // namespace
}  // namespace inkling::test
