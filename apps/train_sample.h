// What a model in training has to say.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "engine/exec_context.h"
#include "tokenizer/tokenizer.h"

namespace inkling::app {

/// Text of `tokens` tokens by the model in a folder, from a line end on, or if the vocabulary has none from
/// `otherwise`, at temperature 0.8 among the 200 likeliest. Shorter after a signal. Throws what loading and
/// generating throw.
std::string sample_text(const std::filesystem::path& model, ExecContext& context, const Tokenizer& tokenizer,
                        std::int32_t otherwise, std::int64_t tokens, std::uint64_t seed);

}  // namespace inkling::app
