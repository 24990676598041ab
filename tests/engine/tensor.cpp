#include "engine/tensor.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <vector>

#include "engine/arena.h"
#include "engine/exec_context.h"

using namespace inkling;

TEST_CASE("f16 and bf16 keep every value of their own through f32") {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    f16 half;
    half.bits = static_cast<std::uint16_t>(bits);
    const auto wide = static_cast<float>(half);
    if (!std::isnan(wide)) REQUIRE(f16(wide).bits == half.bits);
    bf16 brain;
    brain.bits = static_cast<std::uint16_t>(bits);
    const auto brain_wide = static_cast<float>(brain);
    if (!std::isnan(brain_wide)) REQUIRE(bf16(brain_wide).bits == brain.bits);
  }
}

TEST_CASE("f16 agrees with the compiler's conversion on a sweep of all f32 exponents") {
#if defined(__FLT16_MANT_DIG__)
  for (std::uint64_t u = 0; u < 0x100000000u; u += 65521) {  // a prime step: every exponent, many mantissas
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(u));
    if (std::isnan(value)) continue;
    const auto expected = std::bit_cast<std::uint16_t>(static_cast<_Float16>(value));
    REQUIRE(f16(value).bits == expected);
  }
#else
  MESSAGE("SKIPPED: this compiler has no _Float16");
#endif
}

TEST_CASE("bf16 rounds to nearest even") {
  CHECK(static_cast<float>(bf16(1.0f + 0x1p-8f)) == 1.0f);              // a tie goes to even
  CHECK(static_cast<float>(bf16(1.0f + 0x1.8p-7f)) == 1.0f + 0x1p-6f);  // and so does the next
  CHECK(static_cast<float>(bf16(1.0f + 0x1.02p-8f)) == 1.0f + 0x1p-7f);
  CHECK(std::isnan(static_cast<float>(bf16(std::nanf("")))));
  CHECK(std::isinf(static_cast<float>(bf16(3.4e38f))));
}

TEST_CASE("views know their extents") {
  float data[24] = {};
  TensorView v(data, DType::f32, {2, 3, 4});
  CHECK(v.numel() == 24);
  CHECK(v.nbytes() == 96);
  CHECK(v.contiguous());
  CHECK(v.shape_string() == "[2, 3, 4]");
  v.stride[0] = 24;
  CHECK_FALSE(v.contiguous());
  CHECK(TensorView(data, DType::f32, {3, 0, 4}).contiguous());
  CHECK_THROWS_WITH_AS((void)v.as<int>(), "tensor: dtype: got f32, asked for another", Error);
  CHECK_THROWS_AS(TensorView(data, DType::f32, {1, 1, 1, 1, 1}), Error);
  CHECK_THROWS_AS(TensorView(data, DType::f32, {-1}), Error);
}

TEST_CASE("sizes that overflow are refused, zero extents are legal") {
  const std::int64_t huge[] = {std::int64_t{1} << 40, std::int64_t{1} << 40};
  CHECK_THROWS_AS((void)checked_nbytes(huge, DType::f32), Error);
  const std::int64_t empty[] = {0, std::int64_t{1} << 62};
  CHECK(checked_nbytes(empty, DType::f64) == 0);
  CHECK(TensorView(nullptr, DType::f64, empty).numel() == 0);
  CHECK_THROWS_AS(TensorView(nullptr, DType::f32, huge), Error);
  const std::int64_t beside[] = {0, std::int64_t{1} << 62, 4};  // whose strides are products, too
  CHECK_THROWS_AS(TensorView(nullptr, DType::f32, beside), Error);
}

TEST_CASE("buffers are aligned, move, and refuse what cannot be had") {
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{100}, std::size_t{5} << 20}) {
    Buffer a(bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(a.data()) % 64 == 0);
    a.data()[bytes - 1] = std::byte{1};
    std::byte* where = a.data();
    Buffer b = std::move(a);
    CHECK(b.data() == where);
  }
  try {
    const Buffer impossible(std::size_t{1} << 60);
    FAIL("an exbibyte was had");
  } catch (const Error& error) {
    CHECK(error.code() == Code::out_of_memory);
  }
}

TEST_CASE("an arena lays a plan out and grows only when it must") {
  ArenaPlan plan;
  const auto a = plan.add("a", 3, 64), b = plan.add("b", 2, 5);
  ExecContext context({.device = Device::cpu, .threads = 1});
  Arena arena;
  arena.use(plan, context.backend());
  const TensorView va = arena.view(a), vb = arena.view(b);
  CHECK(va.stride[0] == 80);  // five lines: odd
  CHECK(vb.stride[0] == 16);
  CHECK(static_cast<float*>(vb.data) - static_cast<float*>(va.data) == 240);
  const std::size_t bytes = arena.nbytes();
  plan.clear();
  (void)plan.add("c", 1, 8);
  arena.use(plan, context.backend());
  CHECK(arena.nbytes() == bytes);
}

TEST_CASE("entries of an arena lie where dead ones lay, and the largest use counts") {
  ArenaPlan plan;
  const auto kept = plan.add("kept", 1, 16), dead = plan.add("dead", 2, 16), gone = plan.add("gone", 1, 16);
  const std::size_t before = plan.nbytes();
  plan.reuse(dead);
  const auto first = plan.add("first", 1, 16), second = plan.add("second", 1, 16);
  CHECK(plan.nbytes() == before);
  ExecContext context({.device = Device::cpu, .threads = 1});
  Arena arena;
  arena.use(plan, context.backend());
  CHECK(arena.view(first).data == arena.view(dead).data);
  CHECK(static_cast<float*>(arena.view(second).data) == static_cast<float*>(arena.view(first).data) + 16);
  CHECK(arena.view(kept).data != arena.view(first).data);
  CHECK(arena.view(gone).data != arena.view(dead).data);
  (void)plan.add("third", 4, 16);
  CHECK(plan.nbytes() == before + 3 * 64);
  plan.clear();
  CHECK(plan.nbytes() == 0);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // whose own memory would count
TEST_CASE("a block a little over 2 MiB keeps a little over 2 MiB resident") {
  const auto resident = [] {
    std::ifstream statm("/proc/self/statm");
    std::size_t size = 0, pages = 0;
    statm >> size >> pages;
    return pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  };
  constexpr std::size_t kBytes = (std::size_t{2} << 20) + (std::size_t{256} << 10), kBlocks = 16;
  std::vector<Buffer> blocks;
  blocks.reserve(kBlocks);
  const std::size_t before = resident();
  for (std::size_t i = 0; i < kBlocks; ++i) {
    std::memset(blocks.emplace_back(kBytes).data(), 1, kBytes);
    CHECK(reinterpret_cast<std::uintptr_t>(blocks.back().data()) % (std::size_t{2} << 20) == 0);
  }
  CHECK(resident() - before >= kBlocks * kBytes);
  CHECK(resident() - before < kBlocks * (kBytes + (std::size_t{256} << 10)));
}
#endif
