#include "model/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "engine/philox.h"

namespace inkling {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
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

/// e^x for x ≤ 0, relative error 2e-7; 0 below −87. Cody–Waite reduction x = n ln2 + r and a polynomial of
/// degree 6, as in engine/cpu/simd/math.h; plain arithmetic that the compiler turns into vectors.
inline float exp_negative(float x) {
  // The limit by the bits of |x| and without a comparison, which would keep the compiler from using vectors.
  constexpr auto kLimit = std::bit_cast<std::int32_t>(87.0f);
  const std::int32_t beyond = (std::bit_cast<std::int32_t>(x) & 0x7fffffff) - kLimit;
  const std::int32_t keep = beyond >> 31;  // all ones within the limit
  const float clamped = -std::bit_cast<float>(kLimit + (beyond & keep));
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  const float shifted = clamped * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  const auto exponent = (std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(kRound)) << 23;
  return std::bit_cast<float>((std::bit_cast<std::uint32_t>(p) + exponent) &
                              static_cast<std::uint32_t>(keep));
}

inline float weight_of(float logit, float top, float scale) {
  return exp_negative((logit - top) * scale);
}

/// Σ weights of a block, in f64 on eight lanes.
double block_weight(std::span<const float> block, float top, float scale) {
  std::array<float, kBlock> w;
  for (std::size_t i = 0; i < block.size(); ++i) w[i] = weight_of(block[i], top, scale);
  for (std::size_t i = block.size(); i < kBlock; ++i) w[i] = 0.0f;
  std::array<double, 8> sums{};
  for (std::size_t i = 0; i < kBlock; i += 8) {
    for (std::size_t lane = 0; lane < 8; ++lane) sums[lane] += static_cast<double>(w[i + lane]);
  }
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

constexpr auto kBefore = [](const auto& a, const auto& b) {
  return a.rank > b.rank || (a.rank == b.rank && a.id < b.id);
};

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
    sum += block_weight(block_of(logits, begin), top, 1.0f);
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

namespace {

bool penalises(const GenerationConfig& config) {
  return config.repetition_penalty != 1.0 || config.presence_penalty != 0.0 ||
         config.frequency_penalty != 0.0;
}

/// Whether a draw changes logits first, beside that of the end.
bool adjusts(const GenerationConfig& config) {
  return !config.logit_bias.empty() || penalises(config) || config.no_repeat_ngram_size != 0;
}

bool forbids(const GenerationConfig& config, std::optional<std::int64_t> eos) {
  return config.ignore_eos && eos.has_value();
}

double scale_of(const GenerationConfig& config) {
  return std::min(1.0 / config.temperature, kMostScale);
}

double unit_of(const DrawKey& key) {
  const PhiloxWords words = philox({key.position, key.sample, 0, 0}, key.seed);
  return philox_unit(words[0], words[1]);
}

}  // namespace

std::int64_t Sampler::top_wanted(std::size_t vocab, const GenerationConfig& config,
                                 std::optional<std::int64_t> eos) {
  if (config.logprobs >= 0 || adjusts(config)) return 0;
  const std::int64_t spare = forbids(config, eos) ? 1 : 0;
  if (config.temperature == 0.0) return std::min<std::int64_t>(1 + spare, static_cast<std::int64_t>(vocab));
  return config.top_k > 0 && static_cast<std::size_t>(config.top_k) < vocab ? config.top_k + spare : 0;
}

// The logits themselves when nothing asks for a change, else a changed copy.
std::span<const float> Sampler::adjust(std::span<const float> logits, const GenerationConfig& config,
                                       std::span<const std::int32_t> history,
                                       std::optional<std::int64_t> eos) {
  if (!adjusts(config) && !forbids(config, eos)) return logits;
  adjusted_.assign(logits.begin(), logits.end());
  for (const auto& [id, bias] : config.logit_bias) {
    adjusted_[static_cast<std::size_t>(id)] += static_cast<float>(bias);
  }
  if (penalises(config)) penalise(config, history);
  if (config.no_repeat_ngram_size > 0) {
    forbid_repeats(static_cast<std::size_t>(config.no_repeat_ngram_size), history);
  }
  if (forbids(config, eos)) adjusted_[static_cast<std::size_t>(*eos)] = kNever;
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
      const Candidate candidate{block[i], static_cast<std::int32_t>(begin + i), 0.0};
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
void Sampler::collect(std::span<const float> logits, const GenerationConfig& config, float top, double scale,
                      double total) {
  double least = config.top_p < 1.0 ? (1.0 - config.top_p) * total / static_cast<double>(logits.size()) : 0.0;
  least = std::max(least, config.min_p);
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
      candidates_.push_back({block[i], static_cast<std::int32_t>(begin + i),
                             weight_of(block[i], top, static_cast<float>(scale))});
    }
  }
}

// Keeps the candidates of highest rank whose weights sum to `mass`, at least one: halves the range that holds
// the last of them until it is short enough to sort. The order of candidates_ stays.
void Sampler::keep_mass(double mass) {
  pool_.assign(candidates_.begin(), candidates_.end());
  auto low = pool_.begin(), high = pool_.end();
  while (high - low > 32) {
    const auto middle = low + (high - low) / 2;
    std::nth_element(low, middle, high, kBefore);
    double sum = 0.0;
    for (auto it = low; it != middle; ++it) sum += it->weight;
    if (sum >= mass) {
      high = middle;
    } else {
      mass -= sum;
      low = middle;
    }
  }
  std::sort(low, high, kBefore);
  while (high - low > 1 && (mass -= low->weight) > 0.0) ++low;
  const Candidate last = *low;
  std::erase_if(candidates_, [&](const Candidate& c) { return kBefore(last, c); });
}

double Sampler::normalise() {
  double total = 0.0, entropy = 0.0;
  for (const Candidate& c : candidates_) total += c.weight;
  for (Candidate& c : candidates_) {
    c.weight /= total;
    if (c.weight > 0.0) entropy -= c.weight * std::log(c.weight);
  }
  return entropy;
}

// Those whose information −log p lies nearest to the entropy, until their mass reaches typical_p.
void Sampler::keep_typical(double typical_p) {
  const double entropy = normalise();
  std::erase_if(candidates_, [](const Candidate& c) { return !(c.weight > 0.0); });
  for (Candidate& c : candidates_) c.rank = static_cast<float>(-std::fabs(std::log(c.weight) + entropy));
  keep_mass(typical_p);
}

std::int32_t Sampler::pick(double unit) const {
  double total = 0.0;
  for (const Candidate& c : candidates_) total += c.weight;
  double left = unit * total;
  // Rounding can leave a crumb behind the last candidate: it belongs to the last one with any weight.
  std::int32_t last = candidates_.front().id;
  for (const Candidate& c : candidates_) {
    if (!(c.weight > 0.0)) continue;
    last = c.id;
    if ((left -= c.weight) < 0.0) break;
  }
  return last;
}

// pick() from the whole vocabulary: finds the block by the sums, then walks it.
std::int32_t Sampler::pick_any(std::span<const float> logits, float top, float scale, double unit) {
  double total = 0.0;
  for (const double weight : blocks_) total += weight;
  double left = unit * total;
  std::size_t chosen = 0;
  for (std::size_t b = 0; b < blocks_.size(); ++b) {
    if (!(blocks_[b] > 0.0)) continue;
    chosen = b;
    if (left < blocks_[b]) break;
    left -= blocks_[b];
  }
  candidates_.clear();
  const auto block = block_of(logits, chosen * kBlock);
  std::int32_t last = 0;
  for (std::size_t i = 0; i < block.size(); ++i) {
    const double weight = weight_of(block[i], top, scale);
    if (!(weight > 0.0)) continue;
    last = static_cast<std::int32_t>(chosen * kBlock + i);
    if ((left -= weight) < 0.0) break;
  }
  return last;
}

std::int32_t Sampler::draw(std::span<const float> given, const GenerationConfig& config,
                           std::span<const std::int32_t> history, const DrawKey& key,
                           std::optional<std::int64_t> eos) {
  const auto logits = adjust(given, config, history, eos);
  const float top = maximum(logits);
  if (!(top > kNever)) return 0;
  if (config.temperature == 0.0) {
    return static_cast<std::int32_t>(std::find(logits.begin(), logits.end(), top) - logits.begin());
  }
  const double scale = scale_of(config);

  if (config.top_k > 0 && static_cast<std::size_t>(config.top_k) < logits.size()) {
    select(logits, static_cast<std::size_t>(config.top_k));
    return draw_candidates(top, scale, config, key);
  }
  double total = 0.0;
  blocks_.clear();
  for (std::size_t begin = 0; begin < logits.size(); begin += kBlock) {
    blocks_.push_back(block_weight(block_of(logits, begin), top, static_cast<float>(scale)));
    total += blocks_.back();
  }
  if (config.top_p >= 1.0 && config.min_p <= 0.0 && config.typical_p >= 1.0) {
    return pick_any(logits, top, static_cast<float>(scale), unit_of(key));
  }
  collect(logits, config, top, scale, total);
  return cut_and_pick(total, config, key);
}

std::int32_t Sampler::draw(const TopLogits& top, const GenerationConfig& config, const DrawKey& key,
                           std::optional<std::int64_t> eos) {
  candidates_.clear();
  for (std::size_t i = 0; i < top.ids.size(); ++i) {
    if (!forbids(config, eos) || top.ids[i] != *eos) candidates_.push_back({top.logits[i], top.ids[i], 0.0});
  }
  if (candidates_.empty() || !(candidates_.front().rank > kNever)) return 0;
  if (config.temperature == 0.0) return candidates_.front().id;
  candidates_.resize(std::min(candidates_.size(), static_cast<std::size_t>(config.top_k)));
  return draw_candidates(candidates_.front().rank, scale_of(config), config, key);
}

// From candidates_, the top-k by falling logit.
std::int32_t Sampler::draw_candidates(float top, double scale, const GenerationConfig& config,
                                      const DrawKey& key) {
  double total = 0.0;
  for (Candidate& c : candidates_)
    total += c.weight = std::exp((static_cast<double>(c.rank) - static_cast<double>(top)) * scale);
  return cut_and_pick(total, config, key);
}

// What the cuts leave of candidates_, whose weights sum to `total`, and one of those.
std::int32_t Sampler::cut_and_pick(double total, const GenerationConfig& config, const DrawKey& key) {
  if (config.top_p < 1.0) keep_mass(config.top_p * total);
  if (config.min_p > 0.0)
    std::erase_if(candidates_, [&](const Candidate& c) { return c.weight < config.min_p; });
  if (config.typical_p < 1.0) keep_typical(config.typical_p);
  return pick(unit_of(key));
}

}  // namespace inkling
