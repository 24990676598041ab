#include "engine/cpu/draw.h"

#include <algorithm>
#include <vector>

namespace inkling {
namespace {

struct Token {
  float logit;
  std::int32_t id;
  std::uint64_t mass;
};

std::uint64_t sum_of(std::span<const Token> tokens) {
  std::uint64_t sum = 0;
  for (const Token& token : tokens) sum += token.mass;
  return sum;
}

/// The first token at which the masses summed up pass `point`.
std::size_t passing(std::span<const Token> tokens, std::uint64_t point) {
  std::size_t i = 0;
  while (i + 1 < tokens.size() && tokens[i].mass <= point) point -= tokens[i++].mass;
  return i;
}

}  // namespace

std::int32_t draw_from(std::span<const float> logits, const DrawSettings& draw) {
  std::vector<Token> tokens;
  for (const float logit : logits) {
    const auto id = static_cast<std::int32_t>(tokens.size());
    tokens.push_back({id == draw.forbidden ? kNever : drawable(logit), id, 0});
  }
  std::ranges::stable_sort(tokens, std::greater(), &Token::logit);
  const Token likeliest = tokens.front();
  if (!(likeliest.logit > kNever)) return 0;
  if (draw.scale == 0.0f) return likeliest.id;

  if (draw.top_k > 0) tokens.resize(std::min(tokens.size(), static_cast<std::size_t>(draw.top_k)));
  for (Token& token : tokens) token.mass = mass_of(token.logit, likeliest.logit, draw.scale);
  if (draw.top_p < 1.0) {
    tokens.resize(passing(tokens, mass_to_keep(draw.top_p, sum_of(tokens)) - 1) + 1);
  }
  if (sum_of(tokens) == 0) return likeliest.id;  // +inf
  std::erase_if(tokens, [&](const Token& token) { return token.mass < least_mass(draw.min_p); });
  if (draw.top_k == 0) std::ranges::sort(tokens, {}, &Token::id);
  return tokens[passing(tokens, drawn_point(draw, sum_of(tokens)))].id;
}

}  // namespace inkling
