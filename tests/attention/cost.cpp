// What sdpa() costs beside time: memory that grows with T alone, and what it tells the profiler.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <new>
#include <string_view>
#include <vector>

#include "engine/profiler.h"
#include "tests/attention/gradients.h"

namespace inkling {
namespace {

using test::Data;
using test::Gradients;
using test::Problem;
using test::Random;

Profiler::Row row_of(const Profiler& profiler, std::string_view name) {
  for (const Profiler::Row& row : profiler.rows()) {
    if (row.name == name) return row;
  }
  FAIL("no range " << name);
  return {};
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which take address space of their own
/// Until the end of the scope this process may map `room` bytes more than it has.
class AddressLimit {
 public:
  explicit AddressLimit(std::size_t room) {
    std::size_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    REQUIRE(::getrlimit(RLIMIT_AS, &before_) == 0);
    rlimit limit = before_;
    limit.rlim_cur = pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)) + room;
    REQUIRE(::setrlimit(RLIMIT_AS, &limit) == 0);
  }
  ~AddressLimit() { ::setrlimit(RLIMIT_AS, &before_); }
  AddressLimit(const AddressLimit&) = delete;
  AddressLimit& operator=(const AddressLimit&) = delete;

 private:
  rlimit before_{};
};

TEST_CASE("flash takes memory for T, not for T²: of 16384 tokens, forward and backward") {
  constexpr std::int64_t kTokens = 16384, kDim = 16;
  Random random(3);
  ExecContext context = test::make_context(supported_isas().back(), 2);
  Problem problem(random, DType::f32, 1, 1, kDim, {{kTokens, kTokens}});
  problem.set_mask(random, MaskKind::causal_lower_right, false);
  const Data dout(random, DType::f32, {kTokens, 1, kDim});
  Gradients gradients(problem);
  SdpaBackwardArgs args;
  args.forward = problem.args;
  args.dout = dout.view();
  args.dq = gradients.dq.view();
  args.dk = gradients.dk.view();
  args.dv = gradients.dv.view();
  // Keys and values in blocks, the same exchanged, the sums of dk and dv: 6 T·D floats for each of two
  // threads, and 2 T·D for the forward pass. A buffer is mapped with a huge page to spare, and the forward
  // pass has its scratch. Where a float for every weight would be 1 GiB, this is 26 MiB.
  constexpr std::size_t kRoom = (2 * 6 + 2) * kTokens * kDim * sizeof(float) + (std::size_t{12} << 20);
  const AddressLimit limit(kRoom);
  CHECK(sdpa(context, problem.args) == SdpaBackend::flash);
  CHECK(sdpa_backward(context, args) == SdpaBackend::flash);
  const SdpaScope scope(context, SdpaPolicy{{SdpaBackend::math}, SIZE_MAX});
  CHECK_THROWS_AS(sdpa(context, problem.args), std::bad_alloc);  // the limit is one
}
#endif

TEST_CASE("sdpa reports its bytes and flops, forward and backward, by backend") {
  Profiler profiler;
  ExecContext context({.threads = 1, .profiler = &profiler});
  Random random(4);
  Problem problem(random, DType::f32, 4, 2, 8, {{20, 30}, {3, 2}});
  problem.set_mask(random, MaskKind::causal_lower_right, false);
  const Data dout(random, DType::f32, {23, 4, 8});
  sdpa(context, problem.args);
  test::differentiate(context, problem, dout, SdpaBackend::flash);
  // Query i of the first sees 11 + i keys, those of the second 0, 1 and 2.
  constexpr double kScores = 4 * (20 * 11 + 19 * 20 / 2 + 3);
  const Profiler::Row forward = row_of(profiler, "sdpa flash 4x8"),
                      backward = row_of(profiler, "sdpa_backward flash 4x8");
  CHECK(forward.calls == 1);
  CHECK(forward.flops == 2 * 2 * 8 * kScores);
  CHECK(forward.bytes == 4 * 8 * (2 * 23 * 4 + 2 * 32 * 2));
  CHECK(backward.flops == 5 * 2 * 8 * kScores);
  CHECK(backward.bytes == 2 * forward.bytes);
  SdpaScope scope(context, {SdpaBackend::math});
  sdpa(context, problem.args);
  CHECK(row_of(profiler, "sdpa math 4x8").flops == forward.flops);
}

TEST_CASE("the flops of sdpa are those of the scores that its mask lets be seen") {
  for (const MaskKind kind : test::kMasks) {
    for (const bool each_head : {false, true}) {
      for (const std::int64_t left : {std::int64_t{0}, std::int64_t{5}, kUnlimited}) {
        Profiler profiler;
        ExecContext context({.threads = 1, .profiler = &profiler});
        Random random(4);
        Problem problem(random, DType::f32, 4, 2, 8, {{20, 30}, {40, 7}, {0, 3}, {2, 0}, {1, 9}});
        problem.set_mask(random, kind, each_head);
        problem.args.mask.left = left;
        double seen = 0;
        for (std::int64_t b = 0; b < problem.batch(); ++b) {
          const auto s = static_cast<std::size_t>(b);
          for (std::int64_t h = 0; h < problem.heads; ++h) {
            for (std::int64_t i = 0; i < problem.cu_q[s + 1] - problem.cu_q[s]; ++i) {
              for (std::int64_t j = 0; j < problem.cu_k[s + 1] - problem.cu_k[s]; ++j) {
                seen += problem.sees(b, h, i, j) ? 1 : 0;
              }
            }
          }
        }
        sdpa(context, problem.args);
        CAPTURE(mask_kind_name(kind));
        CHECK(row_of(profiler, "sdpa flash 4x8").flops == 2 * 2 * 8 * seen);
      }
    }
  }
}

TEST_CASE("a boolean mask that sequences, queries or keys share is counted for each of them") {
  Profiler profiler;
  ExecContext context({.threads = 1, .profiler = &profiler});
  Random random(4);
  Problem problem(random, DType::f32, 4, 2, 8, {{20, 30}, {40, 7}});
  problem.args.mask.kind = MaskKind::boolean;
  std::vector<std::uint8_t> visible(30, 1);
  visible[3] = visible[29] = 0;
  problem.args.mask.bias = TensorView(visible.data(), DType::boolean, {1, 1, 1, 30});
  sdpa(context, problem.args);
  CHECK(row_of(profiler, "sdpa flash 4x8").flops == 2 * 2 * 8 * 4 * (20 * 28 + 40 * 6));
}

}  // namespace
}  // namespace inkling
