// CudaRecorder: chains of ops as CUDA graphs. The first call with a key runs the ops, so that memory grows
// and kernels load; the second records them; later ones launch the graph.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "engine/cuda/cuda_backend.h"

namespace inkling::cuda {

class CudaRecorder final : public Recorder {
 public:
  explicit CudaRecorder(CudaBackend& backend) : backend_(backend) {}
  ~CudaRecorder() override { forget(); }

  void run(std::span<const std::uint64_t> key, const std::function<void()>& ops) override;

 private:
  struct Chain {
    std::vector<std::uint64_t> key;
    cudaGraphExec_t graph = nullptr;  // null until recorded
    std::uint64_t used = 0;           // when it last ran
  };

  void forget() noexcept;
  Chain& chain_of(std::span<const std::uint64_t> key);
  void record(Chain& chain, const std::function<void()>& ops);

  CudaBackend& backend_;
  std::vector<Chain> chains_;
  std::uint64_t generation_ = 0, now_ = 0;
};

}  // namespace inkling::cuda
