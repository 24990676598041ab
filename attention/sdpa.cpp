// Checks, choice and dispatch of sdpa(). The backends are in sdpa_math.cpp and sdpa_tiled.cpp.
#include "attention/sdpa.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "attention/checks.h"
#include "attention/cuda/args.h"
#include "attention/cuda/cuda_sdpa.h"
#include "attention/sdpa_backward.h"
#include "attention/sdpa_problem.h"
#include "engine/exec_context.h"
#include "engine/profiler.h"

namespace inkling {
namespace {

constexpr SdpaBackend kBackends[] = {SdpaBackend::decode, SdpaBackend::flash, SdpaBackend::math};

SdpaPolicy& policy_of(ExecContext& context) {
  return context.attached<SdpaPolicy>();
}

std::string amount(std::size_t bytes) {
  return bytes % (std::size_t{1} << 20) == 0 ? std::to_string(bytes >> 20) + " MiB"
                                             : std::to_string(bytes) + " bytes";
}

// What keeps a backend from running a problem. Its reason in words is written only for those who ask.
enum class Obstacle : std::uint8_t {
  none,
  no_backward,
  too_many_rows,
  too_much_memory,
  no_cache_on_gpu,
  no_dropout_on_gpu,
  mixed_gradients_on_gpu,
  shared_bias_gradient_on_gpu
};

Obstacle obstacle(ExecContext& context, SdpaBackend backend, const SdpaSizes& sizes, SdpaPass pass) {
  const bool gpu = context.device() == Device::cuda;
  if (gpu && sizes.cached) return Obstacle::no_cache_on_gpu;
  if (backend == SdpaBackend::decode) {
    if (pass == SdpaPass::backward) return Obstacle::no_backward;
    if (gpu && sizes.dropout) return Obstacle::no_dropout_on_gpu;
    if (sizes.most_rows() > kDecodeRows) return Obstacle::too_many_rows;
  }
  if (gpu && backend == SdpaBackend::flash && pass == SdpaPass::backward) {
    if (sizes.mixed_gradients) return Obstacle::mixed_gradients_on_gpu;
    if (sizes.shared_bias_gradient) return Obstacle::shared_bias_gradient_on_gpu;
  }
  if (backend == SdpaBackend::math && pass == SdpaPass::forward &&
      sdpa_math_bytes(context, sizes) > policy_of(context).memory_limit) {
    return Obstacle::too_much_memory;
  }
  return Obstacle::none;
}

SdpaSupport supports_sizes(ExecContext& context, SdpaBackend backend, const SdpaSizes& sizes, SdpaPass pass) {
  switch (obstacle(context, backend, sizes, pass)) {
    case Obstacle::none:
      break;
    case Obstacle::no_cache_on_gpu:
      return {false, "on a GPU it takes packed k and v; a cache is cached_attention()'s"};
    case Obstacle::no_dropout_on_gpu:
      return {false, "on a GPU it draws no dropout"};
    case Obstacle::mixed_gradients_on_gpu:
      return {false, "on a GPU it takes dout in the dtype of q and gives dq, dk and dv in one"};
    case Obstacle::shared_bias_gradient_on_gpu:
      return {false, "on a GPU it gives the gradient of a bias for every (B, H, Tq, Tk) alone"};
    case Obstacle::no_backward:
      return {false, "it has no backward pass"};
    case Obstacle::too_many_rows:
      return {false, "Tq · H/Hkv = " + std::to_string(sizes.longest_q) + " · " +
                         std::to_string(sizes.heads / sizes.kv_heads) + " = " +
                         std::to_string(sizes.most_rows()) + " query rows, at most " +
                         std::to_string(kDecodeRows)};
    case Obstacle::too_much_memory:
      return {false, "the weights of Tq=" + std::to_string(sizes.longest_q) +
                         " Tk=" + std::to_string(sizes.longest_k) + " take " +
                         amount(sdpa_math_bytes(context, sizes)) + ", memory_limit is " +
                         amount(policy_of(context).memory_limit)};
  }
  return {};
}

SdpaChoice choose_for(ExecContext& context, const SdpaSizes& sizes, SdpaPass pass) {
  SdpaChoice choice;
  const SdpaPolicy& policy = policy_of(context);
  for (const SdpaBackend backend : policy.order) {
    SdpaSupport support = supports_sizes(context, backend, sizes, pass);
    if (choice.backend) {
      if (support.ok) support.reason = std::string(sdpa_backend_name(*choice.backend)) + " comes first";
      choice.refused.push_back({backend, support.reason});
    } else if (support.ok) {
      choice.backend = backend;
    } else {
      choice.refused.push_back({backend, support.reason});
    }
  }
  for (const SdpaBackend backend : kBackends) {
    if (std::ranges::find(policy.order, backend) == policy.order.end()) {
      choice.refused.push_back({backend, "not among the backends allowed here"});
    }
  }
  return choice;
}

// Of sdpa_backward() alone; SdpaProblem has checked what it shares with sdpa().
void check_backward(const SdpaProblem& p, const SdpaBackwardArgs& args) {
  constexpr ArgumentChecks check{"sdpa_backward"};
  const auto check_like = [&](const TensorView& view, const TensorView& model, const char* argument) {
    check.heads(view, argument, model.shape[1], model.shape[2]);
    check(view.shape[0] == model.shape[0] && (view.dtype == DType::f32 || view.dtype == model.dtype),
          argument, [&] {
            return "expected " + std::to_string(model.shape[0]) + " rows in f32 or the dtype of q, got " +
                   std::string(dtype_name(view.dtype)) + ' ' + view.shape_string();
          });
    check.memory(view, argument);
  };
  check(!p.cached(), "forward.cache", "expected packed k and v");
  check(args.forward.lse.data != nullptr || args.forward.q.shape[0] == 0, "forward.lse",
        "expected what sdpa() wrote, got none");
  check_like(args.dout, args.forward.q, "dout");
  check_like(args.dq, args.forward.q, "dq");
  check_like(args.dk, args.forward.k, "dk");
  check_like(args.dv, args.forward.v, "dv");
  const TensorView &bias = args.forward.mask.bias, &dbias = args.dbias;
  check(dbias.data == nullptr ||
            (args.forward.mask.kind == MaskKind::additive_bias && dbias.dtype == DType::f32 &&
             dbias.shape == bias.shape && dbias.stride == bias.stride && dbias.contiguous()),
        "dbias", [&] {
          return "expected the contiguous f32 shape of mask.bias, " + bias.shape_string() + ", got " +
                 std::string(dtype_name(dbias.dtype)) + ' ' + dbias.shape_string();
        });
}

std::string_view range_name(SdpaBackend backend, SdpaPass pass) noexcept {
  constexpr std::string_view kNames[][2] = {{"sdpa math", "sdpa_backward math"},
                                            {"sdpa flash", "sdpa_backward flash"},
                                            {"sdpa decode", "sdpa_backward decode"}};
  return kNames[static_cast<std::size_t>(backend)][pass == SdpaPass::backward ? 1 : 0];
}

// Two products per score forward; five backward, which also reads q, k, v again and writes their gradients.
ProfileWork work_of(const ExecContext& context, const SdpaProblem& problem, SdpaPass pass) {
  const double products = pass == SdpaPass::backward ? 5 : 2;
  return {problem.nbytes() * (pass == SdpaPass::backward ? 2 : 1),
          products * 2 * problem.visible_scores(context.device()) * static_cast<double>(problem.dim),
          {problem.args.q.shape[0], problem.heads, problem.dim}};
}

}  // namespace

std::optional<SdpaBackend> parse_sdpa_backend(std::string_view name) noexcept {
  for (const SdpaBackend backend : kBackends) {
    if (sdpa_backend_name(backend) == name) return backend;
  }
  return std::nullopt;
}

// choose_for() without the reasons, which every call would pay for with a dozen allocations.
SdpaBackend take_backend(ExecContext& context, const SdpaSizes& sizes, SdpaPass pass) {
  for (const SdpaBackend backend : policy_of(context).order) {
    if (obstacle(context, backend, sizes, pass) == Obstacle::none) return backend;
  }
  throw Error(Code::usage, "sdpa: no allowed backend can run " + sizes.to_string() + ":\n" +
                               choose_for(context, sizes, pass).to_string());
}

std::string SdpaChoice::to_string() const {
  std::string text = backend ? std::string(sdpa_backend_name(*backend)) + ": chosen\n" : std::string();
  for (const Refusal& refusal : refused) {
    text += std::string(sdpa_backend_name(refusal.backend)) + ": " + refusal.reason + '\n';
  }
  return text;
}

SdpaSupport supports(ExecContext& context, SdpaBackend backend, const SdpaArgs& args) {
  return supports_sizes(context, backend, SdpaProblem(args).sizes(), SdpaPass::forward);
}

std::size_t sdpa_quadratic_bytes(ExecContext& context, SdpaBackend backend, const SdpaArgs& args) {
  return backend == SdpaBackend::math ? sdpa_math_bytes(context, SdpaProblem(args).sizes()) : 0;
}

std::size_t sdpa_drawn_bytes(std::int64_t heads, std::span<const std::int32_t> cu_q,
                             std::span<const std::int32_t> cu_k) noexcept {
  std::int64_t words = 0;
  for (std::size_t b = 0; b + 1 < cu_q.size(); ++b) {
    words += heads * cuda::drawn_words(cu_q[b + 1] - cu_q[b], cu_k[b + 1] - cu_k[b]);
  }
  return static_cast<std::size_t>(words) * sizeof(std::uint32_t);
}

bool sdpa_reads_drawn(ExecContext& context, DType dtype, std::int64_t dim) {
  return context.device() == Device::cuda && reads_drawn_on_cuda(context, dtype, dim);
}

SdpaChoice choose(ExecContext& context, const SdpaArgs& args) {
  return choose_for(context, SdpaProblem(args).sizes(), SdpaPass::forward);
}

SdpaBackend sdpa(ExecContext& context, const SdpaArgs& args) {
  const SdpaProblem problem(args);
  problem.check_memory();
  const SdpaBackend backend = take_backend(context, problem.sizes(), SdpaPass::forward);
  const ProfileRange range(context, range_name(backend, SdpaPass::forward),
                           [&] { return work_of(context, problem, SdpaPass::forward); });
  if (context.device() == Device::cuda) {
    sdpa_on_cuda(context, problem, backend);
    return backend;
  }
  switch (backend) {
    case SdpaBackend::math:
      sdpa_math(context, problem);
      break;
    case SdpaBackend::flash:
      sdpa_flash(context, problem);
      break;
    case SdpaBackend::decode:
      sdpa_decode(context, problem);
      break;
  }
  return backend;
}

SdpaChoice choose_backward(ExecContext& context, const SdpaBackwardArgs& args) {
  return choose_for(context, SdpaProblem(args.forward).sizes(args), SdpaPass::backward);
}

SdpaBackend sdpa_backward(ExecContext& context, const SdpaBackwardArgs& args) {
  const SdpaProblem problem(args.forward);
  problem.check_memory();
  check_backward(problem, args);
  const SdpaBackend backend = take_backend(context, problem.sizes(args), SdpaPass::backward);
  const ProfileRange range(context, range_name(backend, SdpaPass::backward),
                           [&] { return work_of(context, problem, SdpaPass::backward); });
  if (context.device() == Device::cuda) {
    sdpa_backward_on_cuda(context, problem, args, backend);
    return backend;
  }
  if (args.dbias.data != nullptr) std::memset(args.dbias.data, 0, args.dbias.nbytes());
  if (backend == SdpaBackend::math) {
    sdpa_backward_math(context, problem, args);
  } else {
    sdpa_backward_flash(context, problem, args);
  }
  return backend;
}

SdpaScope::SdpaScope(ExecContext& context, SdpaPolicy policy)
    : context_(context), previous_(std::exchange(policy_of(context), std::move(policy))) {}

SdpaScope::SdpaScope(ExecContext& context, std::initializer_list<SdpaBackend> order)
    : SdpaScope(context, SdpaPolicy{order, policy_of(context).memory_limit}) {}

SdpaScope::~SdpaScope() {
  policy_of(context_) = std::move(previous_);
}

const SdpaPolicy& sdpa_policy(ExecContext& context) {
  return policy_of(context);
}

}  // namespace inkling
