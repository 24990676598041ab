// Options of a command. CLI11 splits the command line into words; the values are checked and set here, so
// that a value means the same, and fails with the same words, from a flag, the environment or the
// configuration file.
//
// Precedence: flag > INKLING_NAME in the environment > configuration file > what the target held before.
#pragma once

#include <charconv>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/error.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace inkling::app {

/// Takes one value as text. Throws Error{usage} "expected …, got …".
using Setter = std::function<void(const std::string& value)>;

[[noreturn]] void refuse(const std::string& expected, std::string_view got);

/// A field's name on the command line: "top_p" is "top-p".
std::string flag_name(std::string_view option);

/// An Error that names this field of the library's options ("top_p: expected …") as one that names its flag
/// ("--top-p: expected …"); any other as it is.
Error about_flag(const Error& error, std::string_view field);

/// Parses all of `text` as a number; false when it is none or does not fit.
template <class T>
bool parse_number(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

/// A whole number in [least, most].
template <class T>
Setter whole(T& target, T least, T most) {
  return [&target, least, most](const std::string& text) {
    T value{};
    if (!parse_number(text, value) || value < least || value > most) {
      refuse("a whole number from " + std::to_string(least) + " to " + std::to_string(most), text);
    }
    target = value;
  };
}

/// A number in [least, most), which `expected` says in words.
template <class T>
Setter fraction(T& target, T least, T most, const std::string& expected) {
  return [&target, least, most, expected](const std::string& text) {
    T value{};
    if (!parse_number(text, value) || !(value >= least && value < most)) refuse(expected, text);
    target = value;
  };
}

Setter text(std::string& target);
Setter path(std::filesystem::path& target);
/// A path that may be given once: of two inputs, neither is left unread.
Setter input_path(std::filesystem::path& target);
/// Adds to a list; the option may be repeated.
Setter append(std::vector<std::string>& target);
/// Whole numbers separated by commas, each in [least, most].
Setter numbers(std::vector<std::int64_t>& target, std::int64_t least, std::int64_t most);
/// Bytes: 1500, 512K, 2G (powers of 1024).
Setter bytes(std::uint64_t& target);

/// One of a few names.
template <class T>
Setter choice(T& target, std::vector<std::pair<std::string, T>> names) {
  return [&target, names = std::move(names)](const std::string& text) {
    std::string known;
    for (const auto& [name, value] : names) {
      if (name == text) return void(target = value);
      known += (known.empty() ? "" : ", ") + name;
    }
    refuse("one of " + known, text);
  };
}

/// A parsed configuration file: "key = value" lines, keys of one command under "[generate]" or
/// "[bench.gemm]".
struct ConfigFile {
  struct Entry {
    std::string section;  ///< of one command; empty: for all
    std::string key;
    std::vector<std::string> values;
  };
  std::filesystem::path path;
  std::vector<Entry> entries;

  /// Throws Error{file} or Error{malformed}.
  static ConfigFile read(const std::filesystem::path& path);
};

/// The options of one command.
class Options {
 public:
  /// `section`: of the configuration file.
  Options(CLI::App& app, std::string section) : app_(&app), section_(std::move(section)) {}

  /// Which layers may set the options of a group.
  enum class Layers : std::uint8_t { command_line, all };
  /// The title under which help lists what is added next.
  void group(std::string title, Layers layers);
  /// `names` as CLI11 wants them: "-t,--threads"; the first long name gives the environment's name and the
  /// file's key.
  void add(const std::string& names, const std::string& value_name, const std::string& help, Setter set);
  /// A flag sets "true"; the environment and the file may also say "false".
  void flag(const std::string& names, const std::string& help, Setter set);
  void flag(const std::string& names, const std::string& help, bool& target);
  /// Words without a flag.
  void words(const std::string& name, const std::string& help, std::vector<std::string>& target);

  /// Sets every target from the topmost layer that has a value for it. `file` may be null.
  void apply(const ConfigFile* file) const;
  bool has_key(std::string_view key) const;
  /// Whether the command line itself, the topmost layer, has a value for it.
  bool given(std::string_view key) const;
  CLI::App& app() const noexcept { return *app_; }
  const std::string& section() const noexcept { return section_; }

 private:
  struct Setting {
    CLI::Option* option;
    std::string key;
    Layers layers;
    Setter set;
  };
  void apply(const Setting& setting, const ConfigFile* file) const;
  void remember(CLI::Option* option, Setter set);

  CLI::App* app_;
  std::string section_;
  std::string group_ = "Options";
  Layers layers_ = Layers::command_line;
  std::vector<Setting> settings_;
};

}  // namespace inkling::app
