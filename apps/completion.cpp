// inkling completion: shell completion made from the commands and flags themselves.
#include <memory>

#include "apps/options.h"
#include "apps/terminal.h"

namespace inkling::app {
namespace {

std::string flags_of(const CLI::App& command) {
  std::string all;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) all += (all.empty() ? "--" : " --") + name;
  }
  return all;
}

std::string script(const CLI::App& app, const std::string& shell) {
  std::string commands, cases;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    const std::string name = command->get_name();
    commands += (commands.empty() ? "" : " ") + name;
    if (shell == "fish") {
      cases += "complete -c inkling -n __fish_use_subcommand -a " + name + " -d '" +
               command->get_description() + "'\n";
      for (const CLI::Option* option : command->get_options()) {
        for (const std::string& flag : option->get_lnames()) {
          cases += "complete -c inkling -n '__fish_seen_subcommand_from " + name + "' -l " + flag + "\n";
        }
      }
    } else {
      cases += "    " + name + ") words=\"" + flags_of(*command) + "\" ;;\n";
    }
  }
  if (shell == "fish") return cases;
  const std::string bash =
      "_inkling() {\n  local words=\"" + commands + "\"\n  case \"${COMP_WORDS[1]}\" in\n" + cases +
      "  esac\n  [ \"$COMP_CWORD\" -eq 1 ] && words=\"" + commands +
      "\"\n  mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"${COMP_WORDS[COMP_CWORD]}\")\n}\n"
      "complete -o default -F _inkling inkling\n";
  return shell == "zsh" ? "autoload -U +X bashcompinit && bashcompinit\n" + bash : bash;
}

}  // namespace

void add_completion(CLI::App& app, int&) {
  auto shell = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("completion", "a script of completions: bash, zsh or fish");
  command->add_option("shell", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->callback([&app, shell] { Output().write(script(app, *shell)); });
}

}  // namespace inkling::app
