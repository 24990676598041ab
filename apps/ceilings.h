// What this machine can do at most, measured in about a second; what this process has used.
#pragma once

#include "engine/exec_context.h"

namespace inkling::app {

struct Ceilings {
  double read_gb_s = 0;  ///< streaming reads, all threads
  double gflop_s = 0;    ///< f32 fused multiply-adds, all threads; 0 where they cannot be measured
};
/// Uses the context's threads. Best of a few passes: every disturbance only lowers a ceiling.
Ceilings measure_ceilings(ExecContext& context);
/// Its gflop_s alone, in half the time.
double measure_gflop_s(ExecContext& context);

/// The most memory that this process ever held resident, in MB (10⁶ bytes).
double peak_rss_mb();

}  // namespace inkling::app
