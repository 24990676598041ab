// inkling completion: a shell's completion script, made from the commands and flags themselves.
#include <CLI/CLI.hpp>
#include <memory>

#include "apps/program.h"

namespace inkling::app {
namespace {

std::vector<const CLI::App*> commands_of(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

std::string flags_of(const CLI::App& command) {
  std::string all;
  for (const CLI::App* sub : commands_of(command)) all += sub->get_name() + ' ';
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) all += "--" + name + ' ';
  }
  all.pop_back();
  return all;
}

std::string names_of(const CLI::App& app) {
  std::string all;
  for (const CLI::App* command : commands_of(app)) all += (all.empty() ? "" : " ") + command->get_name();
  return all;
}

// Words by the first that were typed, the deepest command first.
std::string cases_of(const CLI::App& app, const std::string& before) {
  std::string cases;
  for (const CLI::App* command : commands_of(app)) {
    const std::string path = before + command->get_name() + ' ';
    const char* const more = command->get_name() == "completion" ? "bash zsh fish " : "";
    cases += cases_of(*command, path);
    cases += "    '" + path + "'*) words=\"" + more + flags_of(*command) + "\" ;;\n";
  }
  return cases;
}

std::string bash(const CLI::App& app) {
  return "_inkling() {\n"
         "  local words=\"" +
         names_of(app) +
         " --help --version\"\n"
         "  case \"${COMP_WORDS[*]:1:COMP_CWORD-1} \" in\n" +
         cases_of(app, "") +
         "  esac\n"
         "  COMPREPLY=()\n"
         "  while IFS= read -r word; do COMPREPLY+=(\"$word\"); done \\\n"
         "    < <(compgen -W \"$words\" -- \"${COMP_WORDS[COMP_CWORD]}\")\n"
         "}\n"
         "complete -o default -F _inkling inkling\n";
}

std::string fish(const CLI::App& app) {
  std::string script;
  for (const CLI::App* command : commands_of(app)) {
    const std::string name = command->get_name();
    script += "complete -c inkling -n __fish_use_subcommand -a " + name + " -d '" +
              command->get_description() + "'\n";
    for (const CLI::Option* option : command->get_options()) {
      for (const std::string& flag : option->get_lnames()) {
        std::string help = option->get_description();
        for (std::size_t at = 0; (at = help.find('\'', at)) != std::string::npos; at += 2)
          help.insert(at, 1, '\\');
        script += "complete -c inkling -n '__fish_seen_subcommand_from " + name + "' -l " + flag +
                  (option->get_type_size() == 0 ? "" : " -r") + (help.empty() ? "" : " -d '" + help + "'") +
                  '\n';
      }
    }
  }
  return script;
}

}  // namespace

void add_completion(Program& program) {
  auto shells = std::make_shared<std::vector<std::string>>();
  Options& options = program.command(
      "completion", "a completion script for bash, zsh or fish", [shells, &program](const Console&) {
        const std::string shell = shells->size() == 1 ? shells->front() : "";
        if (shell == "bash") return Console::write(bash(program.app()));
        if (shell == "zsh")
          return Console::write("autoload -U +X bashcompinit && bashcompinit\n" + bash(program.app()));
        if (shell == "fish") return Console::write(fish(program.app()));
        throw Error(Code::usage, "expected one of bash, zsh and fish, got " +
                                     (shell.empty() ? std::to_string(shells->size()) : "'" + shell + "'"));
      });
  options.group("Arguments", Options::Layers::command_line);
  options.words("SHELL", "bash, zsh or fish", *shells);
}

}  // namespace inkling::app
