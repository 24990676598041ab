// Numbers as decimal text: the same in every locale, unlike printf and std::to_string, so that files and JSON
// stay readable in a program that has set one with a comma.
#pragma once

#include <string>

namespace inkling {

/// As printf's "%.Ng" in the C locale: N significant digits, no trailing zeros. 1 ≤ N ≤ 17.
std::string significant(double value, int digits);
/// As printf's "%.Nf" in the C locale: N digits after the point. 0 ≤ N ≤ 17.
std::string fixed(double value, int decimals);

}  // namespace inkling
