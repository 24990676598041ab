// The CPU's Backend: cuts ops into blocks, runs them on the context's thread pool with one table of kernels.
#pragma once

#include <memory>

#include "engine/backend.h"
#include "engine/cpu/isa.h"
#include "engine/cpu/thread_pool.h"

namespace inkling {

/// `pool` outlives the backend.
std::unique_ptr<Backend> make_cpu_backend(ThreadPool& pool, Isa isa);

}  // namespace inkling
