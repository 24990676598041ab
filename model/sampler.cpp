#include "model/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <string>

#include "engine/draw_rule.h"
#include "engine/ops.h"
#include "weights/config.h"

namespace inkling {
namespace {

static_assert(kMaxVocab <= kMostDrawn);  // a model that loads can be drawn from, on any device

constexpr double kMostScale = 1e30;  // of 1 / temperature, so that it has a float
constexpr std::size_t kBlock = 256;  // of the vocabulary: the unit of skipping and of partial sums

std::span<const float> block_of(std::span<const float> row, std::size_t begin) {
  return row.subspan(begin, std::min(kBlock, row.size() - begin));
}

/// Whether any of `row` is above `floor`. Integer counting, so that the compiler may use vectors.
bool any_above(std::span<const float> row, float floor) {
  int count = 0;
  for (const float v : row) count += v > floor ? 1 : 0;
  return count != 0;
}

float maximum(std::span<const float> row) {
  float best = kNever;
  for (std::size_t begin = 0; begin < row.size(); begin += kBlock) {
    const auto block = block_of(row, begin);
    if (!any_above(block, best)) continue;
    for (const float v : block) best = v > best ? v : best;
  }
  return best;
}

/// e^((logit − top) · scale) of a block; zeros behind its end.
std::array<float, kBlock> weights_of(std::span<const float> block, float top, float scale) {
  std::array<float, kBlock> w;
  for (std::size_t i = 0; i < block.size(); ++i) w[i] = exp_negative((block[i] - top) * scale);
  for (std::size_t i = block.size(); i < kBlock; ++i) w[i] = 0.0f;
  return w;
}

/// Σ masses of a block.
std::uint64_t block_mass(std::span<const float> block, float top, float scale) {
  const auto w = weights_of(block, top, scale);
  std::uint64_t sum = 0;
  for (const float weight : w) sum += biased_mass(weight);
  return sum - kBlock * kMassBias;
}

/// Σ weights of a block, in f64 on eight lanes.
double block_weight(std::span<const float> block, float top) {
  const auto w = weights_of(block, top, 1.0f);
  std::array<double, 8> sums{};
  for (std::size_t i = 0; i < kBlock; i += 8) {
    for (std::size_t lane = 0; lane < 8; ++lane) sums[lane] += static_cast<double>(w[i + lane]);
  }
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

constexpr auto kBefore = [](const auto& a, const auto& b) {
  return a.rank > b.rank || (a.rank == b.rank && a.id < b.id);
};

bool penalises(const GenerationConfig& config) {
  return config.repetition_penalty != 1.0 || config.presence_penalty != 0.0 ||
         config.frequency_penalty != 0.0;
}

/// Whether a draw changes logits first, beside that of the end.
bool adjusts(const GenerationConfig& config) {
  return !config.logit_bias.empty() || penalises(config) || config.no_repeat_ngram_size != 0;
}

/// Those of `ends` that a draw may not give.
EndIds forbidden(const GenerationConfig& config, EndIds ends) {
  return config.ignore_eos ? ends : EndIds();
}

float scale_of(const GenerationConfig& config) {
  return static_cast<float>(std::min(1.0 / config.temperature, kMostScale));
}

}  // namespace

void Sampler::reserve(std::size_t vocab, std::size_t history, const GenerationConfig& config) {
  const auto within = [vocab](std::int64_t k) {
    return std::min(vocab, static_cast<std::size_t>(std::max<std::int64_t>(k, 0)));
  };
  const std::size_t kept = config.temperature == 0.0 ? 2
                           : config.top_k > 0        ? within(config.top_k) + 1
                                                     : vocab;
  candidates_.reserve(std::max(kept, within(config.logprobs)));
  pool_.reserve(kept);
  blocks_.reserve(vocab / kBlock + 1);
  adjusted_.reserve(vocab);
  seen_.reserve(history);
  top_.reserve(within(config.logprobs));
}

double Sampler::log_sum_exp(std::span<const float> logits) {
  const float top = maximum(logits);
  double sum = 0.0;
  for (std::size_t begin = 0; begin < logits.size(); begin += kBlock) {
    sum += block_weight(block_of(logits, begin), top);
  }
  return static_cast<double>(top) + std::log(sum);
}

std::span<const TokenLogprob> Sampler::top(std::span<const float> logits, double log_sum_exp,
                                           std::int64_t k) {
  select(logits, std::min(static_cast<std::size_t>(k), logits.size()));
  top_.clear();
  for (const Candidate& c : candidates_) {
    top_.push_back({c.id, static_cast<float>(static_cast<double>(c.rank) - log_sum_exp)});
  }
  return top_;
}

std::int64_t Sampler::top_wanted(std::size_t vocab, const GenerationConfig& config, EndIds ends) {
  if (config.logprobs >= 0 || adjusts(config)) return 0;
  const auto all = static_cast<std::int64_t>(vocab);
  const auto spare = static_cast<std::int64_t>(forbidden(config, ends).size());
  if (config.temperature == 0.0) return std::min(1 + spare, all);
  return config.top_k > 0 && config.top_k < all ? std::min(config.top_k + spare, all) : 0;
}

// e^(scale · (x − max)) and its sum take 4 for a logit, a log-probability's sum 3, the largest comparisons.
ProfileWork Sampler::work(std::size_t logits, const GenerationConfig& config) {
  const auto all = static_cast<double>(logits), top_k = static_cast<double>(config.top_k);
  const double drawn_from = config.temperature == 0.0 ? 0 : top_k > 0 ? std::min(top_k, all) : all;
  return {all * sizeof(float), 4 * drawn_from + (config.logprobs >= 0 ? 3 * all : 0), {1, 0, 0}};
}

std::string_view Sampler::op_refusal(std::size_t vocab, const GenerationConfig& config, EndIds ends) {
  if (config.logprobs >= 0) return "log-probabilities are asked for";
  if (adjusts(config)) return "a bias, a penalty or no_repeat_ngram_size changes the logits first";
  if (forbidden(config, ends).size() > 1) return "several tokens are forbidden";
  if (config.temperature > 0.0 && config.typical_p < 1.0) return "typical_p is set";
  const auto top_k = static_cast<std::size_t>(config.top_k);
  if (config.temperature > 0.0 && config.top_k > kMostTop && top_k < vocab) return "top_k is large";
  return {};
}

DrawSettings Sampler::settings(std::size_t vocab, const GenerationConfig& config, const DrawKey& key,
                               EndIds ends) {
  DrawSettings draw;
  draw.seed = key.seed;
  draw.position = key.position;
  draw.sample = key.sample;
  if (const EndIds never = forbidden(config, ends); !never.empty()) draw.forbidden = never.front();
  draw.scale = config.temperature == 0.0 ? 0.0f : scale_of(config);
  if (draw.scale != 0.0f && static_cast<std::size_t>(config.top_k) < vocab)
    draw.top_k = static_cast<std::int32_t>(config.top_k);
  draw.top_p = config.top_p;
  draw.min_p = config.min_p;
  return draw;
}

// The logits themselves when nothing asks for a change, else a changed copy.
std::span<const float> Sampler::adjust(std::span<const float> logits, const GenerationConfig& config,
                                       std::span<const std::int32_t> history, EndIds ends) {
  const EndIds never = forbidden(config, ends);
  if (!adjusts(config) && never.empty()) return logits;
  adjusted_.assign(logits.begin(), logits.end());
  for (const auto& [id, bias] : config.logit_bias) {
    adjusted_[static_cast<std::size_t>(id)] += static_cast<float>(bias);
  }
  if (penalises(config)) penalise(config, history);
  if (config.no_repeat_ngram_size > 0) {
    forbid_repeats(static_cast<std::size_t>(config.no_repeat_ngram_size), history);
  }
  for (const std::int32_t id : never) adjusted_[static_cast<std::size_t>(id)] = kNever;
  return adjusted_;
}

void Sampler::penalise(const GenerationConfig& config, std::span<const std::int32_t> history) {
  const auto most =
      config.repeat_last_n < 0 ? history.size() : static_cast<std::size_t>(config.repeat_last_n);
  const auto recent = history.last(std::min(most, history.size()));
  seen_.assign(recent.begin(), recent.end());
  std::sort(seen_.begin(), seen_.end());
  for (auto it = seen_.begin(); it != seen_.end();) {
    const auto next = std::upper_bound(it, seen_.end(), *it);
    float& logit = adjusted_[static_cast<std::size_t>(*it)];
    const auto penalty = static_cast<float>(config.repetition_penalty);
    logit = logit > 0.0f ? logit / penalty : logit * penalty;
    logit -= static_cast<float>(config.presence_penalty +
                                config.frequency_penalty * static_cast<double>(next - it));
    it = next;
  }
}

void Sampler::forbid_repeats(std::size_t n, std::span<const std::int32_t> history) {
  if (history.size() < n) return;
  const auto tail = history.last(n - 1);
  for (std::size_t i = 0; i + n <= history.size(); ++i) {
    if (std::equal(tail.begin(), tail.end(), history.begin() + static_cast<std::ptrdiff_t>(i))) {
      adjusted_[static_cast<std::size_t>(history[i + n - 1])] = kNever;
    }
  }
}

// The k largest by falling logit, ties by rising id: one pass that skips blocks with nothing above the k-th
// so far.
void Sampler::select(std::span<const float> logits, std::size_t k) {
  candidates_.clear();
  if (k == 0) return;
  constexpr std::size_t kStep = 64;
  for (std::size_t begin = 0; begin < logits.size(); begin += kStep) {
    const auto block = logits.subspan(begin, std::min(kStep, logits.size() - begin));
    if (candidates_.size() == k && !any_above(block, candidates_.front().rank)) continue;
    for (std::size_t i = 0; i < block.size(); ++i) {
      const Candidate candidate{drawable(block[i]), static_cast<std::int32_t>(begin + i), 0};
      if (candidates_.size() < k) {
        candidates_.push_back(candidate);
        std::push_heap(candidates_.begin(), candidates_.end(), kBefore);  // the worst is in front
      } else if (kBefore(candidate, candidates_.front())) {
        std::pop_heap(candidates_.begin(), candidates_.end(), kBefore);
        candidates_.back() = candidate;
        std::push_heap(candidates_.begin(), candidates_.end(), kBefore);
      }
    }
  }
  std::sort_heap(candidates_.begin(), candidates_.end(), kBefore);
}

// All tokens that top-p and min-p could keep, by id. Those below (1 − top_p) · total / V have less than
// 1 − top_p of the mass between them, so that the likeliest with top_p of it are all above.
void Sampler::collect(std::span<const float> logits, const GenerationConfig& config, float top, float scale,
                      std::uint64_t total) {
  const double share = static_cast<double>(total) / static_cast<double>(kFullMass * logits.size());
  const double least = std::max(config.top_p < 1.0 ? (1.0 - config.top_p) * share : 0.0, config.min_p);
  const double slack = 1e-4;  // wider than any rounding here; the cuts themselves come later
  const float floor =
      least > 0.0 ? std::nextafter(static_cast<float>(top + (std::log(least) - slack) / scale), kNever)
                  : kNever;
  candidates_.clear();
  for (std::size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const auto block = block_of(logits, begin);
    if (!any_above(block, floor)) continue;
    for (std::size_t i = 0; i < block.size(); ++i) {
      if (!(block[i] > floor)) continue;
      candidates_.push_back({block[i], static_cast<std::int32_t>(begin + i), mass_of(block[i], top, scale)});
    }
  }
}

std::uint64_t Sampler::candidates_mass() const {
  std::uint64_t sum = 0;
  for (const Candidate& c : candidates_) sum += c.mass;
  return sum;
}

// Keeps the candidates of highest rank whose masses sum to `mass`, at least one: halves the range that holds
// the last of them until it is short enough to sort. The order of candidates_ stays.
void Sampler::keep_mass(std::uint64_t mass) {
  pool_.assign(candidates_.begin(), candidates_.end());
  auto low = pool_.begin(), high = pool_.end();
  while (high - low > 32) {
    const auto middle = low + (high - low) / 2;
    std::nth_element(low, middle, high, kBefore);
    std::uint64_t sum = 0;
    for (auto it = low; it != middle; ++it) sum += it->mass;
    if (sum >= mass) {
      high = middle;
    } else {
      mass -= sum;
      low = middle;
    }
  }
  std::sort(low, high, kBefore);
  while (high - low > 1 && low->mass < mass) mass -= low++->mass;
  const Candidate last = *low;
  std::erase_if(candidates_, [&](const Candidate& c) { return kBefore(last, c); });
}

// Those whose information −log p lies nearest to the entropy, until their mass reaches typical_p.
void Sampler::keep_typical(double typical_p) {
  std::erase_if(candidates_, [](const Candidate& c) { return c.mass == 0; });
  const std::uint64_t total = candidates_mass();
  const auto log_share = [total](const Candidate& c) {
    return std::log(static_cast<double>(c.mass) / static_cast<double>(total));
  };
  double entropy = 0.0;
  for (const Candidate& c : candidates_) {
    entropy -= static_cast<double>(c.mass) / static_cast<double>(total) * log_share(c);
  }
  for (Candidate& c : candidates_) c.rank = static_cast<float>(-std::fabs(log_share(c) + entropy));
  keep_mass(mass_to_keep(typical_p, total));
}

std::int32_t Sampler::pick(const DrawSettings& draw) const {
  std::uint64_t point = drawn_point(draw, candidates_mass());
  auto it = candidates_.begin();
  while (it + 1 != candidates_.end() && it->mass <= point) point -= it++->mass;
  return it->id;
}

// pick() from the whole vocabulary: finds the block by the sums, then walks it.
std::int32_t Sampler::pick_any(std::span<const float> logits, float top, std::uint64_t total,
                               const DrawSettings& draw) {
  std::uint64_t point = drawn_point(draw, total);
  std::size_t at = 0;
  while (blocks_[at] <= point) point -= blocks_[at++];
  for (at *= kBlock;; ++at) {
    const std::uint64_t mass = mass_of(logits[at], top, draw.scale);
    if (mass > point) return static_cast<std::int32_t>(at);
    point -= mass;
  }
}

std::int32_t Sampler::draw(std::span<const float> given, const GenerationConfig& config,
                           std::span<const std::int32_t> history, const DrawKey& key, EndIds ends) {
  const auto logits = adjust(given, config, history, ends);
  require(static_cast<std::int64_t>(logits.size()) <= kMostDrawn, Code::usage, [&] {
    return "sampler: expected at most " + std::to_string(kMostDrawn) + " logits, got " +
           std::to_string(logits.size());
  });
  const DrawSettings draw = settings(logits.size(), config, key, ends);
  const float top = maximum(logits);
  if (!(top > kNever)) return 0;
  const auto likeliest = [&] {
    return static_cast<std::int32_t>(std::find(logits.begin(), logits.end(), top) - logits.begin());
  };
  if (draw.scale == 0.0f) return likeliest();
  if (draw.top_k > 0) {
    select(logits, static_cast<std::size_t>(draw.top_k));
    return draw_candidates(config, draw);
  }
  std::uint64_t total = 0;
  blocks_.clear();
  for (std::size_t begin = 0; begin < logits.size(); begin += kBlock) {
    blocks_.push_back(block_mass(block_of(logits, begin), top, draw.scale));
    total += blocks_.back();
  }
  if (total == 0) return likeliest();  // +inf
  if (config.top_p >= 1.0 && config.min_p <= 0.0 && config.typical_p >= 1.0) {
    return pick_any(logits, top, total, draw);
  }
  collect(logits, config, top, draw.scale, total);
  return cut_and_pick(total, config, draw);
}

std::int32_t Sampler::draw(const TopLogits& top, const GenerationConfig& config, const DrawKey& key,
                           EndIds ends) {
  const EndIds never = forbidden(config, ends);
  const auto wanted = config.temperature == 0.0 ? 1 : static_cast<std::size_t>(config.top_k);
  candidates_.clear();
  for (std::size_t i = 0; i < top.ids.size() && candidates_.size() < wanted; ++i) {
    if (std::ranges::find(never, top.ids[i]) == never.end())
      candidates_.push_back({top.logits[i], top.ids[i], 0});
  }
  if (candidates_.empty() || !(candidates_.front().rank > kNever)) return 0;
  if (config.temperature == 0.0) return candidates_.front().id;
  // More tokens than there are here, so that top_k counts.
  return draw_candidates(config, settings(candidates_.size() + 1, config, key, ends));
}

// From candidates_, the top-k by falling logit.
std::int32_t Sampler::draw_candidates(const GenerationConfig& config, const DrawSettings& draw) {
  const Candidate likeliest = candidates_.front();
  for (Candidate& c : candidates_) c.mass = mass_of(c.rank, likeliest.rank, draw.scale);
  const std::uint64_t total = candidates_mass();
  return total == 0 ? likeliest.id : cut_and_pick(total, config, draw);  // +inf
}

// What the cuts leave of candidates_, whose masses sum to `total`, and one of those.
std::int32_t Sampler::cut_and_pick(std::uint64_t total, const GenerationConfig& config,
                                   const DrawSettings& draw) {
  if (config.top_p < 1.0) keep_mass(mass_to_keep(config.top_p, total));
  const std::uint64_t least = least_mass(config.min_p);
  std::erase_if(candidates_, [least](const Candidate& c) { return c.mass < least; });
  if (config.typical_p < 1.0) keep_typical(config.typical_p);
  return pick(draw);
}

}  // namespace inkling
