// What this machine can do at most, measured in about a second; and what this process has used.
#pragma once

#include <cstdint>

#include "engine/exec_context.h"

namespace inkling::app {

struct Ceilings {
  double read_gb_s = 0.0;    ///< streaming reads of 256 MB by all threads
  double fma_gflop_s = 0.0;  ///< f32 products that stay in cache, all threads
};
Ceilings measure_ceilings(ExecContext& context);

/// The most memory this process ever held resident, in MiB.
double peak_rss_mib();

}  // namespace inkling::app
