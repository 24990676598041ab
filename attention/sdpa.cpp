// Checks, choice and dispatch of sdpa(). The backends are in sdpa_math.cpp and sdpa_tiled.cpp.
#include "attention/sdpa.h"

#include <algorithm>
#include <utility>

#include "attention/sdpa_problem.h"
#include "engine/exec_context.h"

namespace inkling {
namespace {

constexpr SdpaBackend kBackends[] = {SdpaBackend::decode, SdpaBackend::flash, SdpaBackend::math};

SdpaPolicy& policy_of(ExecContext& context) {
  return context.attached<SdpaPolicy>();
}

std::string mebibytes(std::size_t bytes) {
  return std::to_string((bytes + (std::size_t{1} << 20) - 1) >> 20) + " MiB";
}

SdpaSupport supports_problem(ExecContext& context, SdpaBackend backend, const SdpaProblem& p) {
  if (backend == SdpaBackend::decode) {
    const std::int64_t rows = p.longest_q() * p.group;
    if (rows > kDecodeRows) {
      return {false, "Tq · H/Hkv = " + std::to_string(p.longest_q()) + " · " + std::to_string(p.group) +
                         " = " + std::to_string(rows) + " query rows, at most " +
                         std::to_string(kDecodeRows)};
    }
  }
  if (backend == SdpaBackend::math) {
    const std::size_t bytes = sdpa_math_bytes(context, p), limit = policy_of(context).memory_limit;
    if (bytes > limit) {
      return {false, "the weights of Tq=" + std::to_string(p.longest_q()) +
                         " Tk=" + std::to_string(p.longest_k()) + " take " + mebibytes(bytes) +
                         ", memory_limit is " + mebibytes(limit)};
    }
  }
  return {};
}

SdpaChoice choose_for(ExecContext& context, const SdpaProblem& problem) {
  SdpaChoice choice;
  const SdpaPolicy& policy = policy_of(context);
  for (const SdpaBackend backend : policy.order) {
    SdpaSupport support = supports_problem(context, backend, problem);
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

}  // namespace

std::optional<SdpaBackend> parse_sdpa_backend(std::string_view name) noexcept {
  for (const SdpaBackend backend : kBackends) {
    if (sdpa_backend_name(backend) == name) return backend;
  }
  return std::nullopt;
}

std::string SdpaChoice::to_string() const {
  std::string text = backend ? std::string(sdpa_backend_name(*backend)) + ": chosen\n" : std::string();
  for (const Refusal& refusal : refused) {
    text += std::string(sdpa_backend_name(refusal.backend)) + ": " + refusal.reason + '\n';
  }
  return text;
}

SdpaSupport supports(ExecContext& context, SdpaBackend backend, const SdpaArgs& args) {
  return supports_problem(context, backend, SdpaProblem(args));
}

SdpaChoice choose(ExecContext& context, const SdpaArgs& args) {
  return choose_for(context, SdpaProblem(args));
}

SdpaBackend sdpa(ExecContext& context, const SdpaArgs& args) {
  const SdpaProblem problem(args);
  const SdpaChoice choice = choose_for(context, problem);
  require(choice.backend.has_value(), Code::usage, [&] {
    return "sdpa: no allowed backend can run " + problem.describe() + ":\n" + choice.to_string();
  });
  switch (*choice.backend) {
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
  return *choice.backend;
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
