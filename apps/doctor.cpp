// inkling doctor: what was built, found and chosen, and why.
#include <sys/utsname.h>
#include <unistd.h>

#include <fstream>
#include <memory>

#include "apps/attention_case.h"
#include "apps/ceilings.h"
#include "apps/model_options.h"
#include "apps/program.h"
#include "engine/cuda/cuda.h"

namespace inkling::app {
namespace {

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

void line(const std::string& name, const std::string& value) {
  std::string padded = name;
  padded.resize(14, ' ');
  Console::write(padded + value + '\n');
}

void kernels(const ExecContext& context) {
  line("kernels", std::string(isa_name(context.isa())) + ": chosen");
  for (const IsaChoice::Refusal& refusal : context.isa_choice().refused) {
    line("", std::string(isa_name(refusal.isa)) + ": refused, " + refusal.reason);
  }
}

void machine() {
  utsname system{};
  ::uname(&system);
  line("system", std::string(system.sysname) + ' ' + system.release + ' ' + system.machine);
  line("cpu", cpu_name());
  const double page = static_cast<double>(::sysconf(_SC_PAGESIZE));
  line("memory", format("%.1f GB", static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * page / 1e9) +
                     format(", %.1f free", static_cast<double>(::sysconf(_SC_AVPHYS_PAGES)) * page / 1e9));
  const std::string huge = first_line("/sys/kernel/mm/transparent_hugepage/enabled");
  const bool never = huge.empty() || huge.find("[never]") != std::string::npos;
  line("huge pages",
       (huge.empty() ? "unknown" : huge) +
           (never ? ": weights lie in small pages, which costs some bandwidth" : ": used for weights"));
}

void sample(ExecContext& context) {
  try {
    const auto path = model_path({});
    const Result<Model> model = Model::load(path, context);
    line("sample model", path.string() + (model ? ": loads" : ": " + model.error().message()));
    const Result<Tokenizer> tokenizer = Tokenizer::load(path);
    line("tokenizer", tokenizer ? tokenizer->description() : tokenizer.error().message());
  } catch (const Error& error) {
    if (error.code() == Code::output) throw;
    line("sample model", error.message());
  }
}

struct DoctorOptions {
  ModelOptions model;
  std::string attn;
};

void print_choice(const std::string& pass, const SdpaChoice& choice) {
  line(pass,
       choice.backend ? std::string(sdpa_backend_name(*choice.backend)) + ": chosen" : "none can run it");
  for (const SdpaChoice::Refusal& refusal : choice.refused) {
    line("", std::string(sdpa_backend_name(refusal.backend)) + ": refused, " + refusal.reason);
  }
}

// The decision alone: no tensor is made and nothing runs.
void explain_attention(const DoctorOptions& o, const Console& console) {
  SdpaPolicy policy;
  if (!o.model.attn.empty()) policy.order = o.model.attn;
  const AttentionCase shape = [&] {
    try {
      return parse_attention_case(o.attn, policy.memory_limit);
    } catch (const Error& error) {
      throw Error(error.code(), "--attn: " + error.message());
    }
  }();
  ExecContext context(exec_options(o.model, console));
  const SdpaScope scope(context, policy);
  const AttentionData data(shape, nullptr);
  const SdpaChoice forward = choose(context, data.forward());
  line("attention", shape.to_string());
  line("memory limit", std::to_string(policy.memory_limit) + " bytes that grow with Tq x Tk; math takes " +
                           std::to_string(sdpa_quadratic_bytes(context, SdpaBackend::math, data.forward())) +
                           ", flash and decode none");
  print_choice("forward", forward);
  if (shape.backward) print_choice("backward", choose_backward(context, data.backward()));
}

/// The families of kernels of a GPU that is used.
void gpu_kernels(int ordinal) {
  const std::string_view hopper = cuda_hopper_refusal(ordinal);
  const std::string wgmma = hopper.empty() ? "available" : "refused, " + std::string(hopper);
  line("", "mma.sync, for every product, attention and its gradients: available");
  line("", "wgmma and tensor copies, for products of many rows and flash attention: " + wgmma);
  line("",
       "a step of one or two sequences of GPT-2's width in one kernel, where 12 clusters of 8 processors "
       "fit: " +
           wgmma);
}

/// Every GPU, and why it is used or not. Throws Error{device} when one was asked for that cannot run.
void gpus(const ModelOptions& options) {
  const std::string reason = cuda_unavailable_reason(options.ordinal);
  line("cuda", reason.empty() ? "available" : "refused, " + reason);
  if (const std::string versions = cuda_versions(); !versions.empty()) line("cuda versions", versions);
  for (const CudaDevice& gpu : cuda_devices()) {
    const std::string refusal = cuda_unavailable_reason(gpu.ordinal);
    constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
    line("cuda:" + std::to_string(gpu.ordinal),
         gpu.name + ", compute capability " + std::to_string(gpu.major) + "." + std::to_string(gpu.minor) +
             ", " + std::to_string(gpu.processors) + " multiprocessors, " +
             format("%.1f GiB", static_cast<double>(gpu.memory) / kGiB) +
             format(" (%.1f free)", static_cast<double>(gpu.free_memory) / kGiB) +
             (refusal.empty() ? "" : "; refused, " + refusal));
    if (refusal.empty()) gpu_kernels(gpu.ordinal);
  }
  require(options.device != Device::cuda || reason.empty(), Code::device,
          [&] { return "device: cuda was asked for, but " + reason; });
}

void doctor(ModelOptions options, const Console& console) {
  if (!options.attn.empty())
    throw Error(Code::usage, "--attn-order: expected --attn SHAPE beside it, got none");
  line("inkling", version_text());
  machine();
  gpus(options);
  options.device = Device::cpu;
  ExecContext context(exec_options(options, console));
  line("threads", std::to_string(context.pool().size()) + " (this process may run on " +
                      std::to_string(available_cpus()) + " CPUs)");
  kernels(context);
  const Ceilings ceilings = measure_ceilings(context);
  line("measured",
       format("%.1f GB/s read", ceilings.read_gb_s) +
           (ceilings.gflop_s > 0 ? format(", %.0f GFLOP/s f32 multiply-add", ceilings.gflop_s) : "") +
           ", all threads");
  sample(context);
}

}  // namespace

std::string version_text() {
  std::string text = std::string("inkling " INKLING_VERSION " (" INKLING_BUILD_TYPE ", ") +
#if defined(__clang__)
                     "clang " __clang_version__;
#else
                     "g++ " __VERSION__;
#endif
  if (*INKLING_SANITIZERS != '\0') text += ", sanitizers " INKLING_SANITIZERS;
  return text + (INKLING_WITH_CUDA ? ", CPU and CUDA)" : ", CPU)");
}

void add_doctor(Program& program) {
  auto o = std::make_shared<DoctorOptions>();
  Options& options =
      program.command("doctor", "what was built, found and chosen, and why", [o](const Console& console) {
        o->attn.empty() ? doctor(o->model, console) : explain_attention(*o, console);
      });
  options.group("What", Options::Layers::command_line);
  options.add("--attn", "SHAPE", "how attention would run: B, H, Hkv, T (or Tq, Tk), D, dtype, mask, ..",
              [o](const std::string& value) {
                if (value.empty()) refuse("a shape such as 'B=2 H=12 T=1024 D=64'", value);
                o->attn = value;
              });
  options.add("--attn-order", "NAME,..", "backends allowed, in this order [auto]", backends(o->model.attn));
  add_device_options(options, o->model);
}

}  // namespace inkling::app
