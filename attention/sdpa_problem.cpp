#include "attention/sdpa_problem.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "attention/checks.h"
#include "engine/philox.h"

namespace inkling {
namespace {

constexpr ArgumentChecks check{"sdpa"};

bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

void check_keys(const SdpaProblem& p, const SdpaArgs& args) {
  if (p.cached()) {
    check(static_cast<std::int64_t>(args.cache.size()) == p.batch, "cache", [&] {
      return "expected one sequence per interval of cu_q, " + std::to_string(p.batch) + ", got " +
             std::to_string(args.cache.size());
    });
    check(args.k.data == nullptr && args.v.data == nullptr, "k, v", "expected none beside a cache");
    check(args.cu_k.empty() || args.cu_k.size() == args.cu_q.size(), "cu_k", [&] {
      return "expected none beside a cache, or as many offsets as cu_q, " + std::to_string(args.cu_q.size()) +
             ", got " + std::to_string(args.cu_k.size());
    });
    const KvShape& shape = args.cache[0]->pool().shape();
    check(args.layer >= 0 && args.layer < shape.layers, "layer", [&] {
      return "expected 0 to " + std::to_string(shape.layers - 1) + ", got " + std::to_string(args.layer);
    });
    check(shape.head_dim == p.dim, "cache", [&] {
      return "expected the head dim of q, " + std::to_string(p.dim) + ", got " +
             std::to_string(shape.head_dim);
    });
    for (const KvSequence* sequence : args.cache) {
      check(&sequence->pool() == &args.cache[0]->pool(), "cache", "expected sequences of one pool");
    }
    for (std::int64_t b = 0; b < p.batch && !args.cu_k.empty(); ++b) {
      const KvSequence& sequence = *args.cache[static_cast<std::size_t>(b)];
      const std::int64_t most = sequence.length() + sequence.room();
      check(p.k_length(b) >= 0 && p.k_length(b) <= most, "cu_k", [&] {
        return "expected 0 to " + std::to_string(most) + " keys, which sequence " + std::to_string(b) +
               " has room for, got " + std::to_string(p.k_length(b));
      });
    }
    return;
  }
  check(args.k.dtype == args.q.dtype && args.v.dtype == args.q.dtype, "k, v", [&] {
    return "expected the dtype of q, " + std::string(dtype_name(args.q.dtype)) + ", got " +
           std::string(dtype_name(args.k.dtype)) + " and " + std::string(dtype_name(args.v.dtype));
  });
  check.heads(args.k, "k", p.kv_heads, p.dim);
  check.heads(args.v, "v", p.kv_heads, p.dim);
  check(args.k.shape[0] == args.v.shape[0], "v", [&] {
    return "expected as many rows as k, " + std::to_string(args.k.shape[0]) + ", got " +
           std::to_string(args.v.shape[0]);
  });
  check.offsets(args.cu_k, "cu_k", p.batch, args.k.shape[0]);
}

void check_mask(const SdpaProblem& p, const Mask& mask) {
  check(mask.left >= 0 && mask.right >= 0, "mask", [&] {
    return "expected a window of left, right ≥ 0, got " + std::to_string(mask.left) + ", " +
           std::to_string(mask.right);
  });
  for (std::int64_t b = 0; b < p.batch && mask.lengths; ++b) {
    check(p.q_length(b) == mask.lengths->q && p.k_length(b) == mask.lengths->k, "mask", [&] {
      return "expected sequences of " + std::to_string(mask.lengths->q) + " queries and " +
             std::to_string(mask.lengths->k) + " keys, which the mask was made for, got " +
             std::to_string(p.q_length(b)) + " and " + std::to_string(p.k_length(b)) + " in sequence " +
             std::to_string(b);
    });
  }
  if (mask.kind == MaskKind::document) {
    check(!p.cached(), "mask", "documents need k and v, not a cache");
    check(static_cast<std::int64_t>(mask.document_q.size()) == p.args.q.shape[0] &&
              static_cast<std::int64_t>(mask.document_k.size()) == p.args.k.shape[0],
          "mask", [&] {
            return "expected a document for every row of q and k, " + std::to_string(p.args.q.shape[0]) +
                   " and " + std::to_string(p.args.k.shape[0]) + ", got " +
                   std::to_string(mask.document_q.size()) + " and " + std::to_string(mask.document_k.size());
          });
  }
  if (mask.kind != MaskKind::additive_bias && mask.kind != MaskKind::boolean) return;
  const DType dtype = mask.kind == MaskKind::boolean ? DType::boolean : DType::f32;
  const TensorView& bias = mask.bias;
  check(bias.rank == 4 && bias.dtype == dtype && (bias.shape[0] == 1 || bias.shape[0] == p.batch) &&
            (bias.shape[1] == 1 || bias.shape[1] == p.heads) &&
            (bias.shape[2] == 1 || bias.shape[2] >= p.longest_q()) &&
            (bias.shape[3] == 1 || bias.shape[3] >= p.longest_k()),
        "mask.bias", [&] {
          return "expected " + std::string(dtype_name(dtype)) + " (B or 1, H or 1, Tq or 1, Tk or 1), got " +
                 std::string(dtype_name(bias.dtype)) + ' ' + bias.shape_string();
        });
}

// Keys [first, last) that query i sees by its place.
struct Keys {
  std::int64_t first, last;
};
Keys keys_of(const SdpaProblem& p, std::int64_t b, std::int64_t i) {
  const auto [from, until] = p.range(b);
  const std::int64_t first = std::clamp<std::int64_t>(i + from, 0, p.k_length(b));
  return {first, std::clamp(i + until, first, p.k_length(b))};
}

double scores_in_range(const SdpaProblem& p, std::int64_t b) {
  double scores = 0;
  for (std::int64_t i = 0; i < p.q_length(b); ++i) {
    const auto [first, last] = keys_of(p, b, i);
    scores += static_cast<double>(last - first);
  }
  return scores;
}

// Both ends of the range rise with the query, so that each key comes in once and goes out once.
double scores_in_documents(const SdpaProblem& p, std::int64_t b) {
  const cpu::ScoreMask mask = p.score_mask(b, 0);
  std::unordered_map<std::int32_t, std::int64_t> keys;  // of each document, within the range
  std::int64_t first = 0, last = 0;
  double scores = 0;
  for (std::int64_t i = 0; i < p.q_length(b); ++i) {
    const Keys range = keys_of(p, b, i);
    for (; last < range.last; ++last) ++keys[mask.document_k[last]];
    for (; first < range.first; ++first) --keys[mask.document_k[first]];
    scores += static_cast<double>(keys[mask.document_q[i]]);
  }
  return scores;
}

double scores_seen(const SdpaProblem& p, std::int64_t b, std::int64_t head) {
  const cpu::ScoreMask mask = p.score_mask(b, head);
  std::int64_t scores = 0;
  for (std::int64_t i = 0; i < p.q_length(b); ++i) {
    const std::uint8_t* row = mask.visible + i * mask.row;
    for (std::int64_t j = 0; j < p.k_length(b); ++j) scores += row[j * mask.key] != 0 ? 1 : 0;
  }
  return static_cast<double>(scores);
}

}  // namespace

SdpaProblem::SdpaProblem(const SdpaArgs& arguments) : args(arguments) {
  check(args.q.rank == 3 && is_float(args.q.dtype) && args.q.shape[1] > 0, "q", [&] {
    return "expected f32, bf16 or f16 (N, H, D), got " + std::string(dtype_name(args.q.dtype)) + ' ' +
           args.q.shape_string();
  });
  heads = args.q.shape[1];
  dim = args.q.shape[2];
  check(dim >= 1 && dim <= cpu::kMaxHeadDim, "q",
        [&] { return "expected a head dim of 1 to 256, got " + std::to_string(dim); });
  check.heads(args.q, "q", heads, dim);
  batch = std::ssize(args.cu_q) - 1;
  check(batch >= 0, "cu_q", "expected B + 1 offsets, got none");
  check.offsets(args.cu_q, "cu_q", batch, args.q.shape[0]);
  kv_heads = cached() ? args.cache[0]->pool().shape().heads : args.k.rank == 3 ? args.k.shape[1] : 0;
  check(kv_heads > 0 && heads % kv_heads == 0, "k", [&] {
    return "expected Hkv to divide H = " + std::to_string(heads) + ", got " + std::to_string(kv_heads);
  });
  group = heads / kv_heads;
  check_keys(*this, args);
  kv_dtype = cached() ? args.cache[0]->pool().shape().dtype : args.k.dtype;
  scale = args.scale.value_or(1.0f / std::sqrt(static_cast<float>(dim)));
  check(std::isfinite(scale), "scale", [&] { return "expected a finite one, got " + std::to_string(scale); });
  check_mask(*this, args.mask);
  check(args.dropout.p >= 0.0f && args.dropout.p < 1.0f, "dropout",
        [&] { return "expected p in [0, 1), got " + std::to_string(args.dropout.p); });
  check(reinterpret_cast<std::uintptr_t>(args.dropout.drawn) % kDrawnAlignment == 0, "dropout", [&] {
    return "expected drawn at a multiple of " + std::to_string(kDrawnAlignment) + " bytes, got " +
           std::to_string(reinterpret_cast<std::uintptr_t>(args.dropout.drawn) % kDrawnAlignment) +
           " behind one";
  });
  check.heads(args.out, "out", heads, dim);
  check(args.out.shape[0] == args.q.shape[0] &&
            (args.out.dtype == DType::f32 || args.out.dtype == args.q.dtype),
        "out", [&] {
          return "expected " + std::to_string(args.q.shape[0]) + " rows in f32 or the dtype of q, got " +
                 std::string(dtype_name(args.out.dtype)) + ' ' + args.out.shape_string();
        });
  check(args.lse.data == nullptr || (args.lse.rank == 2 && args.lse.dtype == DType::f32 &&
                                     args.lse.shape[0] == heads && args.lse.shape[1] == args.q.shape[0]),
        "lse", [&] { return "expected f32 (H, N), got " + args.lse.shape_string(); });
}

void SdpaProblem::check_memory() const {
  check.memory(args.q, "q");
  if (!cached()) {
    check.memory(args.k, "k");
    check.memory(args.v, "v");
  }
  check.memory(args.out, "out");
  const Mask& mask = args.mask;
  if (mask.kind == MaskKind::additive_bias || mask.kind == MaskKind::boolean) {
    check.memory(mask.bias, "mask.bias");
  }
  if (mask.kind != MaskKind::document) return;
  check((mask.document_q.data() != nullptr || mask.document_q.empty()) &&
            (mask.document_k.data() != nullptr || mask.document_k.empty()),
        "mask", "expected documents of q and k, got a null address");
}

std::int64_t SdpaProblem::longest_q() const noexcept {
  std::int64_t longest = 0;
  for (std::int64_t b = 0; b < batch; ++b) longest = std::max(longest, q_length(b));
  return longest;
}

std::int64_t SdpaProblem::longest_k() const noexcept {
  std::int64_t longest = 0;
  for (std::int64_t b = 0; b < batch; ++b) longest = std::max(longest, k_length(b));
  return longest;
}

SdpaProblem::Range SdpaProblem::range(std::int64_t b) const noexcept {
  const std::int64_t past = k_length(b) - q_length(b);
  switch (args.mask.kind) {
    case MaskKind::causal_upper_left:
      return {-kUnlimited, 1};
    case MaskKind::causal_lower_right:
      return {-kUnlimited, past + 1};
    case MaskKind::sliding_window:
    case MaskKind::document:
      return {past - std::min(args.mask.left, kUnlimited), past + std::min(args.mask.right, kUnlimited) + 1};
    default:
      return {-kUnlimited, kUnlimited};
  }
}

cpu::ScoreMask SdpaProblem::score_mask(std::int64_t b, std::int64_t head) const noexcept {
  cpu::ScoreMask mask;
  if (args.mask.kind == MaskKind::document) {
    mask.document_q = args.mask.document_q.data() + q_begin(b);
    mask.document_k = args.mask.document_k.data() + k_begin(b);
  }
  if (args.mask.kind == MaskKind::additive_bias || args.mask.kind == MaskKind::boolean) {
    const TensorView& bias = args.mask.bias;
    const auto stride = [&](std::size_t axis) { return bias.shape[axis] == 1 ? 0 : bias.stride[axis]; };
    mask.head = stride(1);
    mask.row = stride(2);
    mask.key = stride(3);
    const std::ptrdiff_t at = b * stride(0) + head * mask.head;
    if (args.mask.kind == MaskKind::boolean) {
      mask.visible = static_cast<const std::uint8_t*>(bias.data) + at;
    } else {
      mask.bias = static_cast<const float*>(bias.data) + at;
    }
  }
  return mask;
}

cpu::DropoutRule SdpaProblem::dropout(std::int64_t b, std::int64_t head) const noexcept {
  cpu::DropoutRule rule;
  rule.seed = args.dropout.seed;
  rule.offset = args.dropout.offset;
  rule.threshold = dropout_threshold(args.dropout.p);
  rule.head = static_cast<std::uint32_t>(b * heads + head);
  rule.scale = 1.0f / (1.0f - args.dropout.p);
  return rule;
}

double SdpaProblem::visible_scores(Device memory) const {
  const bool booleans = args.mask.kind == MaskKind::boolean && memory == Device::cpu;
  const std::int64_t masks = booleans ? args.mask.bias.shape[1] : 1;  // heads that share one share its count
  double scores = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t head = 0; head < masks; ++head) {
      const double seen = args.mask.kind == MaskKind::document ? scores_in_documents(*this, b)
                          : booleans                           ? scores_seen(*this, b, head)
                                                               : scores_in_range(*this, b);
      scores += seen * static_cast<double>(heads / masks);
    }
  }
  return scores;
}

