// Program: the commands of `inkling`, from words to exit status.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "apps/console.h"
#include "apps/options.h"

namespace CLI {
class App;
}

namespace inkling::app {

class Program {
 public:
  Program();
  ~Program();

  /// Declares a command; `parent` makes it one of another command ("bench gemm"). `run` is called when its
  /// options have been set; failures are thrown.
  Options& command(const std::string& name, const std::string& help, std::function<void(const Console&)> run,
                   const Options* parent = nullptr);
  CLI::App& app() noexcept { return *app_; }

  /// Never throws. Exit status as in interface: inkling::Code, or 128 + signal.
  int run(int argc, const char* const* argv);

 private:
  struct Command {
    Options options;
    std::function<void(const Console&)> run;
  };
  Command& chosen();
  void parse(int argc, const char* const* argv);
  void check_keys(const ConfigFile& file) const;

  std::unique_ptr<CLI::App> app_;
  std::vector<std::unique_ptr<Command>> commands_;
  ConsoleOptions console_options_;
  std::filesystem::path config_path_;
};

/// What there is to know of this build in one line.
std::string version_text();

// The commands, one per file.
void add_generate(Program& program);
void add_tokenize(Program& program);
void add_detokenize(Program& program);
void add_inspect(Program& program);
void add_eval(Program& program);
void add_bench(Program& program);
void add_tokenizer(Program& program);
void add_train(Program& program);
void add_doctor(Program& program);
void add_completion(Program& program);

}  // namespace inkling::app
