// CausalBias: a causal mask as a value, to look at, compare and hand to sdpa().
//
//   causal_upper_left(2, 5)     causal_lower_right(2, 5)
//   1 0 0 0 0                   1 1 1 1 0
//   1 1 0 0 0                   1 1 1 1 1
//
// They agree when Tq = Tk. With a KV cache the lower-right one is meant: the last query sees every key.
#pragma once

#include <cstdint>
#include <string>

#include "attention/sdpa.h"

namespace inkling {

class CausalBias {
 public:
  /// Throws Error{usage} when a length is negative.
  CausalBias(MaskKind kind, std::int64_t q_length, std::int64_t k_length);

  MaskKind kind() const noexcept { return kind_; }
  std::int64_t q_length() const noexcept { return q_length_; }
  std::int64_t k_length() const noexcept { return k_length_; }
  /// Whether query i sees key j.
  bool sees(std::int64_t i, std::int64_t j) const noexcept {
    return j <= i + (kind_ == MaskKind::causal_lower_right ? k_length_ - q_length_ : 0);
  }
  /// As SdpaArgs::mask, which then takes sequences of these lengths alone.
  Mask mask() const {
    Mask mask;
    mask.kind = kind_;
    mask.lengths = {q_length_, k_length_};
    return mask;
  }
  /// A row of 0 and 1 per query.
  std::string to_string() const;
  /// Equal when every query sees the same keys.
  friend bool operator==(const CausalBias& a, const CausalBias& b) noexcept;

 private:
  MaskKind kind_;
  std::int64_t q_length_, k_length_;
};

inline CausalBias causal_upper_left(std::int64_t q_length, std::int64_t k_length) {
  return {MaskKind::causal_upper_left, q_length, k_length};
}
inline CausalBias causal_lower_right(std::int64_t q_length, std::int64_t k_length) {
  return {MaskKind::causal_lower_right, q_length, k_length};
}

}  // namespace inkling
