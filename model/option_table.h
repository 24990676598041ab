// The one table of sampling options: names, types, ranges, help. The command line reads it, and
// GenerationConfig::validate(); a field has one range wherever it is set.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "engine/base/result.h"
#include "model/generation_config.h"

namespace inkling {

struct Option {
  using Member = std::variant<std::int64_t GenerationConfig::*, double GenerationConfig::*,
                              bool GenerationConfig::*, std::optional<std::uint64_t> GenerationConfig::*,
                              std::vector<std::string> GenerationConfig::*,
                              std::vector<std::pair<std::int32_t, double>> GenerationConfig::*>;
  std::string_view name;     ///< "top_p"; on the command line --top-p
  std::string_view aliases;  ///< other names, separated by commas: "max_new_tokens,n_predict"
  char letter = 0;           ///< short flag, or 0
  Member member;
  double min = 0.0, max = 0.0;  ///< inclusive; numbers only
  std::string_view help;

  bool is_flag() const noexcept { return std::holds_alternative<bool GenerationConfig::*>(member); }
  bool is_list() const noexcept { return member.index() >= 4; }
};

/// Every option, in the order in which help shows them.
std::span<const Option> generation_options();

/// The option of this name or alias; null when there is none.
const Option* find_option(std::string_view name);

/// Sets one field from text: a number, true|false, a stop string (appended), or ID±BIAS / ID:BIAS (appended).
/// Error{usage} "NAME: expected …, got …".
Result<void> set_option(GenerationConfig& config, std::string_view name, std::string_view text);

/// A field as text, for reports; "" when unset or empty.
std::string option_text(const GenerationConfig& config, const Option& option);

}  // namespace inkling
