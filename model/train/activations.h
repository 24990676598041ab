// Activations: what one training pass (training_pass.h) computes on its way, and where it lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/arena.h"
#include "engine/device.h"
#include "weights/config.h"

namespace inkling {

class ExecContext;

/// Views into one arena, which grows with the largest pass. One thread at a time.
class Activations {
 public:
  enum class Direction : std::uint8_t {
    forward,  ///< every layer writes to the same memory
    both,
  };
  /// Whether attention keeps what its dropout drew for the gradient, or draws again.
  enum class Drawn : std::uint8_t { again, kept };
  /// What decides the sizes, beside the model.
  struct Pass {
    std::span<const std::int32_t> cu_seqlens;  ///< (B+1) of the batch
    Direction direction = Direction::both;
    float dropout = 0.0f;
  };
  struct Layer {
    TensorView x;              ///< (N,C) input of attention
    TensorView normed;         ///< (N,C)
    TensorView qkv;            ///< (N,3C)
    TensorView attended;       ///< (N,C)
    TensorView lse;            ///< (H,N) log-sum-exp
    TensorView middle;         ///< (N,C) input of the MLP
    TensorView middle_normed;  ///< (N,C)
    TensorView wide;           ///< (N,I) before the activation
    TensorView activated;      ///< (N,I)
    TensorView drawn;          ///< in attention; empty: drawn again
  };
  struct Views {
    std::vector<Layer> layers;
    TensorView x;                   ///< (N,C) after the last block
    TensorView normed;              ///< (N,C) output of the last norm
    TensorView branch;              ///< (N,C) before its dropout
    TensorView dx;                  ///< (N,C) gradient of the stream, as all below
    TensorView dbranch;             ///< (N,C) of a branch before its dropout
    TensorView dnormed, dattended;  ///< (N,C)
    TensorView dqkv;                ///< (N,3C)
    TensorView dwide;               ///< (N,I)
    TensorView logits;              ///< (R,V) of R rows at a time, with the columns of zeros
    TensorView losses;              ///< (1,N)
  };

  /// `vocab_rows` as the tables have them (parameters.h); `half`: dtype of what lies between two matrices. A
  /// GPU, whose memory is large beside its time, keeps what could be computed again; elsewhere such results
  /// share their memory.
  Activations(const ModelConfig& config, std::int64_t vocab_rows, ExecContext& context, DType half);
  /// The same for a device that need not be here: to ask for bytes.
  Activations(const ModelConfig& config, std::int64_t vocab_rows, Device device, DType half, Drawn drawn);

  bool keeps() const noexcept { return keeps_; }
  /// Whether a branch and its gradient are kept apart from the stream's: with p = 0 still rounded to half.
  bool rounds_branches(float dropout) const noexcept { return dropout > 0.0f || half_ != DType::f32; }
  /// Bytes that a pass takes; SIZE_MAX when it is more than that.
  std::size_t nbytes(const Pass& pass) const;
  /// Bytes held.
  std::size_t nbytes() const noexcept { return arena_.nbytes(); }
  /// Lays the views out for a pass; contents are undefined. Throws Error{out_of_memory}.
  void place(const Pass& pass, Memory& memory);
  /// Of the pass placed last.
  const Views& views() const noexcept { return views_; }

 private:
  struct Place {
    TensorView* view;
    std::size_t entry;
  };
  std::vector<Place> lay_out(const Pass& pass, ArenaPlan& plan, Views& views) const;

  ModelConfig config_;
  std::int64_t vocab_rows_;
  Device device_;
  DType half_;
  Drawn drawn_;
  bool keeps_;
  ArenaPlan plan_;
  Arena arena_;
  Views views_;
};

}  // namespace inkling
