#include "attention/sdpa_problem.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "engine/philox.h"

namespace inkling {
namespace {

// `text` is a literal, or a callable where it has figures: a check that passes allocates nothing.
template <class Text>
void check(bool ok, const char* argument, const Text& text) {
  require(ok, Code::usage, [&] {
    std::string message = std::string("sdpa: ") + argument + ": ";
    if constexpr (std::is_invocable_v<Text>) {
      message += text();
    } else {
      message += text;
    }
    return message;
  });
}

bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16;
}

void check_rows(const TensorView& view, const char* name, std::int64_t heads, std::int64_t dim) {
  check(view.rank == 3 && view.shape[1] == heads && view.shape[2] == dim && (dim == 1 || view.stride[2] == 1),
        name, [&] {
          return "expected (rows, " + std::to_string(heads) + ", " + std::to_string(dim) +
                 ") with unit last stride, got " + view.shape_string();
        });
}

void check_offsets(std::span<const std::int32_t> cu, const char* name, std::int64_t batch,
                   std::int64_t rows) {
  check(static_cast<std::int64_t>(cu.size()) == batch + 1 && cu.front() == 0 && cu.back() == rows &&
            std::ranges::is_sorted(cu),
        name, [&] {
          return "expected " + std::to_string(batch + 1) + " offsets rising from 0 to " +
                 std::to_string(rows);
        });
}

void check_keys(const SdpaProblem& p, const SdpaArgs& args) {
  if (p.cached()) {
    check(static_cast<std::int64_t>(args.cache.size()) == p.batch, "cache",
          "expected one sequence per cu_q interval");
    check(args.k.data == nullptr && args.v.data == nullptr, "k, v", "expected none beside a cache");
    check(args.cu_k.empty() || args.cu_k.size() == args.cu_q.size(), "cu_k",
          "expected none beside a cache, or as many offsets as cu_q");
    const KvShape& shape = args.cache[0]->pool().shape();
    check(args.layer >= 0 && args.layer < shape.layers, "layer",
          [&] { return "got " + std::to_string(args.layer); });
    check(shape.head_dim == p.dim, "cache",
          [&] { return "its head dim is " + std::to_string(shape.head_dim); });
    for (const KvSequence* sequence : args.cache) {
      check(&sequence->pool() == &args.cache[0]->pool(), "cache", "expected sequences of one pool");
    }
    for (std::int64_t b = 0; b < p.batch && !args.cu_k.empty(); ++b) {
      const KvSequence& sequence = *args.cache[static_cast<std::size_t>(b)];
      check(p.k_length(b) >= 0 && p.k_length(b) <= sequence.length() + sequence.room(), "cu_k",
            [&] { return "expected at most the keys that sequence " + std::to_string(b) + " has room for"; });
    }
    return;
  }
  check(args.k.rank == 3 && args.k.dtype == args.q.dtype && args.v.dtype == args.q.dtype, "k, v",
        [&] { return "expected the dtype of q, " + std::string(dtype_name(args.q.dtype)); });
  check_rows(args.k, "k", p.kv_heads, p.dim);
  check_rows(args.v, "v", p.kv_heads, p.dim);
  check(args.k.shape[0] == args.v.shape[0], "v", "expected as many rows as k");
  check_offsets(args.cu_k, "cu_k", p.batch, args.k.shape[0]);
}

void check_mask(const SdpaProblem& p, const Mask& mask) {
  check(mask.left >= 0 && mask.right >= 0, "mask", "expected a window of left, right ≥ 0");
  if (mask.kind == MaskKind::document) {
    check(!p.cached(), "mask", "documents need k and v, not a cache");
    check(static_cast<std::int64_t>(mask.document_q.size()) == p.args.q.shape[0] &&
              static_cast<std::int64_t>(mask.document_k.size()) == p.args.k.shape[0],
          "mask", "expected a document for every row of q and k");
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
  check_rows(args.q, "q", heads, dim);
  batch = static_cast<std::int64_t>(args.cu_q.size()) - 1;
  check(batch >= 0, "cu_q", "expected B + 1 offsets");
  check_offsets(args.cu_q, "cu_q", batch, args.q.shape[0]);
  kv_heads = cached() ? args.cache[0]->pool().shape().heads : args.k.rank == 3 ? args.k.shape[1] : 0;
  check(kv_heads > 0 && heads % kv_heads == 0, "k", [&] {
    return "expected Hkv to divide H = " + std::to_string(heads) + ", got " + std::to_string(kv_heads);
  });
  group = heads / kv_heads;
  check_keys(*this, args);
  kv_dtype = cached() ? args.cache[0]->pool().shape().dtype : args.k.dtype;
  scale = args.scale.value_or(1.0f / std::sqrt(static_cast<float>(dim)));
  check_mask(*this, args.mask);
  check(args.dropout.p >= 0.0f && args.dropout.p < 1.0f, "dropout", "expected p in [0, 1)");
  check_rows(args.out, "out", heads, dim);
  check(args.out.shape[0] == args.q.shape[0] &&
            (args.out.dtype == DType::f32 || args.out.dtype == args.q.dtype),
        "out", "expected (N, H, D) in f32 or the dtype of q");
  check(args.lse.data == nullptr || (args.lse.rank == 2 && args.lse.dtype == DType::f32 &&
                                     args.lse.shape[0] == heads && args.lse.shape[1] == args.q.shape[0]),
        "lse", [&] { return "expected f32 (H, N), got " + args.lse.shape_string(); });
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

double SdpaProblem::visible_scores() const noexcept {
  double scores = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    const auto [from, until] = range(b);
    for (std::int64_t i = 0; i < q_length(b); ++i) {
      const std::int64_t first = std::max<std::int64_t>(0, i + from), last = std::min(k_length(b), i + until);
      scores += static_cast<double>(std::max<std::int64_t>(0, last - first));
    }
  }
  return scores * static_cast<double>(heads);
}

double SdpaProblem::nbytes() const noexcept {
  std::int64_t keys = 0;
  for (std::int64_t b = 0; b < batch; ++b) keys += k_length(b);
  const auto queries = static_cast<double>(args.q.shape[0] * heads * dim);
  return queries * static_cast<double>(dtype_size(args.q.dtype) + dtype_size(args.out.dtype)) +
         2 * static_cast<double>(keys * kv_heads * dim) * static_cast<double>(dtype_size(kv_dtype));
}

std::string SdpaSizes::to_string() const {
  return "B=" + std::to_string(batch) + " H=" + std::to_string(heads) + " Hkv=" + std::to_string(kv_heads) +
         " D=" + std::to_string(dim) + " Tq=" + std::to_string(longest_q) +
         " Tk=" + std::to_string(longest_k) + ' ' + std::string(dtype_name(dtype));
}

}  // namespace inkling
