#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/philox.h"

namespace inkling {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

/// Whether any of `row` is above `floor`. Integer counting, so that the compiler may use vectors.
bool any_above(std::span<const float> row, float floor) {
  int count = 0;
  for (const float v : row) count += v > floor ? 1 : 0;
  return count != 0;
}

float maximum(std::span<const float> row) {
  float best = kNever;
  constexpr std::size_t kBlock = 256;
  for (std::size_t begin = 0; begin < row.size(); begin += kBlock) {
    const auto block = row.subspan(begin, std::min(kBlock, row.size() - begin));
    if (!any_above(block, best)) continue;
    for (const float v : block) best = v > best ? v : best;
  }
  return best;
}

double log_sum_exp(std::span<const float> logits) {
  const double top = maximum(logits);
  double sum = 0.0;
  for (const float v : logits) sum += std::exp(v - top);
  return top + std::log(sum);
}

}  // namespace

void Sampler::penalise(std::span<float> logits, const GenerationConfig& config,
                       std::span<const std::int32_t> history) {
  for (const auto& [id, bias] : config.logit_bias)
    logits[static_cast<std::size_t>(id)] += static_cast<float>(bias);

  const bool penalties =
      config.repetition_penalty != 1.0 || config.presence_penalty != 0.0 || config.frequency_penalty != 0.0;
  if (penalties && config.repeat_last_n != 0) {
    auto recent = history;
    if (config.repeat_last_n > 0 && recent.size() > static_cast<std::size_t>(config.repeat_last_n)) {
      recent = recent.last(static_cast<std::size_t>(config.repeat_last_n));
    }
    seen_.assign(recent.begin(), recent.end());
    std::sort(seen_.begin(), seen_.end());
    for (auto it = seen_.begin(); it != seen_.end();) {
      const auto next = std::upper_bound(it, seen_.end(), *it);
      float& logit = logits[static_cast<std::size_t>(*it)];
      const auto penalty = static_cast<float>(config.repetition_penalty);
      logit = logit > 0.0f ? logit / penalty : logit * penalty;
      logit -= static_cast<float>(config.presence_penalty +
                                  config.frequency_penalty * static_cast<double>(next - it));
      it = next;
    }
  }

  const auto n = static_cast<std::size_t>(config.no_repeat_ngram_size);
  if (n > 0 && history.size() + 1 > n) {
    const auto tail = history.last(n - 1);
    for (std::size_t i = 0; i + n <= history.size(); ++i) {
      if (std::equal(tail.begin(), tail.end(), history.begin() + static_cast<std::ptrdiff_t>(i))) {
        logits[static_cast<std::size_t>(history[i + n - 1])] = kNever;
      }
    }
  }
}

// The k largest by falling logit, ties by rising id: one pass that skips blocks with nothing above the k-th
// so far.
void Sampler::select(std::span<const float> logits, std::size_t k) {
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  };
  candidates_.clear();
  constexpr std::size_t kBlock = 64;
  for (std::size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const auto block = logits.subspan(begin, std::min(kBlock, logits.size() - begin));
    const bool full = candidates_.size() == k;
    if (full && !any_above(block, candidates_.front().logit)) continue;
    for (std::size_t i = 0; i < block.size(); ++i) {
      const Candidate candidate{block[i], static_cast<std::int32_t>(begin + i), 0.0};
      if (candidates_.size() < k) {
        candidates_.push_back(candidate);
        std::push_heap(candidates_.begin(), candidates_.end(), better);  // the worst is in front
      } else if (better(candidate, candidates_.front())) {
        std::pop_heap(candidates_.begin(), candidates_.end(), better);
        candidates_.back() = candidate;
        std::push_heap(candidates_.begin(), candidates_.end(), better);
      }
    }
  }
  std::sort_heap(candidates_.begin(), candidates_.end(), better);
}

