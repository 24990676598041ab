// Help that fits a screen, made from the options themselves.
#pragma once

#include <string>

namespace CLI {
class App;
}

namespace inkling::app {

/// "inkling bench gemm".
std::string command_path(const CLI::App& app);

/// At most 100 columns. Groups appear in the order in which their first option was added; the group kGeneral
/// is told in two lines.
std::string help_text(const CLI::App& app);

inline constexpr const char* kGeneral = "General";

}  // namespace inkling::app
