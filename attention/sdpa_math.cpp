// The math backend: attention as it is written down, every weight in memory, f64 throughout. The oracle of
// the others and the fallback for whatever they cannot do. One task per (sequence, head); Tq × Tk weights per
// running task.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "attention/sdpa_problem.h"
#include "engine/exec_context.h"
#include "engine/philox.h"

namespace inkling {
namespace {

double load(const std::byte* data, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::bf16:
      return static_cast<double>(static_cast<float>(reinterpret_cast<const bf16*>(data)[index]));
    case DType::f16:
      return static_cast<double>(static_cast<float>(reinterpret_cast<const f16*>(data)[index]));
    default:
      return static_cast<double>(reinterpret_cast<const float*>(data)[index]);
  }
}

void store(std::byte* data, DType dtype, std::int64_t index, double value) {
  const auto narrow = static_cast<float>(value);
  switch (dtype) {
    case DType::bf16:
      reinterpret_cast<bf16*>(data)[index] = bf16(narrow);
      break;
    case DType::f16:
      reinterpret_cast<f16*>(data)[index] = f16(narrow);
      break;
    default:
      reinterpret_cast<float*>(data)[index] = narrow;
      break;
  }
}

/// Keys and values of one (sequence, key/value head), wherever they lie.
struct Source {
  const SdpaProblem& p;
  std::int64_t b, head;

