#include "engine/cuda/cuda_recorder.h"

#include <algorithm>

#include "engine/cuda/check.h"

namespace inkling::cuda {
namespace {

constexpr std::size_t kMostChains = 64;  // a server's batch sizes, at a few lengths each

}  // namespace

void CudaRecorder::forget() noexcept {
  for (const Chain& chain : chains_) {
    if (chain.graph != nullptr) cudaGraphExecDestroy(chain.graph);
  }
  chains_.clear();
}

// The chain of this key; a new one takes the place of that which has not run for longest.
CudaRecorder::Chain& CudaRecorder::chain_of(std::span<const std::uint64_t> key) {
  const auto found =
      std::ranges::find_if(chains_, [&](const Chain& c) { return std::ranges::equal(c.key, key); });
  if (found != chains_.end()) return *found;
  if (chains_.size() < kMostChains) {
    chains_.push_back({{key.begin(), key.end()}});
    return chains_.back();
  }
  Chain& oldest = *std::ranges::min_element(chains_, {}, &Chain::used);
  if (oldest.graph != nullptr) cudaGraphExecDestroy(oldest.graph);
  oldest = {{key.begin(), key.end()}};
  return oldest;
}

void CudaRecorder::record(Chain& chain, const std::function<void()>& ops) {
  const cudaStream_t stream = backend_.stream();
  cudaGraph_t graph = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin to record");
  backend_.set_recording(true);
  try {
    ops();
  } catch (...) {
    backend_.set_recording(false);
    if (cudaStreamEndCapture(stream, &graph) == cudaSuccess) cudaGraphDestroy(graph);
    cudaGetLastError();  // of the capture that was given up
    throw;
  }
  backend_.set_recording(false);
  check(cudaStreamEndCapture(stream, &graph), "record");
  const cudaError_t error = cudaGraphInstantiate(&chain.graph, graph, 0);
  cudaGraphDestroy(graph);
  check(error, "instantiate a recording");
}

void CudaRecorder::run(std::span<const std::uint64_t> key, const std::function<void()>& ops) {
  if (generation_ != backend_.generation()) forget();
  generation_ = backend_.generation();
  Chain& chain = chain_of(key);
  if (chain.used == 0) {
    ops();  // may throw: then it has not run
    chain.used = ++now_;
    return;
  }
  chain.used = ++now_;
  if (chain.graph == nullptr) record(chain, ops);
  check(cudaGraphLaunch(chain.graph, backend_.stream()), "repeat");
}

}  // namespace inkling::cuda
