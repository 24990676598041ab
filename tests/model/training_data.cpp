// What training reads: the file of ids against every fault, and the batches cut from it.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <map>
#include <numeric>
#include <string>

#include "model/train/batches.h"
#include "tests/model/random_gpt2.h"

namespace inkling {
namespace {

using test::TemporaryFolder;
using Ids = std::vector<std::int32_t>;

Ids rising(std::int32_t count) {
  Ids ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

struct Written {
  TemporaryFolder folder;
  std::filesystem::path path = folder.path() / "data.tokens";
  Written(const Ids& ids, const std::vector<std::int64_t>& ends) {
    write_token_data(path, ids, ends, std::string(64, 'a')).value();
  }
  TokenData open() const { return TokenData::open(path).value(); }
};

}  // namespace

TEST_CASE("ids come back, in two bytes or four") {
  for (const std::int32_t last : {65535, 65536}) {
    Ids ids = rising(10);
    ids.push_back(last);
    const Written written(ids, {0, 4, 4, 11});
    const TokenData data = written.open();
    CHECK(std::filesystem::file_size(written.path) == 96 + 4 * 8 + 11 * (last > 65535 ? 4 : 2));
    REQUIRE(data.size() == 11);
    CHECK(data.documents() == 4);
    CHECK(data.source() == std::string(64, 'a'));
    Ids back(11);
    data.copy(0, back);
    CHECK(back == ids);
    const std::vector<std::int64_t> documents{1, 1, 1, 1, 3, 3, 3, 3, 3, 3, 3};
    for (std::int64_t i = 0; i < 11; ++i)
      CHECK(data.document_of(i) == documents[static_cast<std::size_t>(i)]);
  }
}

TEST_CASE("nanoGPT's binaries are ids of two bytes and one document") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "train.bin";
  std::ofstream(path, std::ios::binary) << std::string("\x01\x00\xff\xff", 4);
  const TokenData data = TokenData::open_u16(path).value();
  CHECK(data.size() == 2);
  CHECK(data.id(1) == 65535);
  CHECK(data.document_end(data.document_of(1)) == 2);
  std::ofstream(path, std::ios::binary | std::ios::app) << 'x';
  CHECK(TokenData::open_u16(path).error().code() == Code::malformed);
}

TEST_CASE("nanoGPT's binaries split into documents after each end of text") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "train.bin";
  const auto ends_of = [&](const std::vector<std::uint16_t>& ids) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(ids.data()), static_cast<std::streamsize>(2 * ids.size()));
    TokenData opened = TokenData::open_u16(path, 9).value();
    const TokenData data = std::move(opened);  // and the ends stay what they are
    std::vector<std::int64_t> ends;
    for (std::int64_t d = 0; d < data.documents(); ++d) ends.push_back(data.document_end(d));
    return ends;
  };
  using Ends = std::vector<std::int64_t>;
  CHECK(ends_of({1, 2, 9, 3, 9}) == Ends{3, 5});
  CHECK(ends_of({9, 9, 1, 2}) == Ends{1, 2, 4});
  CHECK(ends_of({1, 2, 3}) == Ends{3});
  CHECK(ends_of({9}) == Ends{1});
  CHECK(ends_of({}).empty());
}

TEST_CASE("the first id outside a vocabulary is found, and ids as they lie in the file") {
  for (const std::int32_t wide : {7, 70000}) {
    const Written written({3, 0, wide, 5, 8}, {5});
    const TokenData data = written.open();
    CHECK(data.first_outside(0, 5, wide + 2) == std::nullopt);
    CHECK(data.first_outside(0, 5, 7) == 2);
    CHECK(data.first_outside(3, 5, 7) == 4);
    CHECK(data.first_outside(0, 2, 3) == 0);
    CHECK(data.first_outside(1, 2, 3) == std::nullopt);
    const auto bytes = data.bytes(1, 4);
    REQUIRE(bytes.size() == 3 * (wide == 7 ? 2 : 4));
    CHECK(bytes[2 * bytes.size() / 3] == std::byte{5});
  }
  const Written negative({1, -1}, {2});
  CHECK(negative.open().first_outside(0, 2, 2) == 1);
}

