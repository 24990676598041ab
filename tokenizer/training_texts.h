// What every training of a vocabulary asks of its texts.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <string_view>

#include "engine/base/error.h"
#include "tokenizer/utf8.h"

namespace inkling {

/// Throws Code::input unless the texts are UTF-8 and one of them is not empty.
inline void require_trainable(std::span<const std::string_view> texts) {
  const bool any = std::ranges::any_of(texts, [](std::string_view text) { return !text.empty(); });
  require(any, Code::input, [] { return "training a vocabulary: expected text, got none"; });
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::size_t good = valid_utf8_prefix(texts[i]);
    require(good == texts[i].size(), Code::input, [&] {
      return "training a vocabulary: text " + std::to_string(i) +
             ": expected UTF-8, got an ill-formed byte at offset " + std::to_string(good);
    });
  }
}

}  // namespace inkling
