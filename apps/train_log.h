// What a run of training tells: log.jsonl and the loss curve beside it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace inkling::app {

struct Evaluation {
  std::int64_t iter = 0;
  double train_loss = 0, val_loss = 0, lr = 0, tok_per_s = 0;
};

class TrainLog {
 public:
  /// Goes on with the lines of `folder`/log.jsonl up to iteration `last`; −1: begins anew. Throws Error{file}
  /// and Error{malformed}.
  TrainLog(const std::filesystem::path& folder, std::int64_t last);

  /// Adds a line, and draws loss.svg. Both files change atomically. Throws Error{output}.
  void add(const Evaluation& evaluation);
  bool has(std::int64_t iter) const;

 private:
  std::filesystem::path folder_;
  std::string text_;
  std::vector<Evaluation> evaluations_;
};

}  // namespace inkling::app
