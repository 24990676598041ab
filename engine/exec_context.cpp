#include "engine/exec_context.h"

#include <sched.h>

#include <cstdlib>
#include <string>
#include <thread>

#include "engine/cpu/cpu_backend.h"
#include "engine/cuda/cuda.h"

namespace inkling {
namespace {

std::optional<Isa> isa_from_environment() {
  const char* name = std::getenv("INKLING_CPU_ISA");
  if (name == nullptr || *name == '\0') return std::nullopt;
  const std::optional<Isa> isa = parse_isa(name);
  require(isa.has_value(), Code::usage, [&] {
    std::string known;
    for (const auto& each : kIsaNames) known += (known.empty() ? "" : ", ") + std::string(each);
    return "INKLING_CPU_ISA: expected one of " + known + "; got " + name;
  });
  return isa;
}

int thread_count(int asked) {
  constexpr int kMost = 1024;
  require(asked >= 0 && asked <= kMost, Code::usage, [&] {
    return "threads: expected 0 (automatic) to " + std::to_string(kMost) + ", got " + std::to_string(asked);
  });
  return asked == 0 ? available_cpus() : asked;
}

}  // namespace

ExecContext::ExecContext(const ExecOptions& options)
    : log_(options.log),
      profiler_(options.profiler),
      isa_(choose_isa(options.isa ? options.isa : isa_from_environment())) {
  const std::string reason =
      options.device == Device::cpu ? std::string() : cuda_unavailable_reason(options.ordinal);
  require(options.device != Device::cuda || reason.empty(), Code::device,
          [&] { return "device: cuda was asked for, but " + reason; });
  pool_ = std::make_unique<ThreadPool>(thread_count(options.threads));
  if (options.device == Device::cpu || !reason.empty()) {
    backend_ = make_cpu_backend(*pool_, isa_.isa);
    if (!reason.empty()) log_.debug("device: cpu, since " + reason);
  } else {
    backend_ = make_cuda_backend(options.ordinal, isa_.isa);
  }
  log_.debug(backend_->description());
}

ExecContext::~ExecContext() = default;

int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? static_cast<int>(count) : 1;
}

}  // namespace inkling
