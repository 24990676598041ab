// Tokens per second since the last evaluation, and what a person wants to know in between.
#pragma once

#include <cstdint>

#include "apps/console.h"
#include "model/train/trainer.h"

namespace inkling::app {

class TrainProgress {
 public:
  explicit TrainProgress(const Console& console) : console_(console) {}

  /// An iteration is done: `done` of `last`, with so many tokens. Says so at times: five times a second in
  /// one line of a terminal, elsewhere every ten seconds.
  void step(const Trainer::StepResult& result, std::int64_t done, std::int64_t last, std::int64_t tokens);
  /// Tokens a second since construction or restart(); 0 before the first iteration.
  double rate() const;
  /// Takes the line from the terminal, for others to come.
  void clear() const;
  /// Forgets all iterations.
  void restart();

 private:
  const Console& console_;
  double start_ = now(), shown_ = start_;
  std::int64_t tokens_ = 0;
  bool terminal_ = stderr_is_terminal();
};

}  // namespace inkling::app
