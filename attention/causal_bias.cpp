#include "attention/causal_bias.h"

namespace inkling {

CausalBias::CausalBias(MaskKind kind, std::int64_t q_length, std::int64_t k_length)
    : kind_(kind), q_length_(q_length), k_length_(k_length) {
  require(q_length >= 0 && k_length >= 0, Code::usage, [&] {
    return "causal bias: expected lengths ≥ 0, got " + std::to_string(q_length) + " and " +
           std::to_string(k_length);
  });
  require(kind == MaskKind::causal_upper_left || kind == MaskKind::causal_lower_right, Code::usage,
          [&] { return "causal bias: expected a causal kind, got " + std::string(mask_kind_name(kind)); });
}

std::string CausalBias::to_string() const {
  std::string text;
  for (std::int64_t i = 0; i < q_length_; ++i) {
    for (std::int64_t j = 0; j < k_length_; ++j)
      text += j == 0 ? (sees(i, j) ? "1" : "0") : (sees(i, j) ? " 1" : " 0");
    text += '\n';
  }
  return text;
}

bool operator==(const CausalBias& a, const CausalBias& b) noexcept {
  if (a.q_length_ != b.q_length_ || a.k_length_ != b.k_length_) return false;
  return a.kind_ == b.kind_ || a.q_length_ == a.k_length_ || a.q_length_ == 0 || a.k_length_ == 0;
}

}  // namespace inkling
