#include "engine/cpu/isa.h"

#include <doctest/doctest.h>

#include <cstdlib>

#include "engine/exec_context.h"

using namespace inkling;

TEST_CASE("names of instruction sets parse and unknown ones do not") {
  for (const auto name : kIsaNames) CHECK(isa_name(parse_isa(name).value()) == name);
  CHECK_FALSE(parse_isa("sse9").has_value());
}

TEST_CASE("a choice explains every refusal") {
  const IsaChoice choice = choose_isa();
  CHECK(choice.refused.size() + 1 == std::size(kIsaNames));
  for (const auto& refusal : choice.refused) {
    CHECK(refusal.isa != choice.isa);
    CHECK_FALSE(refusal.reason.empty());
  }
}

TEST_CASE("INKLING_CPU_ISA forces a family, and a wrong name is an error that lists the right ones") {
  ::setenv("INKLING_CPU_ISA", "portable", 1);
  CHECK(ExecContext({.threads = 1}).isa() == Isa::portable);
  ::setenv("INKLING_CPU_ISA", "mmx", 1);
  CHECK_THROWS_WITH_AS(
      ExecContext({.threads = 1}),
      "INKLING_CPU_ISA: expected one of portable, avx2, avx512, avx512_vnni, avx512_bf16; got mmx", Error);
  ::unsetenv("INKLING_CPU_ISA");
}

TEST_CASE("a context refuses a thread count that cannot be had") {
  CHECK_THROWS_AS(ExecContext({.threads = -1}), Error);
  CHECK_THROWS_AS(ExecContext({.threads = 5000}), Error);
}
