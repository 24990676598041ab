// Facts: what `inspect` tells, once for people and once for programs. A fact is a name within a section, a
// value as JSON, and the same as lines of text.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace inkling::app {

/// {"name":value,…} of values that are JSON already.
std::string json_object(std::span<const std::pair<std::string, std::string>> members);
std::string json_object(std::initializer_list<std::pair<std::string, std::string>> members);
/// [1,2,3]
std::string json_list(std::span<const std::int64_t> numbers);

/// What was chosen of several, and why not each of the others.
struct Choice {
  std::string chosen;                                        ///< "": none
  std::vector<std::pair<std::string, std::string>> refused;  ///< name and reason
};

class Facts {
 public:
  /// Names what is added next.
  void section(std::string name) { section_ = std::move(name); }

  void add(std::string name, const std::string& text);
  template <std::integral Number>
  void add(std::string name, Number number, std::string_view unit = {}) {
    add_number(std::move(name), std::to_string(number), unit);
  }
  /// With the fewest digits that tell this f32 from any other.
  void add(std::string name, float number, std::string_view unit = {});
  void add(std::string name, const Choice& choice);
  /// `json` and `lines` say the same.
  void add(std::string name, std::string json, std::vector<std::string> lines);

  /// Sections with a line or more for each fact, to standard output.
  void print_text() const;
  /// One object of objects, a section a line.
  void print_json() const;

 private:
  struct Fact {
    std::string section, name, json;
    std::vector<std::string> lines;
  };
  void add_number(std::string name, const std::string& number, std::string_view unit);

  std::string section_;
  std::vector<Fact> facts_;
};

/// Of the records that engine/ and attention/ give: `refused` has a reason, `name` tells a candidate's name.
template <class Refusals, class Name>
Choice choice_of(std::string_view chosen, const Refusals& refused, Name&& name) {
  Choice choice{std::string(chosen), {}};
  for (const auto& refusal : refused) choice.refused.emplace_back(name(refusal), refusal.reason);
  return choice;
}

}  // namespace inkling::app