  double k(std::int64_t j, std::int64_t d) const {
    if (!p.cached()) return load(row_address(p.args.k, p.k_begin(b) + j, head), p.kv_dtype, d);
    return load(page(j), p.kv_dtype, d * kKvPageTokens + j % kKvPageTokens);
  }
  double v(std::int64_t j, std::int64_t d) const {
    if (!p.cached()) return load(row_address(p.args.v, p.k_begin(b) + j, head), p.kv_dtype, d);
    const KvShape& shape = p.args.cache[0]->pool().shape();
    return load(page(j) + shape.k_bytes(), p.kv_dtype, j % kKvPageTokens * shape.padded_dim() + d);
  }
  const std::byte* page(std::int64_t j) const {
    const KvSequence& sequence = *p.args.cache[static_cast<std::size_t>(b)];
    return sequence.pages()[static_cast<std::size_t>(j / kKvPageTokens)] +
           sequence.pool().shape().offset(p.args.layer, head);
  }
};

bool visible(const SdpaProblem& p, const cpu::ScoreMask& mask, std::int64_t b, std::int64_t i,
             std::int64_t j) {
  const auto [from, until] = p.range(b);
  if (j < i + from || j >= i + until) return false;
  if (mask.document_q != nullptr && mask.document_q[i] != mask.document_k[j]) return false;
  return mask.visible == nullptr || mask.visible[i * mask.row + j * mask.key] != 0;
}

/// weights (Tk) of query i: softmax, before dropout. Returns the log of Σ e^score.
double softmax_row(const SdpaProblem& p, std::int64_t b, std::int64_t head, std::int64_t i, double* weights) {
  const std::int64_t keys = p.k_length(b);
  const Source source{p, b, head / p.group};
  const cpu::ScoreMask mask = p.score_mask(b, head);
  const std::byte* q = row_address(p.args.q, p.q_begin(b) + i, head);
  double top = -std::numeric_limits<double>::infinity();
  for (std::int64_t j = 0; j < keys; ++j) {
    weights[j] = -std::numeric_limits<double>::infinity();
    if (!visible(p, mask, b, i, j)) continue;
    double dot = 0.0;
    for (std::int64_t d = 0; d < p.dim; ++d) dot += load(q, p.args.q.dtype, d) * source.k(j, d);
    weights[j] = dot * static_cast<double>(p.scale);
    if (mask.bias != nullptr) weights[j] += static_cast<double>(mask.bias[i * mask.row + j * mask.key]);
    if (!(weights[j] <= top)) top = weights[j];
  }
  double sum = 0.0;
  const double reference = top == -std::numeric_limits<double>::infinity() ? 0.0 : top;
  for (std::int64_t j = 0; j < keys; ++j) sum += weights[j] = std::exp(weights[j] - reference);
  for (std::int64_t j = 0; j < keys; ++j) weights[j] = sum == 0.0 ? 0.0 : weights[j] / sum;
  return sum == 0.0 ? -std::numeric_limits<double>::infinity() : reference + std::log(sum);
}

void drop_row(const cpu::DropoutRule& rule, std::int64_t i, std::int64_t keys, double* weights) {
  if (rule.threshold == 0) return;
  for (std::int64_t j = 0; j < keys; ++j) {
    const PhiloxWords words =
        philox({static_cast<std::uint32_t>(j / 4), static_cast<std::uint32_t>(i), rule.head, rule.offset},
               rule.seed);
    weights[j] *=
        words[static_cast<std::size_t>(j % 4)] >= rule.threshold ? static_cast<double>(rule.scale) : 0.0;
  }
}

void attend_head(const SdpaProblem& p, std::int64_t b, std::int64_t head) {
  const std::int64_t queries = p.q_length(b), keys = p.k_length(b);
  std::vector<double> weights(static_cast<std::size_t>(queries * keys));
  for (std::int64_t i = 0; i < queries; ++i) {
    double* row = weights.data() + i * keys;
    const double lse = softmax_row(p, b, head, i, row);
    drop_row(p.dropout(b, head), i, keys, row);
    if (p.args.lse.data != nullptr) {
      static_cast<float*>(
          p.args.lse.data)[head * p.args.lse.stride[0] + (p.q_begin(b) + i) * p.args.lse.stride[1]] =
          static_cast<float>(lse);
    }
  }
  const Source source{p, b, head / p.group};
  for (std::int64_t i = 0; i < queries; ++i) {
    std::byte* out = row_address(p.args.out, p.q_begin(b) + i, head);
    for (std::int64_t d = 0; d < p.dim; ++d) {
      double sum = 0.0;
      for (std::int64_t j = 0; j < keys; ++j) {
        const double weight = weights[static_cast<std::size_t>(i * keys + j)];
        if (weight != 0.0) sum += weight * source.v(j, d);
      }
      store(out, p.args.out.dtype, d, sum);
    }
  }
}

/// Gradients of one (sequence, key/value head): all its queries and heads in order, dk and dv in f64.
void differentiate_head(const SdpaProblem& p, const SdpaBackwardArgs& args, std::int64_t b,
                        std::int64_t kv_head) {
  const std::int64_t keys = p.k_length(b);
  const Source source{p, b, kv_head};
  const auto scale = static_cast<double>(p.scale);
  std::vector<double> dk(static_cast<std::size_t>(keys * p.dim)), dv(dk), dq(static_cast<std::size_t>(p.dim));
  std::vector<double> weights(static_cast<std::size_t>(keys)), dropped(weights), dscores(weights);
  for (std::int64_t head = kv_head * p.group; head < (kv_head + 1) * p.group; ++head) {
    const cpu::ScoreMask mask = p.score_mask(b, head);
    for (std::int64_t i = 0; i < p.q_length(b); ++i) {
      const std::byte* q = row_address(p.args.q, p.q_begin(b) + i, head);
      const std::byte* dout = row_address(args.dout, p.q_begin(b) + i, head);
      softmax_row(p, b, head, i, weights.data());
      std::ranges::fill(dropped, 1.0);
      drop_row(p.dropout(b, head), i, keys, dropped.data());
      double delta = 0.0;
      for (std::int64_t j = 0; j < keys; ++j) {
        const auto at = static_cast<std::size_t>(j);
        if (weights[at] == 0.0) continue;
        double dot = 0.0;
        for (std::int64_t d = 0; d < p.dim; ++d) {
          const double g = load(dout, args.dout.dtype, d);
          dot += g * source.v(j, d);
          dv[static_cast<std::size_t>(j * p.dim + d)] += weights[at] * dropped[at] * g;
        }
        dscores[at] = dot * dropped[at];
        delta += weights[at] * dscores[at];
      }
      std::ranges::fill(dq, 0.0);
      for (std::int64_t j = 0; j < keys; ++j) {
        const auto at = static_cast<std::size_t>(j);
        if (weights[at] == 0.0) continue;
        const double dscore = weights[at] * (dscores[at] - delta);
        for (std::int64_t d = 0; d < p.dim; ++d) {
          dq[static_cast<std::size_t>(d)] += scale * dscore * source.k(j, d);
          dk[static_cast<std::size_t>(j * p.dim + d)] += scale * dscore * load(q, p.args.q.dtype, d);
        }
        if (args.dbias.data != nullptr) {
          const std::int64_t sequence = args.dbias.shape[0] == 1 ? 0 : b;
          static_cast<float*>(args.dbias.data)[sequence * args.dbias.stride[0] + head * mask.head +
                                               i * mask.row + j * mask.key] += static_cast<float>(dscore);
        }
      }
      std::byte* out = row_address(args.dq, p.q_begin(b) + i, head);
      for (std::int64_t d = 0; d < p.dim; ++d) store(out, args.dq.dtype, d, dq[static_cast<std::size_t>(d)]);
    }
  }
  for (std::int64_t j = 0; j < keys; ++j) {
    for (std::int64_t d = 0; d < p.dim; ++d) {
      const auto at = static_cast<std::size_t>(j * p.dim + d);
      store(row_address(args.dk, p.k_begin(b) + j, kv_head), args.dk.dtype, d, dk[at]);
      store(row_address(args.dv, p.k_begin(b) + j, kv_head), args.dv.dtype, d, dv[at]);
    }
  }
}

}  // namespace

std::size_t sdpa_math_bytes(const ExecContext& context, const SdpaSizes& sizes) {
  if (context.device() == Device::cuda) return 0;  // rows of weights, not matrices
  const std::int64_t running = std::min<std::int64_t>(context.pool().size(), sizes.batch * sizes.heads);
  std::size_t bytes = static_cast<std::size_t>(running) * sizeof(double);
  for (const std::int64_t length : {sizes.longest_q, sizes.longest_k}) {
    if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(length), &bytes)) return SIZE_MAX;
  }
  return bytes;
}

void sdpa_math(ExecContext& context, const SdpaProblem& problem) {
  context.pool().run(problem.batch * problem.heads, [&](std::int64_t i, int) {
    attend_head(problem, i / problem.heads, i % problem.heads);
  });
}

void sdpa_backward_math(ExecContext& context, const SdpaProblem& problem, const SdpaBackwardArgs& args) {
  run_heads(context, problem, args, {},
            [&](std::int64_t b, std::int64_t head, int) { differentiate_head(problem, args, b, head); });
}

}  // namespace inkling
