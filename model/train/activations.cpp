#include "model/train/activations.h"

#include <algorithm>
#include <string_view>

#include "attention/sdpa.h"
#include "engine/exec_context.h"

namespace inkling {
namespace {

// Logits of a block of rows are the largest activation: 64 MiB of them, or a few rows. A GPU wants thousands
// of rows at a time.
std::int64_t most_logits(Device device) {
  return std::int64_t{1} << (device == Device::cpu ? 24 : 29);
}
constexpr std::int64_t kFewestRows = 64;

}  // namespace

Activations::Activations(const ModelConfig& config, std::int64_t vocab_rows, ExecContext& context, DType half)
    : Activations(config, vocab_rows, context.device(), half,
                  sdpa_reads_drawn(context, half, config.head_size()) ? Drawn::kept : Drawn::again) {}

Activations::Activations(const ModelConfig& config, std::int64_t vocab_rows, Device device, DType half,
                         Drawn drawn)
    : config_(config),
      vocab_rows_(vocab_rows),
      device_(device),
      half_(half),
      drawn_(drawn),
      keeps_(device != Device::cpu) {}

std::vector<Activations::Place> Activations::lay_out(const Pass& pass, ArenaPlan& plan, Views& v) const {
  const std::int64_t n = pass.cu_seqlens.back(), c = config_.n_embd, inner = config_.inner();
  const std::int64_t heads = config_.n_head;
  const bool backward = pass.direction == Direction::both;
  const bool draws = backward && drawn_ == Drawn::kept && pass.dropout > 0.0f;
  const std::size_t drawn_bytes = draws ? sdpa_drawn_bytes(heads, pass.cu_seqlens, pass.cu_seqlens) : 0;
  const std::int64_t rows = std::max(kFewestRows, most_logits(device_) / vocab_rows_);
  const std::int64_t blocks = std::max<std::int64_t>(1, (n + rows - 1) / rows), gradients = backward ? n : 0;

  std::vector<Place> places;
  const auto add = [&](TensorView& view, std::string_view name, std::int64_t height, std::int64_t width,
                       DType dtype = DType::f32) {
    places.push_back({&view, plan.add(name, height, width, dtype)});
    return places.back().entry;
  };
  const std::size_t normed = add(v.normed, "normed", n, c, half_);
  const std::size_t activated = keeps_ ? 0 : plan.add("activated", n, inner, half_);
  const auto kept_or = [&](std::size_t shared, TensorView& view, std::string_view name, std::int64_t width) {
    if (keeps_) {
      add(view, name, n, width, half_);
    } else {
      places.push_back({&view, shared});
    }
  };
  v.layers.resize(backward ? static_cast<std::size_t>(config_.n_layer) : 1);
  for (Layer& l : v.layers) {
    add(l.x, "input of attention", n, c);
    kept_or(normed, l.normed, "normed for attention", c);
    add(l.qkv, "queries, keys, values", n, 3 * c, half_);
    add(l.attended, "attention", n, c, half_);
    add(l.lse, "log-sum-exp", heads, n);
    add(l.middle, "input of the mlp", n, c);
    kept_or(normed, l.middle_normed, "normed for the mlp", c);
    add(l.wide, "mlp", n, inner, half_);
    kept_or(activated, l.activated, "activated", inner);
    l.drawn = {};
    if (!draws) continue;
    add(l.drawn, "dropout of attention", 1, static_cast<std::int64_t>(drawn_bytes / sizeof(float)));
  }
  add(v.x, "residual stream", n, c);
  add(v.branch, "branch", rounds_branches(pass.dropout) ? n : 0, c, half_);
  add(v.dx, "gradient of the residual stream", gradients, c);
  add(v.dbranch, "gradient of a branch", gradients, c, half_);
  add(v.dnormed, "gradient of a norm's output", gradients, c, half_);
  add(v.dattended, "gradient of attention", gradients, c, half_);
  add(v.dqkv, "gradient of queries, keys, values", gradients, 3 * c, half_);
  add(v.dwide, "gradient of the mlp", gradients, inner, half_);
  add(v.logits, "logits", (n + blocks - 1) / blocks, vocab_rows_, half_);
  add(v.losses, "losses", 1, n);
  return places;
}

std::size_t Activations::nbytes(const Pass& pass) const {
  // Above what is in a layer, in floats, so that no sum of the plan passes its type.
  const double most = static_cast<double>(pass.cu_seqlens.back()) * static_cast<double>(config_.n_layer + 2) *
                      static_cast<double>(16 * config_.n_embd + 4 * config_.inner());
  if (most * sizeof(float) > 0x1p62) return SIZE_MAX;
  ArenaPlan plan;
  Views views;
  lay_out(pass, plan, views);
  return plan.nbytes();
}

void Activations::place(const Pass& pass, Memory& memory) {
  plan_.clear();
  const std::vector<Place> places = lay_out(pass, plan_, views_);
  arena_.use(plan_, memory);
  for (const Place& place : places) *place.view = arena_.view(place.entry);
  views_.layers.resize(static_cast<std::size_t>(config_.n_layer), views_.layers.front());
}

}  // namespace inkling
