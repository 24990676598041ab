// Forward: one packed step of a GPT-2 (Radford et al. 2019 §2.3; pre-norm blocks, learned positions).
//
//   embed → L × { x += proj(attention(ln1(x)));  x += fcproj(gelu(fc(ln2(x)))) } → lnf → logits of wanted
//   rows
//
// Five synchronisation points per layer when every sequence brings one token. In the last layer everything
// after the keys and values is computed for the wanted rows alone. Owns the activations (an arena planned per
// step, grown only when a step is larger than any before); no heap allocation otherwise. One thread at a
// time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/arena.h"
#include "engine/exec_context.h"
#include "engine/placed_lists.h"
#include "engine/recorder.h"
#include "model/model.h"
#include "model/packed_batch.h"

namespace inkling {

class Forward {
 public:
  /// Both outlive the Forward. Throws Error{usage} when the model was packed for another instruction set.
  Forward(const Model& model, ExecContext& context);

  /// Runs the step, writes keys and values, and advances every sequence. Each sequence must have room() for
  /// its tokens. Throws Error{usage} for a batch that does not validate(), and then changes nothing; after
  /// anything else thrown there are no logits.
  void run(const PackedBatch& batch);

  /// Logits after wanted rows [begin, begin + count) of the last run(): (count, V) f32, good until the next
  /// call or run(). Rows are computed here, so a caller that asks in pieces never holds them all; but a step
  /// that a device runs as one op has made them.
  TensorView logits(std::int64_t begin, std::int64_t count);
  /// All wanted rows.
  TensorView logits() { return logits(0, wanted_); }
  /// The k ≤ kMostTop largest logits of every wanted row, where the host can read them, good until the next
  /// call: (wanted, k) each, in the order of top() in engine/ops.h. A device sends these and not the rows.
  struct TopRows {
    std::span<const float> logits;
    std::span<const std::int32_t> ids;
  };
  TopRows top(std::int64_t k);
  /// Rows of f32 where the host can read them: `rows` itself on the CPU, else a copy that is good until the
  /// next call.
  TensorView on_host(const TensorView& rows);

  /// Shows intermediate values to `observer` as they are made, for tests and traces: "embedding" of layer −1,
  /// then of each layer "qkv", "attention", "residual" after attention, "mlp" before its second matrix, and
  /// "block". In the last layer all but qkv have the wanted rows alone, and qkv is not shown unless all are.
  using Observer = std::function<void(std::string_view name, std::int64_t layer, const TensorView& rows)>;
  void observe(Observer observer) { observer_ = std::move(observer); }

  const Model& model() const noexcept { return model_; }
  ExecContext& context() noexcept { return context_; }
  /// A KV shape that fits the model: head count, width, layers.
  KvShape kv_shape(DType dtype) const;
  /// The dtype of keys and values that goes with the weights: f32 with f32, else bf16 halves the traffic.
  /// On a GPU: that of the activations.
  DType default_kv_dtype() const noexcept;
  /// Bytes of activations and logits held.
  std::size_t nbytes() const noexcept { return arena_.nbytes() + logits_arena_.nbytes(); }

 private:
  struct Views;
  TensorView logit_rows(std::int64_t count);
  bool run_fused(const PackedBatch& batch);
  void run_ops(const PackedBatch& batch);
  void plan(std::int64_t tokens, std::int64_t wanted, Views& views);
  void place_lists(const PackedBatch& batch);
  void repeat(const PackedBatch& batch, const Views& views, const std::function<void()>& ops);
  bool is_decoding(const PackedBatch& batch) const;
  void layers(const PackedBatch& batch, const Views& views);
  void layers_by_products(const PackedBatch& batch, const Views& views);
  void layer(int index, const PackedBatch& batch, const Views& views);
  void attend(int index, const PackedBatch& batch, const Views& views);
  void last_layer(const PackedBatch& batch, const Views& views);
  void last_attention(const PackedBatch& batch, const Views& views);
  void show(std::string_view name, std::int64_t layer, const TensorView& rows) const {
    if (observer_) observer_(name, layer, rows);
  }

  const Model& model_;
  ExecContext& context_;
  ArenaPlan plan_, logits_plan_;
  Arena arena_, logits_arena_;
  Buffer host_rows_, host_top_, device_top_;
  std::unique_ptr<Recorder> recorder_;
  std::vector<std::int32_t> wanted_rows_;  // (R) rows of the batch whose logits are wanted
  std::vector<std::int32_t> ids_;          // of a batch that does not know all of them
  PlacedLists placed_;
  struct {
    std::span<const std::int32_t> ids, positions, wanted;
  } lists_;            // of the step, where the ops can read them
  TensorView hidden_;  // (R,C) after the last block
  Observer observer_;
  std::int64_t wanted_ = 0;
  bool logits_made_ = false;  // by run()
};

}  // namespace inkling
