#include "apps/model_ceiling.h"

#include <algorithm>

namespace inkling::app {

// All weights but the positions, and the embedding when the head is another matrix.
double ModelCeiling::step_bytes() const {
  const bool tied = &model_.head() == &model_.embedding();
  return static_cast<double>(model_.nbytes() - model_.positions().nbytes() -
                             (tied ? 0 : model_.embedding().bytes));
}

double ModelCeiling::layer_flops() const {
  double flops = 0;
  for (const LayerWeights& l : model_.layers()) {
    for (const auto* w : {&l.qkv, &l.proj, &l.fc, &l.fcproj}) {
      flops += 2.0 * static_cast<double>(w->weight.k) * static_cast<double>(w->weight.n);
    }
  }
  return flops;
}

double ModelCeiling::head_flops() const {
  return 2.0 * static_cast<double>(model_.head().k) * static_cast<double>(model_.head().n);
}

double ModelCeiling::decode(std::int64_t batch) const {
  const auto b = static_cast<double>(batch);
  const double read = step_bytes() / (machine_.read_gb_s * 1e9);
  const double compute =
      machine_.gflop_s > 0 ? b * (layer_flops() + head_flops()) / (machine_.gflop_s * 1e9) : 0;
  return b / std::max(read, compute);
}

double ModelCeiling::prefill(std::int64_t length) const {
  if (machine_.gflop_s <= 0) return 0;
  const auto n = static_cast<double>(length);
  return n / ((n * layer_flops() + head_flops()) / (machine_.gflop_s * 1e9));
}

}  // namespace inkling::app
