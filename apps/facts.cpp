#include "apps/facts.h"

#include <algorithm>
#include <charconv>

#include "apps/console.h"
#include "apps/json_text.h"

namespace inkling::app {

std::string json_object(std::span<const std::pair<std::string, std::string>> members) {
  std::string out = "{";
  for (const auto& [name, value] : members)
    out += (out.size() == 1 ? "" : ",") + json_string(name) + ":" + value;
  return out + "}";
}

std::string json_object(std::initializer_list<std::pair<std::string, std::string>> members) {
  return json_object(std::span(members.begin(), members.size()));
}

std::string json_list(std::span<const std::int64_t> numbers) {
  std::string out = "[";
  for (const std::int64_t number : numbers) out += (out.size() == 1 ? "" : ",") + std::to_string(number);
  return out + "]";
}

void Facts::add(std::string name, const std::string& text) {
  add(std::move(name), json_string(text), {text});
}

void Facts::add(std::string name, float number, std::string_view unit) {
  char text[32];
  add_number(std::move(name), {text, std::to_chars(text, text + sizeof text, number).ptr}, unit);
}

void Facts::add_number(std::string name, const std::string& number, std::string_view unit) {
  add(std::move(name), number, {number + std::string(unit)});
}

void Facts::add(std::string name, const Choice& choice) {
  std::vector<std::pair<std::string, std::string>> refused;
  std::vector<std::string> lines{choice.chosen.empty() ? "none can run it" : choice.chosen + ": chosen"};
  for (const auto& [candidate, reason] : choice.refused) {
    refused.emplace_back(candidate, json_string(reason));
    lines.push_back(candidate + ": refused, " + reason);
  }
  const std::string chosen = choice.chosen.empty() ? "null" : json_string(choice.chosen);
  add(std::move(name), json_object({{"chosen", chosen}, {"refused", json_object(refused)}}),
      std::move(lines));
}

void Facts::add(std::string name, std::string json, std::vector<std::string> lines) {
  facts_.push_back({section_, std::move(name), std::move(json), std::move(lines)});
}

void Facts::print_text() const {
  std::string last;
  for (const Fact& fact : facts_) {
    if (fact.section != last) Console::write((last.empty() ? "" : "\n") + fact.section + '\n');
    last = fact.section;
    std::string name = "  " + fact.name;
    for (const std::string& line : fact.lines) {
      name.resize(std::max<std::size_t>(name.size() + 1, 24), ' ');
      Console::write(name + line + '\n');
      name.clear();
    }
  }
}

void Facts::print_json() const {
  std::string out, last;
  for (const Fact& fact : facts_) {
    if (fact.section != last) out += (last.empty() ? "{" : "},\n") + json_string(fact.section) + ":{";
    out += (fact.section == last ? "," : "") + json_string(fact.name) + ":" + fact.json;
    last = fact.section;
  }
  Console::write(out + "}}\n");
}

}  // namespace inkling::app
