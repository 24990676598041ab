// SdpaProblem: SdpaArgs checked and with the shapes named. Internal to attention/.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>

#include "attention/cpu/kernels.h"
#include "attention/in_order.h"
#include "attention/kv_cache.h"
#include "attention/sdpa.h"
#include "attention/sdpa_backward.h"
#include "engine/exec_context.h"

namespace inkling {

enum class SdpaPass : std::uint8_t { forward, backward };

/// What a choice of backend goes by.
struct SdpaSizes {
  std::int64_t batch = 0, heads = 0, kv_heads = 0, dim = 0;
  std::int64_t longest_q = 0, longest_k = 0;
  DType dtype = DType::f32;
  bool dropout = false;
  bool cached = false;                                         ///< keys and values of SdpaArgs::cache
  bool mixed_gradients = false, shared_bias_gradient = false;  ///< what flash does not give on a GPU

  std::int64_t most_rows() const noexcept { return longest_q * (heads / kv_heads); }
  /// "B=2 H=12 Hkv=12 D=64 Tq=37 Tk=1024 f32".
  std::string to_string() const;
};

/// The first backend of the policy that can run a problem of these sizes. Allocates nothing. Throws
/// Error{usage} with every refusal when there is none.
SdpaBackend take_backend(ExecContext& context, const SdpaSizes& sizes, SdpaPass pass);

struct SdpaProblem {
  const SdpaArgs& args;
  std::int64_t batch = 0, heads = 0, kv_heads = 0, group = 0, dim = 0;  // B, H, Hkv, H / Hkv, D
  DType kv_dtype = DType::f32;
  float scale = 1.0f;

  /// Throws Error{usage}: op, argument, expected, got. Reads no tensor, so that choose() can be asked without
  /// memory.
  explicit SdpaProblem(const SdpaArgs& arguments);
  /// Throws Error{usage} where a tensor has rows and no address: for what runs.
  void check_memory() const;

  bool cached() const noexcept { return !args.cache.empty(); }
  std::int64_t q_begin(std::int64_t b) const noexcept { return args.cu_q[static_cast<std::size_t>(b)]; }
  std::int64_t q_length(std::int64_t b) const noexcept { return q_begin(b + 1) - q_begin(b); }
  std::int64_t k_begin(std::int64_t b) const noexcept {
    return cached() ? 0 : args.cu_k[static_cast<std::size_t>(b)];
  }
  std::int64_t k_length(std::int64_t b) const noexcept {
    const auto i = static_cast<std::size_t>(b);
    return args.cu_k.empty() ? args.cache[i]->length() : args.cu_k[i + 1] - args.cu_k[i];
  }
  std::int64_t longest_q() const noexcept;
  std::int64_t longest_k() const noexcept;

  /// Query i of sequence b sees keys max(0, i + from) … min(Tk, i + until) − 1, less what score_mask() hides.
  struct Range {
    std::int64_t from, until;
  };
  Range range(std::int64_t b) const noexcept;
  cpu::ScoreMask score_mask(std::int64_t b, std::int64_t head) const noexcept;
  cpu::DropoutRule dropout(std::int64_t b, std::int64_t head) const noexcept;
  /// Scores that the mask lets be seen, all heads: what a flop count goes by. What a bias hides counts, since
  /// it is computed, and so do all of a boolean mask that is not in the memory of the CPU.
  double visible_scores(Device memory) const;
  /// Bytes of q, k, v and out, read or written once.
  double nbytes() const noexcept;
  /// Of sdpa_backward().
  SdpaSizes sizes(const SdpaBackwardArgs& backward) const noexcept;
  SdpaSizes sizes() const noexcept {
    return {batch,       heads,        kv_heads,           dim,     longest_q(),
            longest_k(), args.q.dtype, args.dropout.p > 0, cached()};
  }
};

/// Row `row`, head `head` of a strided (rows, heads, D) tensor.
inline std::byte* row_address(const TensorView& view, std::int64_t row, std::int64_t head) noexcept {
  return static_cast<std::byte*>(view.data) +
         (row * view.stride[0] + head * view.stride[1]) * static_cast<std::ptrdiff_t>(dtype_size(view.dtype));
}

// The backends (sdpa_math.cpp, sdpa_tiled.cpp). Arguments are checked and supported.
void sdpa_math(ExecContext& context, const SdpaProblem& problem);
void sdpa_flash(ExecContext& context, const SdpaProblem& problem);
void sdpa_decode(ExecContext& context, const SdpaProblem& problem);
void sdpa_backward_math(ExecContext& context, const SdpaProblem& problem, const SdpaBackwardArgs& args);
void sdpa_backward_flash(ExecContext& context, const SdpaProblem& problem, const SdpaBackwardArgs& args);
/// Bytes that the math backend takes for weights.
std::size_t sdpa_math_bytes(const ExecContext& context, const SdpaSizes& sizes);
/// Most query rows (queries × group) of a sequence that decode takes.
inline constexpr std::int64_t kDecodeRows = 16;

/// Key/value heads that one task of a few query rows takes together: long runs of memory, and still a few
/// tasks for every thread. `tasks` is how many there are head by head, `rows` the most rows of a head.
inline std::int64_t heads_per_task(std::int64_t tasks, std::int64_t heads, std::int64_t rows,
                                   std::int64_t threads) noexcept {
  const std::int64_t room = cpu::kQueryRows / std::max<std::int64_t>(1, rows);
  return std::clamp<std::int64_t>(std::min(tasks / (2 * threads), room), 1, heads);
}

/// Calls body(b, kv_head, worker) for every head of every sequence, sequences in the given order, or b
/// rising when it is empty. Serially and with b rising when several of them add to the same element of dbias,
/// which keeps its bits fixed.
template <class Body>
void run_heads(ExecContext& context, const SdpaProblem& problem, const SdpaBackwardArgs& args,
               std::span<const std::int64_t> order, Body&& body) {
  const bool shared = args.dbias.data != nullptr &&
                      (args.dbias.shape[0] < problem.batch || args.dbias.shape[1] < problem.heads);
  const std::int64_t heads = problem.batch * problem.kv_heads;
  if (shared) {
    for (std::int64_t i = 0; i < heads; ++i) body(i / problem.kv_heads, i % problem.kv_heads, 0);
  } else {
    run_in_order(context.pool(), heads, [&](std::int64_t i, int worker) {
      const std::int64_t b = i / problem.kv_heads;
      body(order.empty() ? b : order[static_cast<std::size_t>(b)], i % problem.kv_heads, worker);
    });
  }
}

}  // namespace inkling
