#include "attention/causal_bias.h"

#include <doctest/doctest.h>

#include "tests/attention/problem.h"

namespace inkling {
namespace {

using test::Data;
using test::make_context;
using test::Problem;
using test::Random;

TEST_CASE("causal biases print, compare and differ when Tq ≠ Tk") {
  CHECK(causal_upper_left(2, 5).to_string() == "1 0 0 0 0\n1 1 0 0 0\n");
  CHECK(causal_lower_right(2, 5).to_string() == "1 1 1 1 0\n1 1 1 1 1\n");
  CHECK(causal_lower_right(3, 2).to_string() == "0 0\n1 0\n1 1\n");
  CHECK(causal_upper_left(2, 10).to_string() == "1 0 0 0 0 0 0 0 0 0\n1 1 0 0 0 0 0 0 0 0\n");
  CHECK(causal_lower_right(2, 10).to_string() == "1 1 1 1 1 1 1 1 1 0\n1 1 1 1 1 1 1 1 1 1\n");
  CHECK(causal_upper_left(4, 4) == causal_lower_right(4, 4));
  CHECK(causal_upper_left(2, 10) == causal_upper_left(2, 10));
  CHECK(causal_upper_left(2, 10) != causal_lower_right(2, 10));
  CHECK_FALSE(causal_upper_left(2, 10) == causal_upper_left(2, 11));
  CHECK_THROWS_AS(causal_upper_left(-1, 2), Error);

  // The tutorial's example: 2 queries, 10 keys.
  ExecContext context = make_context(supported_isas().back(), 1);
  Random random(5);
  Problem upper(random, DType::f32, 2, 2, 16, {{2, 10}});
  Data lower(DType::f32, {2, 2, 16}), upper_again(DType::f32, {2, 2, 16});
  upper.args.mask = causal_upper_left(2, 10).mask();
  sdpa(context, upper.args);
  SdpaArgs args = upper.args;
  args.out = upper_again.view();
  args.mask.kind = MaskKind::causal_upper_left;
  sdpa(context, args);
  CHECK(upper_again.same_bits(upper.out));
  args.out = lower.view();
  args.mask = causal_lower_right(2, 10).mask();
  sdpa(context, args);
  CHECK_FALSE(lower.same_bits(upper.out));
}

TEST_CASE("a causal bias masks sequences of its own lengths alone") {
  ExecContext context = make_context(Isa::portable, 1);
  Random random(5);
  Problem problem(random, DType::f32, 2, 2, 8, {{2, 10}, {3, 5}});
  problem.args.mask = causal_lower_right(2, 10).mask();
  CHECK_THROWS_WITH_AS(
      sdpa(context, problem.args),
      "sdpa: mask: expected sequences of 2 queries and 10 keys, which the mask was made for, "
      "got 3 and 5 in sequence 1",
      Error);
  Problem twice(random, DType::f32, 2, 2, 8, {{2, 10}, {2, 10}});
  twice.args.mask = causal_lower_right(2, 10).mask();
  CHECK_NOTHROW(sdpa(context, twice.args));
}

}  // namespace
}  // namespace inkling
