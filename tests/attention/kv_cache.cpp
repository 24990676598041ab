#include "attention/kv_cache.h"

#include <doctest/doctest.h>

#include <cstring>
#include <set>
#include <string>

#include "tests/allocations.h"

namespace inkling {
namespace {

constexpr KvShape kSmall{2, 3, 20, DType::f32};

/// Counts what is taken of it, and refuses to copy when told to.
class WatchedMemory : public Memory {
 public:
  std::int64_t taken = 0;
  bool copies = true;

  Buffer allocate(std::size_t bytes) override {
    ++taken;
    return Memory::allocate(bytes);
  }
  void copy(void* to, const void* from, std::size_t bytes) override {
    require(copies, Code::internal, [] { return "no copy"; });
    Memory::copy(to, from, bytes);
  }
};

void write(KvSequence& sequence, std::int64_t tokens, char byte) {
  sequence.reserve(tokens);
  for (std::int64_t t = sequence.length(); t < sequence.length() + tokens; ++t) {
    // One byte per token is enough to tell pages apart.
    sequence.pages()[static_cast<std::size_t>(t / kKvPageTokens)][t % kKvPageTokens] =
        static_cast<std::byte>(byte);
  }
  sequence.advance(tokens);
}

char read(const KvSequence& sequence, std::int64_t t) {
  return static_cast<char>(sequence.pages()[static_cast<std::size_t>(t / kKvPageTokens)][t % kKvPageTokens]);
}

TEST_CASE("a page holds K [D][64] and V [64][Dp] of every layer and head") {
  CHECK(kSmall.padded_dim() == 32);
  CHECK(kSmall.k_bytes() == 20 * 64 * 4);
  CHECK(kSmall.head_bytes() == (20 + 32) * 64 * 4);
  CHECK(kSmall.page_bytes() == 6 * kSmall.head_bytes());
  CHECK(kSmall.offset(1, 2) == 5 * kSmall.head_bytes());
}

TEST_CASE("shapes out of range are refused") {
  CHECK_THROWS_AS(KvPool({0, 1, 64, DType::f32}), Error);
  CHECK_THROWS_AS(KvPool({1, 0, 64, DType::f32}), Error);
  CHECK_THROWS_AS(KvPool({1, 1, 257, DType::f32}), Error);
  CHECK_THROWS_AS(KvPool({1, 1, 64, DType::i8}), Error);
}

TEST_CASE("pages come and go, and a steady state allocates none") {
  WatchedMemory memory;
  KvPool pool(kSmall, 0, &memory);
  CHECK(memory.taken == 0);
  {
    KvSequence a(pool), b(pool);
    write(a, 64, 'a');
    CHECK(pool.used_pages() == 1);
    write(a, 1, 'a');
    CHECK(pool.used_pages() == 2);
    write(b, 130, 'b');
    CHECK(pool.used_pages() == 5);
    CHECK(pool.bytes_for(130) == 3 * pool.bytes_for(1));
    a.truncate(64);
    CHECK(pool.used_pages() == 4);
    CHECK(a.length() == 64);
    CHECK(a.room() == 0);
  }
  CHECK(pool.used_pages() == 0);
  const std::int64_t taken = memory.taken;
  CHECK(taken > 0);
  for (int i = 0; i < 10; ++i) {
    KvSequence c(pool);
    write(c, 320, 'c');
  }
  CHECK(memory.taken == taken);
}

TEST_CASE("forks share pages until one of them writes") {
  KvPool pool(kSmall);
  KvSequence a(pool);
  write(a, 100, 'a');
  KvSequence b = a.fork();
  CHECK(b.length() == 100);
  CHECK(pool.used_pages() == 2);
  CHECK(a.pages()[1] == b.pages()[1]);
  write(b, 3, 'b');
  CHECK(pool.used_pages() == 3);
  CHECK(a.pages()[0] == b.pages()[0]);
  CHECK(a.pages()[1] != b.pages()[1]);
  write(a, 3, 'A');
  CHECK(pool.used_pages() == 3);
  CHECK(read(b, 99) == 'a');
  CHECK(read(b, 100) == 'b');
  CHECK(read(a, 100) == 'A');

  // Truncating into a shared full page and writing on leaves the other sequence alone.
  b.truncate(10);
  write(b, 5, 'x');
  CHECK(read(a, 12) == 'a');
  CHECK(read(b, 9) == 'a');
  CHECK(read(b, 12) == 'x');
}

TEST_CASE("room reserved before a fork or truncation is not room after it") {
  KvPool pool(kSmall);
  KvSequence a(pool);
  write(a, 70, 'a');
  a.reserve(10);
  CHECK(a.room() == 10);
  KvSequence b = a.fork();
  CHECK(a.room() == 0);
  CHECK(b.room() == 0);
  CHECK_THROWS_AS(a.advance(1), Error);
  a.reserve(10);
  a.truncate(69);
  CHECK_THROWS_AS(a.advance(1), Error);
}

TEST_CASE("sequences move") {
  KvPool pool(kSmall);
  KvSequence a(pool);
  write(a, 70, 'a');
  KvSequence b = std::move(a);
  CHECK(b.length() == 70);
  CHECK(a.length() == 0);  // NOLINT(bugprone-use-after-move): a moved-from sequence is empty
  KvSequence c(pool);
  write(c, 1, 'c');
  c = std::move(b);
  CHECK(pool.used_pages() == 2);
  write(a, 1, 'n');
  CHECK(read(c, 69) == 'a');
}

TEST_CASE("a reserve that fails, at any allocation or in the copy, keeps no page") {
  // Twice, for what the first failure has left of the lists.
  bool first_failed = true;
  for (std::int64_t first = 0; first_failed; ++first) {
    REQUIRE(first < 100);
    bool second_failed = true;
    for (std::int64_t second = 0; second_failed; ++second) {
      REQUIRE(second < 100);
      CAPTURE(first);
      CAPTURE(second);
      KvPool pool(kSmall);
      KvSequence a(pool);
      const auto fails = [&](std::int64_t at) {
        const test::FailingAllocation failing(at);
        try {
          a.reserve(100);
        } catch (const std::exception&) {
          return true;
        }
        return false;
      };
      first_failed = fails(first);
      CHECK(pool.used_pages() == (first_failed ? 0 : 2));
      second_failed = fails(second);
      CHECK(pool.used_pages() == (first_failed && second_failed ? 0 : 2));
      a.reserve(100);
      CHECK(pool.used_pages() == 2);
      CHECK(a.room() == 100);
      a.truncate(0);
      CHECK(pool.used_pages() == 0);
    }
  }
  WatchedMemory memory;
  KvPool pool(kSmall, 0, &memory);
  KvSequence a(pool);
  write(a, 70, 'a');
  KvSequence b = a.fork();
  memory.copies = false;
  CHECK_THROWS_WITH_AS(b.reserve(100), "no copy", Error);
  CHECK(b.length() == 70);
  CHECK(b.room() == 0);
  CHECK(pool.used_pages() == 2);
  memory.copies = true;
  write(b, 1, 'b');
  CHECK(pool.used_pages() == 3);
  CHECK(read(b, 69) == 'a');
}

TEST_CASE("out of memory names the figures and changes nothing") {
  const std::size_t page = KvPool(kSmall).bytes_for(1);
  KvPool pool(kSmall, 3 * page);
  KvSequence a(pool);
  write(a, 100, 'a');
  std::string message;
  try {
    a.reserve(1000);
  } catch (const Error& error) {
    CHECK(error.code() == Code::out_of_memory);
    message = error.what();
  }
  CHECK(message.find("limit") != std::string::npos);
  CHECK(message.find("MiB") != std::string::npos);
  CHECK(a.length() == 100);
  CHECK(pool.used_pages() == 2);
  CHECK_NOTHROW(a.reserve(92));
  KvSequence b = a.fork();
  CHECK_THROWS_AS(b.reserve(92), Error);  // the copy of the shared page does not fit beside a third page
  CHECK(b.length() == 100);
  CHECK(pool.used_pages() == 2);
  CHECK_NOTHROW(b.reserve(1));
  CHECK_THROWS_AS(a.truncate(101), Error);
  CHECK_THROWS_AS(a.reserve(-1), Error);
  CHECK_THROWS_AS(a.reserve(INT64_MAX), Error);
}

}  // namespace
}  // namespace inkling
