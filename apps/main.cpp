// inkling: the command line. Each command lives in a file of its own.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "apps/options.h"
#include "apps/terminal.h"

namespace {

using namespace inkling;
using namespace inkling::app;

int run(int argc, char** argv) {
  int exit_code = 0;
  CLI::App app("Inkling: GPT-2 on your own machine. Text on standard output, the rest on standard error.",
               "inkling");
  app.set_version_flag("--version", "inkling " INKLING_VERSION);
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::simple);
  app.get_formatter()->column_width(34);
  // An option given twice takes its last value: that is also how flags win over environment and config file.
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  add_generate(app, exit_code);
  add_tokenize(app, exit_code);
  add_detokenize(app, exit_code);
  add_inspect(app, exit_code);
  add_eval(app, exit_code);
  add_bench(app, exit_code);
  add_doctor(app, exit_code);
  add_completion(app, exit_code);

  try {
    std::vector<std::string> arguments = merged_arguments(app, {argv + 1, argv + argc});
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    std::fprintf(stderr, "inkling: error: %s\nTry 'inkling --help' or 'inkling COMMAND --help'.\n",
                 error.what());
    return static_cast<int>(Code::usage);
  }
  Output().flush();
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away is an error of write(), handled where it happens
  try {
    return run(argc, argv);
  } catch (const Output::Gone&) {
    std::fclose(stdout);
    return 0;
  } catch (const Error& error) {
    return report(error);
  } catch (const std::bad_alloc&) {
    return report(Error(Code::out_of_memory, "out of memory"));
  } catch (const std::exception& error) {
    return report(Error(Code::internal, error.what()));
  }
}
