// What `inkling bench sdpa` has measured, and its three forms.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "apps/bench.h"
#include "apps/timing.h"

namespace inkling::app {

struct SdpaRow {
  std::string experiment, shape, what;
  Spread time;  ///< seconds; zero where it was refused
  double flops = 0, bytes = 0;
  std::string note;  ///< why it was refused, or what the figures cannot say
};

struct SdpaTable {
  int threads = 1;
  std::string_view arithmetic;  ///< arithmetic_name()
  double peak = 0;              ///< GFLOP/s of f32 that this machine was seen to do; 0: unknown
  std::vector<SdpaRow> rows;
};

/// To standard output.
void write(const SdpaTable& table, Table form);

}  // namespace inkling::app
