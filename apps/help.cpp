#include "apps/help.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <vector>

namespace inkling::app {
namespace {

constexpr std::size_t kNamesWidth = 31;
constexpr std::size_t kColumns = 100;

// "-t, --threads N": one short and the first long name; what else there is, is told by the help text.
std::string option_names(const CLI::Option& option) {
  if (option.get_positional()) return option.get_name();
  std::string names;
  if (!option.get_snames().empty()) names = "-" + option.get_snames().front();
  if (!option.get_lnames().empty()) names += (names.empty() ? "--" : ", --") + option.get_lnames().front();
  if (option.get_type_size() != 0 && !option.get_type_name().empty()) names += ' ' + option.get_type_name();
  return names;
}

std::string line(const std::string& names, const std::string& help) {
  std::string text = "  " + names;
  text.resize(std::max(text.size() + 1, kNamesWidth), ' ');
  return text + help + '\n';
}

std::string usage(const CLI::App& app) {
  std::string text =
      "Usage: " + command_path(app) + (app.get_parent() == nullptr ? " COMMAND" : "") + " [OPTION]...";
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_positional()) text += ' ' + option->get_name();
  }
  return text + '\n' + app.get_description() + '\n';
}

std::string general(const std::vector<const CLI::Option*>& options) {
  std::string text = "General:";
  std::size_t column = text.size();
  for (const CLI::Option* option : options) {
    const std::string names = option_names(*option) + (option == options.back() ? "" : ";");
    if (column + 1 + names.size() > kColumns) {
      text += "\n ";
      column = 1;
    }
    text += ' ' + names;
    column += 1 + names.size();
  }
  return text + '\n';
}

}  // namespace

std::string command_path(const CLI::App& app) {
  const std::string& name = app.get_name();
  return app.get_parent() == nullptr ? name : command_path(*app.get_parent()) + ' ' + name;
}

std::string help_text(const CLI::App& app) {
  std::string text = usage(app);
  const auto commands = app.get_subcommands([](const CLI::App*) { return true; });
  if (!commands.empty()) text += "Commands:\n";
  for (const CLI::App* command : commands) text += line(command->get_name(), command->get_description());
  std::vector<std::string> groups;
  std::vector<const CLI::Option*> last;
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_group() == kGeneral) {
      last.push_back(option);
    } else if (std::find(groups.begin(), groups.end(), option->get_group()) == groups.end()) {
      groups.push_back(option->get_group());
    }
  }
  for (const std::string& group : groups) {
    text += group + ":\n";
    for (const CLI::Option* option : app.get_options()) {
      if (option->get_group() == group) text += line(option_names(*option), option->get_description());
    }
  }
  return last.empty() ? text : text + general(last);
}

}  // namespace inkling::app
