// The processes that `mpirun` started, as a Communicator. Built in with INKLING_MPI=ON.
#pragma once

#include <memory>

#include "model/train/communicator.h"

namespace inkling {

/// Joins the processes of this MPI job, and leaves it when destroyed. Null when mpirun did not start this
/// process. At most once in a process, as MPI has it. Throws Error{device} when MPI cannot start, and when
/// mpirun started this process but the build has no MPI.
std::unique_ptr<Communicator> join_mpi();

}  // namespace inkling
