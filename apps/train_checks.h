// What a run would meet later, asked of a model that is not there yet.
#pragma once

#include <cstdint>

#include "apps/train_run.h"
#include "engine/exec_context.h"
#include "weights/config.h"

namespace inkling::app {

/// Holds what each of `ranks` processes takes against --max-memory, or on the CPU against what is available:
/// a process that takes more is ended by the system without a word. A GPU refuses by itself. Throws
/// Error{out_of_memory} with both figures.
void check_memory(ExecContext& context, const TrainCommand& command, const ModelConfig& config,
                  std::int64_t ranks);

/// Asks the backends that the context allows for full blocks of a batch, forward and backward. Throws
/// Error{usage} with every refusal when there is none.
void check_attention(ExecContext& context, const TrainCommand& command, const ModelConfig& config);

}  // namespace inkling::app
