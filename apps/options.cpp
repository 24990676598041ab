#include "apps/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <limits>

namespace inkling::app {
namespace {

std::string environment_name(std::string key) {
  std::transform(key.begin(), key.end(), key.begin(),
                 [](unsigned char c) { return c == '-' ? '_' : static_cast<char>(std::toupper(c)); });
  return "INKLING_" + key;
}

// "expected …, got …" becomes "WHERE: expected …, got …".
void set_from(const std::string& where, const Setter& set, const std::string& value) {
  try {
    set(value);
  } catch (const Error& error) {
    throw Error(error.code(), where + ": " + error.message());
  }
}

}  // namespace

void refuse(const std::string& expected, std::string_view got) {
  throw Error(Code::usage, "expected " + expected + ", got '" + std::string(got) + "'");
}

std::string flag_name(std::string_view option) {
  std::string name(option);
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

Error about_flag(const Error& error, std::string_view field) {
  const std::string message = error.message();
  if (!message.starts_with(std::string(field) + ": ")) return error;
  return Error(error.code(), "--" + flag_name(field) + message.substr(field.size()));
}

Setter text(std::string& target) {
  return [&target](const std::string& value) { target = value; };
}

Setter path(std::filesystem::path& target) {
  return [&target](const std::string& value) {
    if (value.empty()) refuse("a path", value);
    target = value;
  };
}

Setter input_path(std::filesystem::path& target) {
  return [&target](const std::string& value) {
    if (!target.empty())
      throw Error(Code::usage, "expected one path, got '" + target.string() + "' and '" + value + "'");
    path(target)(value);
  };
}

Setter append(std::vector<std::string>& target) {
  return [&target](const std::string& value) { target.push_back(value); };
}

Setter numbers(std::vector<std::int64_t>& target, std::int64_t least, std::int64_t most) {
  return [&target, least, most](const std::string& value) {
    std::vector<std::int64_t> parsed;
    for (std::size_t at = 0; at <= value.size();) {
      const std::size_t comma = std::min(value.find(',', at), value.size());
      const Setter one = whole(parsed.emplace_back(), least, most);
      one(value.substr(at, comma - at));
      at = comma + 1;
    }
    target = parsed;
  };
}

Setter bytes(std::uint64_t& target) {
  return [&target](const std::string& value) {
    constexpr std::string_view kUnits = "KMGT";
    std::string_view digits = value;
    int shift = 0;
    if (!digits.empty()) {
      const std::size_t unit =
          kUnits.find(static_cast<char>(std::toupper(static_cast<unsigned char>(digits.back()))));
      if (unit != std::string_view::npos) {
        shift = 10 * (static_cast<int>(unit) + 1);
        digits.remove_suffix(1);
      }
    }
    std::uint64_t number = 0;
    if (!parse_number(digits, number) || number > (std::numeric_limits<std::uint64_t>::max() >> shift)) {
      refuse("a number of bytes such as 1500, 512K or 2G", value);
    }
    target = number << shift;
  };
}

ConfigFile ConfigFile::read(const std::filesystem::path& path) {
  std::ifstream stream(path);
  if (!stream) throw Error(Code::file, path.string() + ": cannot open the configuration file");
  ConfigFile file{path, {}};
  try {
    for (const CLI::ConfigItem& item : CLI::ConfigBase().from_config(stream)) {
      if (item.name == "++" || item.name == "--")
        continue;  // CLI11's marks of where a section begins and ends
      std::string section;
      for (const std::string& parent : item.parents) section += (section.empty() ? "" : ".") + parent;
      std::string key = item.name;
      std::replace(key.begin(), key.end(), '_', '-');
      file.entries.push_back({section, key, item.inputs});
    }
  } catch (const CLI::Error& error) {
    throw Error(Code::malformed, path.string() + ": " + error.what());
  }
  return file;
}

void Options::group(std::string title, Layers layers) {
  group_ = std::move(title);
  layers_ = layers;
}

void Options::remember(CLI::Option* option, Setter set) {
  const auto& names = option->get_lnames();
  option->group(group_);
  settings_.push_back({option, names.empty() ? option->get_name() : names.front(), layers_, std::move(set)});
}

void Options::add(const std::string& names, const std::string& value_name, const std::string& help,
                  Setter set) {
  CLI::Option* option = app_->add_option(
      names, [](const CLI::results_t&) { return true; }, help);
  option->type_name(value_name)->type_size(1)->expected(1)->allow_extra_args(false);
  option->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  remember(option, std::move(set));
}

void Options::flag(const std::string& names, const std::string& help, Setter set) {
  remember(app_->add_flag(names, help), std::move(set));
}

void Options::flag(const std::string& names, const std::string& help, bool& target) {
  flag(names, help, choice<bool>(target, {{"true", true}, {"false", false}, {"1", true}, {"0", false}}));
}

void Options::words(const std::string& name, const std::string& help, std::vector<std::string>& target) {
  CLI::Option* option = app_->add_option(
      name, [](const CLI::results_t&) { return true; }, help);
  // CLI11 takes words up to the least number expected; beyond it, "[a,b]" would be read as a list of its own.
  option->type_name("")->expected(1 << 20)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  remember(option, append(target));
}

void Options::apply(const ConfigFile* file) const {
  for (const Setting& setting : settings_) apply(setting, file);
}

void Options::apply(const Setting& setting, const ConfigFile* file) const {
  if (setting.option->count() > 0) {
    const std::string flag =
        setting.option->get_positional() ? setting.option->get_name() : "--" + setting.key;
    for (const std::string& value : setting.option->results()) set_from(flag, setting.set, value);
    return;
  }
  if (setting.layers != Layers::all) return;
  const std::string variable = environment_name(setting.key);
  if (const char* value = std::getenv(variable.c_str()); value != nullptr && *value != '\0') {
    return set_from(variable, setting.set, value);
  }
  if (file == nullptr) return;
  for (const std::string& section : {section_, std::string()}) {
    bool found = false;
    for (const ConfigFile::Entry& entry : file->entries) {
      if (entry.key != setting.key || entry.section != section) continue;
      found = true;
      for (const std::string& value : entry.values) {
        set_from(file->path.string() + ": " + entry.key, setting.set, value);
      }
    }
    if (found) return;
  }
}

bool Options::given(std::string_view key) const {
  return std::any_of(settings_.begin(), settings_.end(),
                     [&](const Setting& s) { return s.key == key && s.option->count() > 0; });
}

bool Options::has_key(std::string_view key) const {
  return std::any_of(settings_.begin(), settings_.end(),
                     [&](const Setting& s) { return s.layers == Layers::all && s.key == key; });
}

}  // namespace inkling::app
