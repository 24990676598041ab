// A small random model in a folder, and requests whose answers are kept: what the generator's tests share.
#pragma once

#include <cstdint>
#include <fstream>
#include <string_view>
#include <utility>
#include <vector>

#include "model/generator.h"
#include "tests/model/random_gpt2.h"

namespace inkling::test {

using Ids = std::vector<std::int32_t>;

struct Answer {
  Ids ids;
  Finish finish = Finish::none;
  std::int64_t dropped = 0;
};

struct World {
  TemporaryFolder folder;
  ModelConfig config;
  World() {
    config.vocab_size = 120;
    config.n_positions = 64;
    config.n_embd = 32;
    config.n_layer = 3;
    config.n_head = 2;
    config.eos_token_id = 7;
    RandomGpt2(config, 5).save(folder.path());
  }
  /// Puts a generation_config.json beside the weights.
  void publish(std::string_view text) const {
    std::ofstream(folder.path() / "generation_config.json") << text;
  }
};

inline GenerationRequest request(Ids prompt, std::int64_t tokens, std::uint64_t seed, Answer& answer) {
  GenerationRequest r;
  r.prompt = std::move(prompt);
  r.config.max_tokens = tokens;
  r.config.temperature = 1.0;
  r.config.ignore_eos = true;
  r.seed = seed;
  r.on_token = [&answer](const TokenEvent& event) {
    answer.ids.push_back(event.id);
    answer.finish = event.finish;
    answer.dropped = event.dropped;
    return Continue::yes;
  };
  return r;
}

}  // namespace inkling::test
