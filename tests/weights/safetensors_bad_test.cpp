// Every rule of the safetensors format, broken in every place where it can be.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <random>

#include "tests/weights/allocation_meter.h"
#include "tests/weights/bad_files.h"
#include "tests/weights/fixtures.h"
#include "weights/safetensors.h"

namespace inkling::test {
namespace {

using namespace std::string_view_literals;

// The good file: three tensors back to back in 24 bytes, as JSON texts so that each can be broken.
struct Entry {
  std::string name, dtype, rows, columns, begin, end;
};
const std::array<Entry, 3> kGood = {
    Entry{"a", "\"F32\"", "1", "2", "0", "8"},
    Entry{"b", "\"I16\"", "3", "2", "8", "20"},
    Entry{"c", "\"U8\"", "4", "1", "20", "24"},
};
const std::string kData(24, '\xee');  // no byte of it can continue a JSON text

std::string text_of(const Entry& e) {
  return "\"" + e.name + "\":{\"dtype\":" + e.dtype + ",\"shape\":[" + e.rows + "," + e.columns +
         "],\"data_offsets\":[" + e.begin + "," + e.end + "]}";
}

std::string header_of(const std::array<Entry, 3>& entries) {
  return "{\"__metadata__\":{\"key\":\"value\"}," + text_of(entries[0]) + "," + text_of(entries[1]) + "," +
         text_of(entries[2]) + "}";
}

const std::string kHeader = header_of(kGood);

std::string file_of(std::string_view header) {
  return safetensors_file(header, kData);
}

BadFiles truncations_and_extensions() {
  BadFiles bad;
  const std::string good = file_of(kHeader);
  for (std::size_t size = 0; size < good.size(); ++size) {
    const char* field = size < 8 ? "size" : size < 8 + kHeader.size() ? "header length" : "data_offsets";
    bad.push_back({"cut to " + std::to_string(size), good.substr(0, size), field});
  }
  for (const std::size_t more : {1u, 7u, 8u, 4096u}) {
    bad.push_back({"longer by " + std::to_string(more), good + std::string(more, '\0'), "data_offsets"});
  }
  return bad;
}

BadFiles lies_about_the_length() {
  BadFiles bad;
  const std::uint64_t n = kHeader.size();
  std::vector<std::uint64_t> lengths = {0,      1,           2,           n - 1, n + 1,    n + 24,
                                        n + 25, 100'000'000, 100'000'001, ~0ull, ~0ull - 7};
  for (int bit = 0; bit < 64; ++bit) lengths.push_back(n ^ (1ull << bit));
  for (const std::uint64_t length : lengths) {
    const bool beyond = length > n + kData.size();
    bad.push_back({"header length " + std::to_string(length), safetensors_file(kHeader, kData, length),
                   beyond ? "header length" : ""});
  }
  return bad;
}

// Each number, each dtype and each container of each tensor, replaced by everything that it must not be.
BadFiles wrong_fields() {
  BadFiles bad;
  const auto numbers = {&Entry::rows, &Entry::columns, &Entry::begin, &Entry::end};
  for (std::size_t i = 0; i < kGood.size(); ++i) {
    const std::string& name = kGood[i].name;
    const auto broken = [&](std::string Entry::*part, const std::string& value, const std::string& field) {
      auto entries = kGood;
      entries[i].*part = value;
      bad.push_back({field + " = " + value, file_of(header_of(entries)), field});
    };
    std::vector<std::string> values = {"0",         "7", "255", "9223372036854775807", "4611686018427387904",
                                       "4294967296"};
    values.insert(values.end(), kNoIntegers.begin(), kNoIntegers.end());
    values.insert(values.end(), kNoJson.begin(), kNoJson.end());
    for (const auto part : numbers) {
      for (const std::string& value : values) {
        if (kGood[i].*part != value) broken(part, value, "");
      }
    }
    for (const std::string& value : kNoStrings) broken(&Entry::dtype, value, "");
    for (const char* value : {"\"\"", "\"f32\"", "\"F33\"", "\"F32 \"", "\"Q4_0\"", "\"F64\"", "\"I64\""}) {
      broken(&Entry::dtype, value, name);
    }
    const std::string good = text_of(kGood[i]);
    const std::string start = "\"" + name + "\":";
    for (const char* value : {"0", "null", "true", "\"x\"", "[]", "[{}]", "{}"}) {
      bad.push_back({name + " = " + value, file_of(with(kHeader, good, start + value)), name});
    }
    const std::string shape = "[" + kGood[i].rows + "," + kGood[i].columns + "]";
    for (const char* value : {"0", "null", "\"[1,2]\"", "{}", "[[1,2]]", "[1,2,3,4,5]", "[]", "[0]"}) {
      bad.push_back(
          {name + ".shape = " + value, file_of(with(kHeader, good, with(good, shape, value))), name});
    }
    const std::string flat = "[" + kGood[i].rows + "," + kGood[i].columns + ",1,1,1]";
    bad.push_back(
        {name + " of rank 5", file_of(with(kHeader, good, with(good, shape, flat))), name + ".shape"});
    const std::string offsets = "[" + kGood[i].begin + "," + kGood[i].end + "]";
    for (const char* value : {"0", "null", "\"\"", "{}", "[]", "[0]", "[0,8,16]", "[[0,8]]"}) {
      bad.push_back({name + ".data_offsets = " + value,
                     file_of(with(kHeader, good, with(good, offsets, value))), name});
    }
  }
  for (const std::string& value : kNoStrings) {
    bad.push_back({"metadata value " + value, file_of(with(kHeader, "\"value\"", value)), ""});
    if (value != "{}") {
      bad.push_back({"metadata " + value, file_of(with(kHeader, "{\"key\":\"value\"}", value)), ""});
    }
  }
  return bad;
}

// Tensors moved, stretched, swapped: each byte must belong to exactly one.
BadFiles wrong_tilings() {
  BadFiles bad;
  for (std::size_t i = 0; i < kGood.size(); ++i) {
    for (int begin = -9; begin <= 9; ++begin) {
      for (int end = -9; end <= 9; ++end) {
        if (begin == 0 && end == 0) continue;
        auto entries = kGood;
        entries[i].begin = std::to_string(std::stoi(kGood[i].begin) + begin);
        entries[i].end = std::to_string(std::stoi(kGood[i].end) + end);
        bad.push_back({kGood[i].name + " moved by " + std::to_string(begin) + ", " + std::to_string(end),
                       file_of(header_of(entries)), "data_offsets"});
      }
    }
    for (std::size_t j = 0; j < i; ++j) {
      auto entries = kGood;
      std::swap(entries[i].begin, entries[j].begin);
      std::swap(entries[i].end, entries[j].end);
      bad.push_back({"offsets swapped", file_of(header_of(entries)), "data_offsets"});
    }
  }
  return bad;
}

// A fourth tensor over bytes that have an owner.
BadFiles overlaps() {
  BadFiles bad;
  for (std::size_t begin = 0; begin < kData.size(); ++begin) {
    for (std::size_t end = begin + 1; end <= kData.size(); ++end) {
      const Entry extra{
          "d", "\"U8\"", std::to_string(end - begin), "1", std::to_string(begin), std::to_string(end)};
      const std::string header = with(kHeader, "\"c\":", text_of(extra) + ",\"c\":");
      bad.push_back({"overlap of " + extra.begin + " to " + extra.end, file_of(header), "data_offsets"});
    }
  }
  return bad;
}

BadFiles overflowing_shapes() {
  BadFiles bad;
  const std::string shape = "\"shape\":[1,2]";
  for (const char* extents :
       {"9223372036854775807,9223372036854775807", "4611686018427387904,4", "4294967296,4294967296",
        "2305843009213693952,2", "2147483648,2147483648,2147483648,2147483648",
        "0,4611686018427387904,4611686018427387904", "4611686018427387904,4611686018427387904,0",
        "3,6148914691236517206"}) {
    const std::string header = with(kHeader, shape, "\"shape\":[" + std::string(extents) + "]");
    bad.push_back({std::string("shape ") + extents, file_of(header), "a.shape"});
  }
  return bad;
}

BadFiles duplicate_and_unknown_keys() {
  BadFiles bad;
  const auto add = [&](std::string what, std::string header, std::string field) {
    bad.push_back({std::move(what), file_of(header), std::move(field)});
  };
  add("tensor twice", with(kHeader, "\"c\":", "\"b\":"), "b");
  add("escaped twin", with(kHeader, "\"c\":", "\"\\u0062\":"), "b");
  add("metadata twice", with(kHeader, "\"c\":{", "\"__metadata__\":{},\"c\":{"), "__metadata__");
  add("metadata key twice", with(kHeader, "\"value\"", "\"value\",\"key\":\"other\""), "key");
  for (const Entry& entry : kGood) {
    const std::string good = text_of(entry);
    for (const std::string key : {"dtype", "shape", "data_offsets"}) {
      const std::size_t at = good.find("\"" + key);
      const std::size_t end = key == "dtype" ? good.find(',', at) : good.find(']', at) + 1;
      const std::string member = good.substr(at, end - at);
      const std::string field = entry.name;
      add(key + " twice", with(kHeader, good, with(good, member, member + "," + member)), field);
      add(key + " unknown", with(kHeader, good, with(good, "\"" + key, "\"x" + key)), field);
      add(key + " upper case", with(kHeader, good, with(good, key, "Shape")), field);
      const std::string with_comma = key == "data_offsets" ? "," + member : member + ",";
      add(key + " missing", with(kHeader, good, with(good, with_comma, "")), field);
    }
    add("extra key", with(kHeader, good, with(good, "{", "{\"strides\":[1],")), entry.name);
  }
  return bad;
}

BadFiles broken_text() {
  BadFiles bad;
  for (const std::string& sequence : kNoUtf8) {
    for (const char* place : {"a\":", "key", "value", "F32", "\"shape"}) {
      bad.push_back({"not UTF-8", file_of(with(kHeader, place, sequence + place)), ""});
    }
  }
  for (std::size_t at = 0; at < kHeader.size(); ++at) {
    for (const char byte : {'\0', '\x01', '\xff', '\n'}) {
      // A line break between tokens is fine JSON.
      if (byte == '\n' && std::string_view("{}[],:").find(kHeader[at]) == std::string_view::npos) continue;
      std::string header = kHeader;
      header[at] = byte;
      bad.push_back({"byte " + std::to_string(at) + " replaced", file_of(header), ""});
    }
  }
  for (const std::string_view tail : {"}"sv, "{}"sv, ","sv, "x"sv, "\xee"sv, "\0"sv, "\0{}"sv}) {
    bad.push_back({"text after the object", file_of(kHeader + std::string(tail)), ""});
  }
  for (const std::string head : {" ", "\n", "\xef\xbb\xbf", "/**/", "["}) {
    bad.push_back({"text before the object", file_of(head + kHeader), "header"});
  }
  for (const char* document :
       {"", "null", "[]", "1", "\"\"", "{", "}", "{]", "{\"a\"}", "{\"a\":}", "{,}", "{a:1}"}) {
    bad.push_back({document, file_of(document), ""});
  }
  return bad;
}

BadFiles deep_nesting() {
  BadFiles bad;
  for (const std::size_t depth : {2u, 31u, 32u, 33u, 1000u, 100'000u}) {
    for (const std::string& deep : {nested_lists(depth), nested_objects(depth), repeated("[", depth)}) {
      for (const char* place : {"\"value\"", "\"F32\"", "[1,2]", "[0,8]", "20,24"}) {
        bad.push_back({"depth " + std::to_string(depth), file_of(with(kHeader, place, deep)), ""});
      }
      bad.push_back({"depth " + std::to_string(depth), file_of("{\"x\":" + deep + "}"), "x"});
    }
  }
  return bad;
}

BadFiles every_bad_file() {
  BadFiles all;
  for (const auto make :
       {truncations_and_extensions, lies_about_the_length, wrong_fields, wrong_tilings, overlaps,
        overflowing_shapes, duplicate_and_unknown_keys, broken_text, deep_nesting}) {
    BadFiles some = make();
    std::ranges::move(some, std::back_inserter(all));
  }
  return all;
}

TEST_CASE("every broken safetensors file is refused, its field named, fast and in bounded memory") {
  REQUIRE(SafetensorsFile::from_bytes(bytes_of(file_of(kHeader)), "good"));
  const BadFiles bad = every_bad_file();
  MESSAGE(bad.size() << " broken files");
  CHECK(bad.size() >= 2000);
  const auto start = std::chrono::steady_clock::now();
  for (const BadFile& file : bad) {
    CAPTURE(file.what);
    AllocationMeter meter;
    const auto read = SafetensorsFile::from_bytes(bytes_of(file.content), "bad.safetensors");
    CHECK(meter.peak_bytes() < 65536 + 4 * file.content.size());
    REQUIRE(!read);
    const std::string message = read.error().message();
    CAPTURE(message);
    CHECK(read.error().code() == Code::malformed);
    CHECK(message.starts_with("bad.safetensors: "));
    CHECK(message.find(file.field) != std::string::npos);
    CHECK(message.find("expected") != std::string::npos);
    CHECK(message.size() < 400);
    CHECK(message.find_first_of(std::string_view("\0\x01\n", 3)) == std::string::npos);
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
}

TEST_CASE("wrong values are blamed on the field that holds them") {
  const std::pair<std::string, std::string> cases[] = {
      {with(kHeader, "[1,2]", "[-1,2]"), "a.shape: expected an integer, 0 to 2^63-1, got -1"},
      {with(kHeader, "[0,8]", "[0,8.5]"),
       "a.data_offsets: expected an integer, 0 to 2^63-1, got the number 8.5"},
      {with(kHeader, "[0,8]", "[8,0]"), "a.data_offsets: expected begin <= end, got [8, 0]"},
      {with(kHeader, "[1,2]", "[1,3]"),
       "a.data_offsets: expected 12 bytes for its shape and dtype, got [0, 8]"},
      {with(kHeader, "\"F32\"", "\"F31\""), "a.dtype: expected BOOL, U8"},
      {with(kHeader, "\"value\"", "7"), "__metadata__.key: expected a string, got 7"},
      {with(kHeader, "\"a\":", "\"\\u001b[2J\":"), "data_offsets"},
  };
  for (const auto& [header, expected] : cases) {
    const auto read = SafetensorsFile::from_bytes(bytes_of(file_of(header)), "bad.safetensors");
    if (expected == "data_offsets") {  // a name of control characters is odd but legal
      CHECK(read);
      continue;
    }
    REQUIRE(!read);
    CHECK_MESSAGE(read.error().message().find(expected) != std::string::npos, read.error().message());
  }
}

// Whatever a random change makes of the file, the result is an error or views inside it.
TEST_CASE("randomly changed files are refused or sound") {
  std::mt19937 random(1);
  const std::string good = file_of(kHeader);
  int sound = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string file = good;
    for (auto change = random() % 3 + 1; change > 0; --change)
      file[random() % file.size()] = static_cast<char>(random());
    const auto read = SafetensorsFile::from_bytes(bytes_of(file), "random");
    if (!read) {
      CHECK(read.error().code() == Code::malformed);
      continue;
    }
    ++sound;
    for (const NamedTensor& tensor : read->tensors()) {
      const auto* begin = static_cast<const char*>(tensor.view.data);
      CHECK(begin >= file.data());
      CHECK(begin + tensor.view.nbytes() <= file.data() + file.size());
    }
  }
  MESSAGE(sound << " of 20000 stayed sound");
}

}  // namespace
}  // namespace inkling::test
