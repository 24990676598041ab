#include "model/train/mpi_communicator.h"

#include <cstdlib>
#include <string>

#include "engine/base/error.h"

#ifdef INKLING_MPI
#include <mpi.h>

#include <algorithm>
#include <exception>
#include <vector>
#endif

namespace inkling {
namespace {

// What mpirun, prun and srun tell those whom they start.
bool started_by_mpirun() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

#ifdef INKLING_MPI
void check(int status, const char* what) {
  require(status == MPI_SUCCESS, Code::device,
          [&] { return std::string("mpi: ") + what + " failed with status " + std::to_string(status); });
}

// Sums in the order of the ranks, which MPI_Allreduce does not promise: every process gathers a piece of all
// and adds for itself.
class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator() {
    check(MPI_Init(nullptr, nullptr), "MPI_Init");
    check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size");
  }
  // On the way out of a failure the others may be anywhere: mpirun ends them when this process goes.
  ~MpiCommunicator() override {
    if (std::uncaught_exceptions() == 0) MPI_Finalize();
  }

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }
  void sum(std::span<float> values) override { add(values, MPI_FLOAT); }
  void sum(std::span<double> values) override { add(values, MPI_DOUBLE); }

 private:
  template <class T>
  void add(std::span<T> values, MPI_Datatype type) {
    constexpr std::size_t kPiece = std::size_t{1} << 18;
    std::vector<T> all(std::min(kPiece, values.size()) * static_cast<std::size_t>(size_));
    for (std::size_t begin = 0; begin < values.size(); begin += kPiece) {
      const std::span<T> piece = values.subspan(begin, std::min(kPiece, values.size() - begin));
      const int count = static_cast<int>(piece.size());
      check(MPI_Allgather(piece.data(), count, type, all.data(), count, type, MPI_COMM_WORLD),
            "MPI_Allgather");
      for (std::size_t i = 0; i < piece.size(); ++i) {
        T total = all[i];
        for (std::size_t r = 1; r < static_cast<std::size_t>(size_); ++r) total += all[r * piece.size() + i];
        piece[i] = total;
      }
    }
  }

  int rank_ = 0, size_ = 1;
};
#endif

}  // namespace

std::unique_ptr<Communicator> join_mpi() {
  if (!started_by_mpirun()) return nullptr;
#ifdef INKLING_MPI
  return std::make_unique<MpiCommunicator>();
#else
  throw Error(Code::device,
              "mpi: expected a build with INKLING_MPI=ON, got one of mpirun's processes without");
#endif
}

}  // namespace inkling
