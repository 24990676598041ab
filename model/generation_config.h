// GenerationConfig: how text is drawn from a model. A plain struct; option_table.h sets its fields by name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/result.h"

namespace inkling {

struct GenerationConfig {
  std::int64_t max_tokens = 128;
  std::optional<std::uint64_t> seed;  ///< unset: whoever submits chooses one and reports it
  double temperature = 0.8;           ///< 0: greedy, ties to the lowest id
  std::int64_t top_k = 40;            ///< 0: off
  double top_p = 0.95;                ///< 1: off (Holtzman et al. 2020)
  double min_p = 0.0;                 ///< 0: off; keeps p ≥ min_p · max p
  double typical_p = 1.0;             ///< 1: off (Meister et al. 2023)
  double repetition_penalty =
      1.0;  ///< 1: off (Keskar et al. 2019): divides positive, multiplies negative logits
  std::int64_t repeat_last_n = 64;        ///< tokens that the three penalties look back; −1: all
  double presence_penalty = 0.0;          ///< subtracted once from every token seen
  double frequency_penalty = 0.0;         ///< subtracted per occurrence
  std::int64_t no_repeat_ngram_size = 0;  ///< 0: off; no n-gram of this size occurs twice
  std::vector<std::pair<std::int32_t, double>> logit_bias;
  std::vector<std::string> stop;  ///< texts that end generation; not part of the output
  bool ignore_eos = false;
  std::int64_t logprobs = -1;  ///< −1: none; K: of the token drawn and the K likeliest

  /// Throws Error{usage} "FIELD: expected …, got …" for the first field out of its range or, for logit_bias,
  /// out of the vocabulary.
  void validate(std::int64_t vocab_size) const;

  /// The fields of a named style; nothing for an unknown name. default, openai-gpt2 (its sample scripts),
  /// nanogpt (sample.py), hf (generate() with do_sample), llama (llama.cpp's main).
  static std::optional<GenerationConfig> preset(std::string_view name);
};

inline constexpr std::string_view kPresetNames = "default, openai-gpt2, nanogpt, hf, llama";

}  // namespace inkling
