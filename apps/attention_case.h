// One shape of attention, as words and as arguments of sdpa(): what `doctor --attn` asks about and `bench
// sdpa` measures.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "attention/sdpa_backward.h"
#include "engine/memory.h"

namespace inkling::app {

struct AttentionCase {
  std::vector<std::int64_t> q_lengths{1024}, k_lengths{1024};  ///< of each sequence
  std::int64_t heads = 12, kv_heads = 12, dim = 64;
  DType dtype = DType::f32;
  MaskKind mask = MaskKind::none;
  std::int64_t window = 256;  ///< keys that a query sees under sliding_window
  float dropout = 0.0f;
  bool backward = false;

  /// "B=2 H=12 T=1024 D=64 f32 causal_upper_left"; H/Hkv and Tq/Tk where they differ.
  std::string to_string() const;
};

/// "B=2 H=12 Hkv=12 T=1024 (or Tq=… Tk=…) D=64 dtype=bf16 mask=causal-upper-left window=256 dropout=0.1
/// backward=1". `memory_limit` is set by its key. Throws Error{usage} "KEY: expected …, got …".
AttentionCase parse_attention_case(std::string_view text, std::size_t& memory_limit);

/// Throws Error{usage} "expected …, got …".
MaskKind parse_mask_kind(const std::string& name);
/// Throws Error{usage} unless the mask has a window whose width can be given.
void check_window(MaskKind mask);
DType parse_attention_dtype(const std::string& name);

/// The arguments of a case: random values in memory of their own, or views without any.
class AttentionData {
 public:
  /// `memory`: of the device to run on; null: none at all.
  AttentionData(const AttentionCase& shape, Memory* memory);
  AttentionData(const AttentionData&) = delete;
  AttentionData& operator=(const AttentionData&) = delete;

  const SdpaArgs& forward() const noexcept { return backward_.forward; }
  const SdpaBackwardArgs& backward() const noexcept { return backward_; }
  /// Of all tensors.
  std::size_t nbytes() const noexcept { return nbytes_; }

 private:
  TensorView tensor(DType dtype, std::initializer_list<std::int64_t> extents);
  void set_mask(const AttentionCase& shape, std::int64_t longest_q, std::int64_t longest_k);

  Memory* memory_;
  std::uint64_t drawn_ = 0;
  std::size_t nbytes_ = 0;
  std::vector<Tensor> owned_;
  std::vector<std::int32_t> cu_q_, cu_k_, documents_q_, documents_k_;
  SdpaBackwardArgs backward_;
};

}  // namespace inkling::app