TEST_CASE("every truncation and every changed field of a small file is refused or harmless") {
  const Written written(rising(20), {5, 12, 20});
  std::ifstream in(written.path, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  const auto opened = [&](const std::string& bytes) {
    std::ofstream(written.path, std::ios::binary) << bytes;
    return TokenData::open(written.path);
  };
  for (std::size_t n = 0; n < whole.size(); ++n) {
    const auto result = opened(whole.substr(0, n));
    REQUIRE(!result);
    CHECK(result.error().code() == Code::malformed);
    CHECK(result.error().message().find("data.tokens") != std::string::npos);
  }
  // The magic, the width, the counts, and where documents end.
  for (const std::size_t at : {0, 8, 16, 24, 96, 104, 112}) {
    for (const std::uint64_t value :
         {std::uint64_t{0}, UINT64_MAX, std::uint64_t{1} << 63, std::uint64_t{21}}) {
      std::string bytes = whole;
      std::memcpy(bytes.data() + at, &value, at == 8 ? 4 : 8);
      if (const auto result = opened(bytes); result) {
        CHECK(bytes.compare(at, 8, whole, at, 8) != 0);
        CHECK(at == 96);  // a first document that is empty
        CHECK(value == 0);
      }
    }
  }
  CHECK(write_token_data(written.path, rising(3), std::vector<std::int64_t>{2}, "").error().code() ==
        Code::usage);
  CHECK(write_token_data(written.path, rising(3), std::vector<std::int64_t>{2, 1, 3}, "").error().code() ==
        Code::usage);
}

TEST_CASE("blocks are runs of the data from anywhere, each start as likely") {
  const Written written(rising(40), {40});
  const TokenData data = written.open();
  const BatchShape shape{Packing::blocks, 4, 8, 7};
  std::map<std::int32_t, int> starts;
  constexpr std::uint64_t kBatches = 4000;
  for (std::uint64_t n = 0; n < kBatches; ++n) {
    const TrainingBatch batch = draw_batch(data, shape, Split::train, n);
    REQUIRE(batch.tokens() == 32);
    REQUIRE(batch.cu_seqlens == std::vector<std::int32_t>{0, 8, 16, 24, 32});
    for (std::size_t i = 0; i < 32; ++i) {
      REQUIRE(batch.targets[i] == batch.ids[i] + 1);
      REQUIRE(batch.positions[i] == static_cast<std::int32_t>(i % 8));
    }
    for (std::size_t b = 0; b < 4; ++b) ++starts[batch.ids[8 * b]];
  }
  // 32 starts, 500 draws each; five standard deviations.
  CHECK(starts.size() == 32);
  for (const auto& [start, count] : starts) CHECK(std::abs(count - 500) < 5 * 22);
}

TEST_CASE("a batch is a function of its number, and splits differ") {
  const Written written(rising(5000), {5000});
  const TokenData data = written.open();
  const BatchShape shape{Packing::blocks, 8, 16, 1};
  const Ids first = draw_batch(data, shape, Split::train, 3).ids;
  CHECK(draw_batch(data, shape, Split::train, 3).ids == first);
  CHECK(draw_batch(data, shape, Split::train, 4).ids != first);
  CHECK(draw_batch(data, shape, Split::train, 3 + (std::uint64_t{1} << 32)).ids != first);
  CHECK(draw_batch(data, shape, Split::train_loss, 3).ids != first);
  BatchShape other = shape;
  other.seed = 2;
  CHECK(draw_batch(data, other, Split::train, 3).ids != first);
}

TEST_CASE("packed documents come whole, and none has a target in the next") {
  const std::vector<std::int64_t> ends{5, 6, 30, 41};
  const Written written(rising(41), ends);
  const TokenData data = written.open();
  const BatchShape shape{Packing::documents, 3, 10, 5};
  std::vector<int> seen(41);
  for (std::uint64_t n = 0; n < 500; ++n) {
    const TrainingBatch batch = draw_batch(data, shape, Split::train, n);
    REQUIRE(batch.tokens() == 30);
    for (std::size_t b = 0; b + 1 < batch.cu_seqlens.size(); ++b) {
      const auto begin = static_cast<std::size_t>(batch.cu_seqlens[b]);
      const auto end = static_cast<std::size_t>(batch.cu_seqlens[b + 1]);
      REQUIRE(end > begin);
      REQUIRE(end - begin <= 10);
      const std::int64_t document = data.document_of(batch.ids[begin]);
      const std::int64_t first = document == 0 ? 0 : ends[static_cast<std::size_t>(document) - 1];
      CHECK((batch.ids[begin] - first) % 10 == 0);
      for (std::size_t i = begin; i < end; ++i) {
        const std::int32_t id = batch.ids[i];
        ++seen[static_cast<std::size_t>(id)];
        REQUIRE(data.document_of(id) == document);
        REQUIRE(batch.positions[i] == static_cast<std::int32_t>(i - begin));
        const bool last = id + 1 == ends[static_cast<std::size_t>(document)];
        REQUIRE(batch.targets[i] == (last ? kNoTarget : id + 1));
      }
    }
  }
  CHECK(std::ranges::all_of(seen, [](int count) { return count > 0; }));
}

TEST_CASE("data too short for a batch is refused with both numbers") {
  const Written written(rising(8), {8});
  const TokenData data = written.open();
  try {
    draw_batch(data, {Packing::blocks, 1, 8, 0}, Split::train, 0);
    FAIL("no error");
  } catch (const Error& error) {
    CHECK(error.code() == Code::usage);
    CHECK(error.message().find("at least 9 ids, got 8") != std::string::npos);
  }
  CHECK(draw_batch(data, {Packing::blocks, 1, 7, 0}, Split::train, 0).tokens() == 7);
}

}  // namespace inkling
