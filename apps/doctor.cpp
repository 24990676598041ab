// inkling doctor: what was built, found and chosen, and why.
#include <sys/utsname.h>
#include <unistd.h>

#include <fstream>
#include <memory>

#include "apps/ceilings.h"
#include "apps/model_options.h"
#include "apps/program.h"

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

void doctor(const ModelOptions& options, const Console& console) {
  line("inkling", version_text());
  machine();
  ExecContext context(exec_options(options, console));
  line("threads", std::to_string(context.pool().size()) + " (this process may run on " +
                      std::to_string(available_cpus()) + " CPUs)");
  kernels(context);
  const std::string cuda = cuda_unavailable_reason();
  line("cuda", cuda.empty() ? "available" : "refused, " + cuda);
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
  return text + (cuda_unavailable_reason().empty() ? ", CPU and CUDA)" : ", CPU)");
}

void add_doctor(Program& program) {
  auto o = std::make_shared<ModelOptions>();
  Options& options = program.command("doctor", "what was built, found and chosen, and why",
                                     [o](const Console& console) { doctor(*o, console); });
  add_device_options(options, *o);
}

}  // namespace inkling::app
