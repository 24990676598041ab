// inkling doctor: what was built, found and chosen, and why.
#include <fstream>
#include <memory>

#include "apps/machine.h"
#include "apps/session.h"
#include "apps/terminal.h"

namespace inkling::app {
namespace {

void doctor(const ModelFlags& flags) {
  Output out;
  const auto line = [&](const std::string& name, const std::string& value) {
    std::string padded = name;
    padded.resize(std::max<std::size_t>(name.size() + 1, 16), ' ');
    out.line(padded + value);
  };
  line("inkling", INKLING_VERSION);
  line("compiler", __VERSION__);
  line("cpu", cpu_name());
  ExecContext context(exec_options(flags));
  line("threads",
       std::to_string(context.pool().size()) + " of " + std::to_string(available_cpus()) + " CPUs");
  line("kernels", std::string(isa_name(context.isa())) + ": chosen");
  for (const auto& refusal : context.isa_choice().refused) {
    line("", std::string(isa_name(refusal.isa)) + ": refused, " + refusal.reason);
  }
  line("cuda", "refused, " + cuda_unavailable_reason());
  std::string huge = "unknown";
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::getline(file, huge);
  line("huge pages",
       huge + (huge.find("[never]") != std::string::npos ? ": weights will stream through small pages" : ""));
  const Ceilings ceilings = measure_ceilings(context);
  char text[128];
  std::snprintf(text, sizeof text, "%.1f GB/s read, %.0f GFLOP/s f32 products", ceilings.read_gb_s,
                ceilings.fma_gflop_s);
  line("measured", text);
  line("sample model", model_path({}).string());
}

}  // namespace

void add_doctor(CLI::App& app, int&) {
  auto flags = std::make_shared<ModelFlags>();
  CLI::App* command = app.add_subcommand("doctor", "what was built, found and chosen, and why");
  command->add_option("-t,--threads", flags->threads, "threads [all CPUs]")->check(CLI::Range(0, 1024));
  command->add_option("--device", flags->device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command->callback([flags] { doctor(*flags); });
}

}  // namespace inkling::app
