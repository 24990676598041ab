#include "apps/train_progress.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>

namespace inkling::app {
namespace {

std::string duration(double seconds) {
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  std::array<char, 48> text{};
  std::snprintf(text.data(), text.size(), "%lld:%02lld:%02lld", static_cast<long long>(whole / 3600),
                static_cast<long long>(whole / 60 % 60), static_cast<long long>(whole % 60));
  return text.data();
}

}  // namespace

void TrainProgress::step(const Trainer::StepResult& result, std::int64_t done, std::int64_t last,
                         std::int64_t tokens) {
  tokens_ += tokens;
  if (console_.quiet() || now() - shown_ < (terminal_ ? 0.2 : 10.0)) return;
  shown_ = now();
  const double left = static_cast<double>((last - done) * tokens) / rate();
  const std::string line = "iter " + std::to_string(done) + '/' + std::to_string(last) +
                           format("  loss %.4f", result.loss) + format("  %.0f tok/s", rate()) + "  ETA " +
                           duration(left);
  if (terminal_) {
    Console::status(line);
  } else {
    Console::say(line);
  }
}

double TrainProgress::rate() const {
  return static_cast<double>(tokens_) / std::max(now() - start_, 1e-9);
}

void TrainProgress::clear() const {
  if (terminal_) Console::status({});
}

void TrainProgress::restart() {
  start_ = shown_ = now();
  tokens_ = 0;
}

}  // namespace inkling::app