double SdpaProblem::nbytes() const noexcept {
  std::int64_t keys = 0;
  for (std::int64_t b = 0; b < batch; ++b) keys += k_length(b);
  const auto queries = static_cast<double>(args.q.shape[0] * heads * dim);
  return queries * static_cast<double>(dtype_size(args.q.dtype) + dtype_size(args.out.dtype)) +
         2 * static_cast<double>(keys * kv_heads * dim) * static_cast<double>(dtype_size(kv_dtype));
}

SdpaSizes SdpaProblem::sizes(const SdpaBackwardArgs& backward) const noexcept {
  SdpaSizes of = sizes();
  of.mixed_gradients = backward.dout.dtype != args.q.dtype || backward.dk.dtype != backward.dq.dtype ||
                       backward.dv.dtype != backward.dq.dtype;
  const std::array<std::int64_t, 4> extents{batch, heads, longest_q(), longest_k()};
  for (std::size_t axis = 0; axis < extents.size(); ++axis) {
    of.shared_bias_gradient |= backward.dbias.data != nullptr && backward.dbias.shape[axis] < extents[axis];
  }
  return of;
}

std::string SdpaSizes::to_string() const {
  return "B=" + std::to_string(batch) + " H=" + std::to_string(heads) + " Hkv=" + std::to_string(kv_heads) +
         " D=" + std::to_string(dim) + " Tq=" + std::to_string(longest_q) +
         " Tk=" + std::to_string(longest_k) + ' ' + std::string(dtype_name(dtype));
}

}  // namespace inkling
