// What `inkling bench` prints of its measurements.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "apps/bench.h"
#include "apps/timing.h"

namespace inkling::app {

/// One test of a model.
struct BenchRow {
  std::string test;  ///< "pp512", "tg128", "tg128 @ d64"
  std::int64_t batch = 1;
  Spread rate;         ///< tokens a second
  double ceiling = 0;  ///< tokens a second that the machine's measured limits allow; 0: not known
};

/// What all tests of a run have in common.
struct BenchRun {
  std::string model, dtype, quant, isa;
  int threads = 0;
  double rss_mb = 0, load_ms = 0;
};

/// A column of the share of the ceiling reached: for tables, not for JSON.
enum class CeilingColumn : std::uint8_t { hidden, shown };

/// Writes all rows to standard output.
void print_bench(std::span<const BenchRow> rows, const BenchRun& run, Table form, CeilingColumn ceiling);

}  // namespace inkling::app
