#include "apps/program.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <new>
#include <optional>

#include "apps/help.h"
#include "apps/signals.h"

namespace inkling::app {
namespace {

// $INKLING_CONFIG, else inkling/config.toml where configurations live, if there is one.
std::filesystem::path default_config() {
  namespace fs = std::filesystem;
  if (const char* path = std::getenv("INKLING_CONFIG"); path != nullptr && *path != '\0') return path;
  fs::path folder;
  if (const char* xdg = std::getenv("XDG_CONFIG_HOME"); xdg != nullptr && *xdg != '\0') {
    folder = xdg;
  } else if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0') {
    folder = fs::path(home) / ".config";
  }
  std::error_code ignored;
  fs::path path = folder / "inkling" / "config.toml";
  return !folder.empty() && fs::exists(path, ignored) ? path : fs::path();
}

// The words of the command line that nothing takes, as they were typed. CLI11's message has them in reverse.
std::string unknown_words(const CLI::App& app, const CLI::App& command) {
  std::string words;
  for (const std::string& word : app.remaining(true)) words += (words.empty() ? "" : " ") + word;
  const std::string kind = command.get_parent() == nullptr ? "a command or an option"
                           : words.starts_with('-')        ? "an option"
                                                           : "an argument";
  return words + ": not " + kind + " here (see " + command_path(command) + " --help)";
}

std::string in_words(const CLI::ParseError& error, const CLI::App& app, const CLI::App& command) {
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) return unknown_words(app, command);
  const std::string message = error.what();
  const std::size_t colon = std::min(message.rfind(": "), message.size());
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr && colon < message.size()) {
    return message.substr(0, message.find(": ")) + ": expected a value, got none";
  }
  return message;
}

// What was recorded is worth as much when the work was cut short or has failed. The failure is the one that
// counts, whatever becomes of the report.
void run_and_report(const std::function<void(const Console&)>& run, Console& console) {
  try {
    run(console);
  } catch (const std::exception&) {
    try {
      if (console.has_recorded()) console.report();
    } catch (const Error& error) {
      console.note("inkling: warning: " + error.message());
    }
    throw;
  }
  console.report();
}

}  // namespace

Program::Program() : app_(std::make_unique<CLI::App>("A small, fast GPT-2 engine.", "inkling")) {
  app_->set_help_flag();
  app_->add_flag("-h,--help")->description("this help; also 'inkling COMMAND --help'");
  app_->add_flag("--version")->description("what was built");
  app_->require_subcommand(0, 1);
}

Program::~Program() = default;

Options& Program::command(const std::string& name, const std::string& help,
                          std::function<void(const Console&)> run, const Options* parent) {
  CLI::App* sub = (parent == nullptr ? *app_ : parent->app()).add_subcommand(name, help);
  sub->set_help_flag();
  sub->add_flag("-h,--help")->group(kGeneral);
  if (parent != nullptr) parent->app().require_subcommand(0, 1);
  const std::string section = parent == nullptr ? name : parent->section() + '.' + name;
  commands_.push_back(std::make_unique<Command>(Command{Options(*sub, section), std::move(run)}));
  Options& options = commands_.back()->options;
  options.group(kGeneral, Options::Layers::command_line);
  options.add("--config", "FILE", "", path(config_path_));
  options.group(kGeneral, Options::Layers::all);
  options.add("--log-level", "LEVEL", "", [this](const std::string& value) {
    if (!parse_log_level(value, console_options_.log_level))
      refuse("trace, debug, info, warn, error or off", value);
  });
  options.flag("-q,--quiet", "", console_options_.quiet);
  options.flag("--profile", "", console_options_.profile);
  options.add("--trace", "FILE", "", path(console_options_.trace));
  options.add("--color", "WHEN", "",
              choice<Color>(console_options_.color,
                            {{"auto", Color::automatic}, {"on", Color::on}, {"off", Color::off}}));
  return options;
}

Program::Command& Program::chosen() {
  CLI::App* at = app_.get();
  while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
  for (const auto& command : commands_) {
    if (&command->options.app() == at) return *command;
  }
  throw Error(Code::usage, "expected a subcommand, got none (see inkling --help)");
}

void Program::parse(int argc, const char* const* argv) {
  try {
    app_->parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const CLI::App* at = app_.get();
    while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
    if (at->count("--help") > 0) return;  // whoever asks for help need not have the rest right
    throw Error(Code::usage, in_words(error, *app_, *at));
  }
}

void Program::check_keys(const ConfigFile& file) const {
  for (const ConfigFile::Entry& entry : file.entries) {
    bool known = false;
    for (const auto& command : commands_) {
      known |= (entry.section.empty() || command->options.section() == entry.section) &&
               command->options.has_key(entry.key);
    }
    if (!known) {
      const std::string where = entry.section.empty() ? "" : "[" + entry.section + "] ";
      throw Error(Code::usage, file.path.string() + ": " + where + entry.key +
                                   ": expected the name of a sampling, model or general option");
    }
  }
}

int Program::run(int argc, const char* const* argv) {
  std::optional<Console> console;
  try {
    console.emplace();
    install_signal_handlers();
    parse(argc, argv);
    if (app_->count("--version") > 0) return Console::write(version_text() + '\n'), 0;
    if (app_->count("--help") > 0) return Console::write(help_text(*app_)), 0;
    Command& command = chosen();
    if (command.options.app().count("--help") > 0) return Console::write(help_text(command.options.app())), 0;
    config_path_ = default_config();
    // --config itself comes from the command line alone, so a first pass without a file finds it.
    if (const auto& given = command.options.app().get_option("--config")->results(); !given.empty()) {
      config_path_ = given.back();
    }
    std::optional<ConfigFile> file;
    if (!config_path_.empty()) file = ConfigFile::read(config_path_);
    if (file) check_keys(*file);
    command.options.apply(file ? &*file : nullptr);
    console.emplace(console_options_);
    console->start_recording();
    run_and_report(command.run, *console);
    return 0;
  } catch (const Interrupted& interrupted) {
    return 128 + interrupted.signal();
  } catch (const ReaderGone&) {
    return 0;
  } catch (const Error& error) {
    if (console) console->error(error.message());
    return static_cast<int>(error.code());
  } catch (const std::bad_alloc&) {
    if (console) console->error("out of memory");
    return static_cast<int>(Code::out_of_memory);
  } catch (const std::exception& error) {
    if (console) console->error(std::string("internal: ") + error.what());
    return static_cast<int>(Code::internal);
  }
}

}  // namespace inkling::app