// Fills candidates_ with unnormalised probabilities. With top_p alone in force on a large vocabulary only as
// many of the likeliest are sorted as its mass needs.
bool Sampler::weigh(std::span<const float> logits, const GenerationConfig& config) {
  const double scale = 1.0 / config.temperature;
  const double top = maximum(logits);
  if (!(top > kNever)) return false;
  const auto weight = [&](float logit) { return std::exp((logit - top) * scale); };
  const bool limited = config.top_k > 0 && static_cast<std::size_t>(config.top_k) < logits.size();
  const bool cut = config.top_p < 1.0 || config.min_p > 0.0 || config.typical_p < 1.0;

  if (limited || config.typical_p < 1.0) {
    select(logits, limited ? static_cast<std::size_t>(config.top_k) : logits.size());
  } else if (!cut) {
    candidates_.clear();
    for (std::size_t i = 0; i < logits.size(); ++i) {
      candidates_.push_back({logits[i], static_cast<std::int32_t>(i), 0.0});
    }
  } else {
    double total = 0.0;
    for (const float v : logits) total += weight(v);
    for (std::size_t k = 256;; k *= 4) {
      select(logits, std::min(k, logits.size()));
      double mass = 0.0;
      for (const Candidate& c : candidates_) mass += weight(c.logit);
      const bool enough_p = config.top_p < 1.0 && mass >= config.top_p * total;
      const bool enough_m = config.min_p > 0.0 && weight(candidates_.back().logit) < config.min_p;
      if (enough_p || enough_m || k >= logits.size()) break;
    }
    for (Candidate& c : candidates_)
      c.weight = weight(c.logit) / total;  // shares of everything: top_p needs them
    return true;
  }
  double total = 0.0;
  for (Candidate& c : candidates_) total += c.weight = weight(c.logit);
  for (Candidate& c : candidates_) c.weight /= total;
  return true;
}

void Sampler::cut(const GenerationConfig& config) {
  const auto renormalise = [&] {
    double total = 0.0;
    for (const Candidate& c : candidates_) total += c.weight;
    for (Candidate& c : candidates_) c.weight /= total;
  };
  if (config.top_p < 1.0) {
    double mass = 0.0;
    std::size_t keep = 0;
    while (keep < candidates_.size() && (keep == 0 || mass < config.top_p))
      mass += candidates_[keep++].weight;
    candidates_.resize(keep);
  }
  if (config.min_p > 0.0) {
    const double floor = config.min_p * candidates_.front().weight;
    while (candidates_.size() > 1 && candidates_.back().weight < floor) candidates_.pop_back();
  }
  renormalise();
  if (config.typical_p < 1.0) keep_typical(config.typical_p);
}

// Those whose information −log p lies nearest to the entropy, until their mass reaches typical_p.
void Sampler::keep_typical(double typical_p) {
  double entropy = 0.0;
  for (const Candidate& c : candidates_) entropy -= c.weight > 0.0 ? c.weight * std::log(c.weight) : 0.0;
  const auto distance = [&](const Candidate& c) {
    return c.weight > 0.0 ? std::fabs(-std::log(c.weight) - entropy)
                          : std::numeric_limits<double>::infinity();
  };
  std::sort(candidates_.begin(), candidates_.end(), [&](const Candidate& a, const Candidate& b) {
    const double da = distance(a), db = distance(b);
    return da < db || (da == db && a.id < b.id);
  });
  double mass = 0.0;
  std::size_t keep = 0;
  while (keep < candidates_.size() && (keep == 0 || mass < typical_p)) mass += candidates_[keep++].weight;
  candidates_.resize(keep);
  for (Candidate& c : candidates_) c.weight /= mass;
}

std::int32_t Sampler::pick(double unit) const {
  double total = 0.0;
  for (const Candidate& c : candidates_) total += c.weight;
  double left = unit * total;
  for (const Candidate& c : candidates_) {
    left -= c.weight;
    if (left < 0.0) return c.id;
  }
  // Rounding can leave a crumb behind the last candidate: it belongs to the last one with any weight.
  for (auto it = candidates_.rbegin(); it != candidates_.rend(); ++it) {
    if (it->weight > 0.0) return it->id;
  }
  return candidates_.front().id;
}

std::int32_t Sampler::draw(std::span<float> logits, const GenerationConfig& config,
                           std::span<const std::int32_t> history, const DrawKey& key,
                           std::optional<std::int64_t> eos) {
  penalise(logits, config, history);
  if (config.ignore_eos && eos) logits[static_cast<std::size_t>(*eos)] = kNever;
  if (config.temperature == 0.0 || !weigh(logits, config)) {
    select(logits, 1);
    return candidates_.front().id;
  }
  const bool cuts = config.top_p < 1.0 || config.min_p > 0.0 || config.typical_p < 1.0;
  if (cuts) cut(config);
  const PhiloxWords words = philox({key.position, key.sample, 0, 0}, key.seed);
  return pick(philox_unit(words[0], words[1]));
}

TokenLogprob Sampler::logprob(std::span<const float> logits, std::int32_t id) {
  return {id, static_cast<float>(logits[static_cast<std::size_t>(id)] - log_sum_exp(logits))};
}

std::span<const TokenLogprob> Sampler::top(std::span<const float> logits, std::int64_t k) {
  const double lse = log_sum_exp(logits);
  select(logits, std::min(static_cast<std::size_t>(k), logits.size()));
  top_.clear();
  for (const Candidate& c : candidates_) top_.push_back({c.id, static_cast<float>(c.logit - lse)});
  return top_;
}

}  // namespace inkling
