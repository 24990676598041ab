// Weights in several files: the index, the shards, and every way they can disagree.
#include <doctest/doctest.h>

#include "tests/weights/bad_files.h"
#include "tests/weights/fixtures.h"
#include "weights/sharded.h"

namespace inkling::test {
namespace {

constexpr const char* kIndexName = "model.safetensors.index.json";
const std::string kIndex =
    R"({"metadata": {"total_size": 24}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})";

// Two shards of one tensor each, "a" in one and "b" in two.
void write_shards(const TempDir& dir) {
  TinyModel model;
  const TensorView view = model.tensors.front().view;
  write_safetensors(dir / "one.safetensors", std::vector<NamedTensor>{{"a", view}}).value();
  write_safetensors(dir / "two.safetensors", std::vector<NamedTensor>{{"b", view}}).value();
  put(dir / kIndexName, kIndex);
}

TEST_CASE("shards are seen as one") {
  TempDir dir;
  write_shards(dir);
  for (const auto& path : {dir.path(), dir / kIndexName}) {
    const auto weights = WeightFiles::open(path);
    REQUIRE_MESSAGE(weights, (weights ? "" : weights.error().message()));
    CHECK(weights->files().size() == 2);
    CHECK(weights->tensors().size() == 2);
    CHECK(weights->find("a") != nullptr);
    CHECK(weights->find("b") != nullptr);
    CHECK(weights->find("c") == nullptr);
    CHECK(weights->folder() == dir.path());
    weights->release(weights->find("b")->view);
  }
  const auto index = parse_index_json(kIndex, kIndexName);
  REQUIRE(index);
  CHECK(index->shards == std::vector<std::string>{"one.safetensors", "two.safetensors"});
}

TEST_CASE("the folder's files are chosen by name, or by being the only one") {
  TempDir dir;
  CHECK(locate_weights(dir.path()).error().code() == Code::file);
  CHECK(locate_weights(dir / "absent").error().code() == Code::file);
  put(dir / "tiny.safetensors", "");
  CHECK(locate_weights(dir.path())->files.front() == dir / "tiny.safetensors");
  put(dir / "other.safetensors", "");
  CHECK(locate_weights(dir.path()).error().message().find("got 2 of them") != std::string::npos);
  CHECK(locate_weights(dir / "other.safetensors")->files.front() == dir / "other.safetensors");
  put(dir / kIndexName, kIndex);
  CHECK(locate_weights(dir.path())->files.size() == 2);
  put(dir / "model.safetensors", "");
  CHECK(locate_weights(dir.path())->files.front() == dir / "model.safetensors");
}

TEST_CASE("an index and shards that disagree are refused, the tensor named") {
  TempDir dir;
  write_shards(dir);
  const auto refused = [&](const std::string& index, Code code, std::string_view word) {
    put(dir / kIndexName, index);
    const auto weights = WeightFiles::open(dir.path());
    REQUIRE(!weights);
    CHECK(weights.error().code() == code);
    CHECK_MESSAGE(weights.error().message().find(word) != std::string::npos, weights.error().message());
  };
  refused(with(kIndex, "one.", "none."), Code::file, "none.safetensors: cannot open");
  refused(with(kIndex, "one.", "two."), Code::malformed, "weight_map.a: expected it in two.safetensors");
  refused(with(kIndex, "\"a\"", "\"x\""), Code::malformed, "weight_map.a: expected it listed, got it in one");
  refused(with(kIndex, "\"a\"", "\"extra\": \"one.safetensors\", \"a\""), Code::malformed,
          "weight_map.extra");
  const std::string swapped = R"({"weight_map": {"b": "one.safetensors", "a": "two.safetensors"}})";
  refused(swapped, Code::malformed,
          "weight_map.a: expected it in two.safetensors, got it in one.safetensors");
  put(dir / "two.safetensors", "short");
  refused(kIndex, Code::malformed, "two.safetensors: size");
  // The same tensor in both shards: one of them is where the index does not say.
  write_shards(dir);
  std::filesystem::copy_file(dir / "one.safetensors", dir / "two.safetensors",
                             std::filesystem::copy_options::overwrite_existing);
  refused(kIndex, Code::malformed, "weight_map.a: expected it in one.safetensors, got it in two.safetensors");
}

BadFiles bad_indexes() {
  BadFiles bad;
  const auto add = [&bad](const std::string& text, const std::string& field) {
    bad.push_back({text, text, field});
  };
  for (std::size_t size = 0; size < kIndex.size(); ++size) add(kIndex.substr(0, size), "");
  for (std::size_t at = 0; at < kIndex.size(); ++at) {
    for (const char byte : {'\0', '\x01', '\xff'}) {
      std::string text = kIndex;
      text[at] = byte;
      add(text, "");
    }
  }
  for (const char* name : {"",
                           ".",
                           "..",
                           ".safetensors",
                           "../one.safetensors",
                           "/etc/one.safetensors",
                           "a/one.safetensors",
                           "./one.safetensors",
                           "a\\\\one.safetensors",
                           "C:one.safetensors",
                           "..\\\\one.safetensors",
                           "one.bin",
                           "one.safetensors/",
                           "one.SAFETENSORS",
                           "one.safetensors ",
                           "\\u0000.safetensors",
                           "one\\u0000.safetensors",
                           "one\\n.safetensors",
                           ".one.safetensors",
                           "file:one.safetensors"}) {
    add(with(kIndex, "one.safetensors", name), "weight_map.a");
  }
  add(with(kIndex, "one", std::string(300, 'x')), "weight_map.a");
  for (const std::string& value : kNoStrings) add(with(kIndex, "\"one.safetensors\"", value), "");
  for (const std::string& value : kNoJson) add(with(kIndex, "24", value), "JSON");
  for (const char* value : {"null", "1", "[]", "{}", "\"one.safetensors\""}) {
    add(std::string("{\"weight_map\": ") + value + "}", "weight_map");
    add(std::string("{\"metadata\": {}, \"x\": ") + value + "}", "weight_map");
  }
  add(with(kIndex, "\"b\"", "\"a\""), "a: expected the key once");
  add(with(kIndex, "\"b\"", "\"\\u0061\""), "a: expected the key once");
  add(with(kIndex, "\"metadata\"", "\"weight_map\""), "weight_map: expected the key once");
  for (const std::string& sequence : kNoUtf8) add(with(kIndex, "one", sequence), "");
  for (const std::size_t depth : {32u, 1000u, 100'000u}) {
    add(with(kIndex, "24", nested_lists(depth)), "nesting");
    add(with(kIndex, "{\"total_size\": 24}", nested_objects(depth)), "nesting");
  }
  std::string many = "{\"weight_map\": {\"first\": \"first.safetensors\"";
  for (int i = 0; i < 1000; ++i)
    many += ",\"" + std::to_string(i) + "\":\"" + std::to_string(i) + ".safetensors\"";
  add(many + "}}", "at most 1000 files");
  add(kIndex + std::string(kMaxIndexBytes, ' '), "size");
  return bad;
}

TEST_CASE("every broken index is refused, its field named") {
  const BadFiles bad = bad_indexes();
  MESSAGE(bad.size() << " broken indexes");
  for (const BadFile& file : bad) {
    const auto index = parse_index_json(file.content, kIndexName);
    REQUIRE_MESSAGE(!index, file.what.substr(0, 300));
    const std::string message = index.error().message();
    CAPTURE(message);
    CHECK(index.error().code() == Code::malformed);
    CHECK(message.starts_with(std::string(kIndexName) + ": "));
    CHECK(message.find(file.field) != std::string::npos);
    CHECK(message.find("expected") != std::string::npos);
    CHECK(message.size() < 400);
  }
}

}  // namespace
}  // namespace inkling::test
