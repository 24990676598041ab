// The sampler against a naive oracle in f64, its distribution against chi-square, and every option at its
// limits. Above 400 lines: every case is held against the same oracle.
#include "model/sampler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "engine/cpu/draw.h"
#include "engine/exec_context.h"
#include "engine/ops.h"
#include "engine/philox.h"
#include "model/option_table.h"
#include "tests/draw_case.h"
#include "tests/random.h"

using namespace inkling;
using test::Random;

namespace {

using Logits = std::vector<float>;

/// The probabilities that the sampler should draw with, by the book: everything sorted, everything in f64.
std::map<std::int32_t, double> oracle(const Logits& logits, const GenerationConfig& config) {
  struct Item {
    double logit;
    std::int32_t id;
    double p;
  };
  std::vector<Item> items;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    items.push_back({logits[i] / config.temperature, static_cast<std::int32_t>(i), 0.0});
  }
  std::stable_sort(items.begin(), items.end(),
                   [](const Item& a, const Item& b) { return a.logit > b.logit; });
  const auto normalise = [&] {
    double sum = 0.0;
    for (Item& item : items) sum += item.p = std::exp(item.logit - items.front().logit);
    for (Item& item : items) item.p /= sum;
  };
  if (config.top_k > 0 && items.size() > static_cast<std::size_t>(config.top_k)) {
    items.resize(static_cast<std::size_t>(config.top_k));
  }
  normalise();
  const auto keep_mass = [&](double limit) {
    double mass = 0.0;
    std::size_t keep = 0;
    while (keep < items.size() && (keep == 0 || mass < limit)) mass += items[keep++].p;
    items.resize(keep);
  };
  if (config.top_p < 1.0) keep_mass(config.top_p);
  const double floor = config.min_p * items.front().p;
  std::erase_if(items, [&](const Item& item) { return item.p < floor; });
  normalise();
  if (config.typical_p < 1.0) {
    double entropy = 0.0;
    for (const Item& item : items) entropy -= item.p * std::log(item.p);
    std::stable_sort(items.begin(), items.end(), [&](const Item& a, const Item& b) {
      return std::fabs(-std::log(a.p) - entropy) < std::fabs(-std::log(b.p) - entropy);
    });
    keep_mass(config.typical_p);
    double sum = 0.0;
    for (const Item& item : items) sum += item.p;
    for (Item& item : items) item.p /= sum;
  }
  std::map<std::int32_t, double> result;
  for (const Item& item : items) result[item.id] = item.p;
  return result;
}

std::map<std::int32_t, int> draws(const Logits& logits, const GenerationConfig& config, int count) {
  Sampler sampler;
  std::map<std::int32_t, int> seen;
  for (int i = 0; i < count; ++i) {
    Logits row = logits;
    ++seen[sampler.draw(row, config, {}, {99, static_cast<std::uint32_t>(i), 0})];
  }
  return seen;
}

GenerationConfig plain() {
  GenerationConfig config;
  config.temperature = 1.0;
  config.top_k = 0;
  config.top_p = 1.0;
  return config;
}

}  // namespace

TEST_CASE("draws follow the oracle's distribution under every cut and mix of cuts") {
  Random random(11);
  std::vector<GenerationConfig> configs(9, plain());
  configs[1].temperature = 0.7;
  configs[2].top_k = 7;
  configs[3].top_p = 0.6;
  configs[4].min_p = 0.1;
  configs[5].typical_p = 0.5;
  configs[6] = GenerationConfig();
  configs[7].top_k = 20, configs[7].top_p = 0.9, configs[7].min_p = 0.02, configs[7].typical_p = 0.8;
  configs[8].temperature = 1.5, configs[8].top_p = 0.99;
  const int count = 40000;
  for (std::size_t c = 0; c < configs.size(); ++c) {
    CAPTURE(c);
    const Logits logits = random.normals(300, 2.0);
    const auto expected = oracle(logits, configs[c]);
    const auto seen = draws(logits, configs[c], count);
    double chi = 0.0, degrees = -1.0;
    for (const auto& [id, n] : seen) {
      (void)n;
      REQUIRE(expected.count(id) == 1);  // nothing that was cut is ever drawn
    }
    double rare_expected = 0.0, rare_seen = 0.0;  // cells below 5 are pooled
    for (const auto& [id, p] : expected) {
      const double n = seen.count(id) != 0 ? seen.at(id) : 0.0, e = p * count;
      if (e < 5.0) {
        rare_expected += e, rare_seen += n;
        continue;
      }
      chi += (n - e) * (n - e) / e, degrees += 1.0;
    }
    if (rare_expected >= 5.0)
      chi += (rare_seen - rare_expected) * (rare_seen - rare_expected) / rare_expected, degrees += 1.0;
    // Mean `degrees`, variance 2·degrees; five sigma, and the seed is fixed.
    CHECK(chi <= degrees + 5.0 * std::sqrt(2.0 * degrees + 1.0));
  }
}

TEST_CASE("what is cut is what the oracle cuts, over whole vocabularies") {
  Random random(12);
  for (int round = 0; round < 30; ++round) {
    CAPTURE(round);
    const auto vocab = static_cast<std::size_t>(random.range(2, 5000));
    Logits logits = random.normals(vocab, round % 3 == 0 ? 0.1 : 3.0);
    if (round % 4 == 0) {
      for (float& v : logits) v = std::round(v);  // ties at the edge
    }
    GenerationConfig config = plain();
    if (round % 2 == 0) config.top_p = 0.05 + 0.9 * random.uniform();
    if (round % 3 == 1) config.min_p = 0.3 * random.uniform();
    if (round % 5 == 2) config.typical_p = 0.05 + 0.9 * random.uniform();
    config.temperature = 0.3 + 2.0 * random.uniform();
    const auto expected = oracle(logits, config);
    std::map<std::int32_t, int> seen = draws(logits, config, 3000);
    double missed = 0.0;
    for (const auto& [id, n] : seen) {
      (void)n;
      REQUIRE(expected.count(id) == 1);
    }
    for (const auto& [id, p] : expected) missed += seen.count(id) == 0 && p > 0.01 ? p : 0.0;
    CHECK(missed == 0.0);  // 3000 draws miss one of 1 % once in 10^13
  }
}

TEST_CASE("each cut falls between the same two tokens as the oracle's") {
  // All about as likely, so that every token kept is drawn: the least likely some 25 times.
  Random random(14);
  Logits logits(600);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i) / 600.0f;
  for (std::size_t i = logits.size(); i > 1; --i) {
    std::swap(logits[i - 1],
              logits[static_cast<std::size_t>(random.range(0, static_cast<std::int64_t>(i) - 1))]);
  }
  for (const double share : {0.07, 0.3, 0.52, 0.81}) {
    std::vector<GenerationConfig> configs(5, plain());
    configs[0].top_p = share;
    configs[1].typical_p = share;
    configs[2].min_p = 0.35 + share / 2;
    configs[3].top_k = static_cast<std::int64_t>(600 * share);
    configs[4].top_k = 400, configs[4].top_p = share, configs[4].min_p = 0.6;
    for (std::size_t c = 0; c < configs.size(); ++c) {
      CAPTURE(share);
      CAPTURE(c);
      const auto expected = oracle(logits, configs[c]);
      double least = 1.0;
      for (const auto& [id, p] : expected) least = std::min(least, p);
      const auto seen = draws(logits, configs[c], static_cast<int>(25.0 / least));
      CHECK(std::ranges::equal(
          seen, expected, {}, [](const auto& e) { return e.first; }, [](const auto& e) { return e.first; }));
    }
  }
}

TEST_CASE("extreme temperatures, cuts and logits leave a token that may be drawn") {
  Random random(13);
  Sampler sampler;
  for (const double temperature : {1e-310, 1e-30, 1e-3, 1.0, 1e4}) {
    for (const double top_p : {0.0, 1e-9, 0.5, 1.0}) {
      for (const double min_p : {0.0, 0.5, 1.0}) {
        for (const double typical_p : {0.0, 0.5, 1.0}) {
          for (const std::int64_t top_k : {0, 1, 3, 1000}) {
            GenerationConfig config = plain();
            config.temperature = temperature;
            config.top_p = top_p, config.min_p = min_p, config.typical_p = typical_p, config.top_k = top_k;
            Logits logits = random.normals(700, 100.0);
            for (std::size_t i = 0; i < logits.size(); i += 2) {
              logits[i] = -std::numeric_limits<float>::infinity();
            }
            const std::int32_t id = sampler.draw(logits, config, {}, {1, 2, 3});
            REQUIRE(id % 2 == 1);  // never one that is forbidden
            const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
            if (top_k == 1 || min_p == 1.0 || top_p == 0.0 || temperature < 1e-20) REQUIRE(id == best);
          }
        }
      }
    }
  }
}

TEST_CASE("greedy takes the largest, of equals the lowest id, and a temperature near 0 agrees") {
  Random random(2);
  Sampler sampler;
  GenerationConfig config = plain();
  config.temperature = 0.0;
  for (int round = 0; round < 200; ++round) {
    Logits logits = random.normals(1000, 3.0);
    for (float& v : logits) v = std::round(v);  // many ties
    const auto best =
        static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    Logits row = logits;
    CHECK(sampler.draw(row, config, {}, {1, 1, 0}) == best);
  }
  Logits row = random.normals(100);
  const auto best = static_cast<std::int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
  config.temperature = 1e-3;
  CHECK(sampler.draw(row, config, {}, {5, 0, 0}) == best);
}

TEST_CASE("a draw from the likeliest tokens is the draw from the row") {
  Random random(9);
  Sampler whole, part;
  int drawn = 0;
  for (std::uint32_t i = 0; i < 600; ++i) {
    Logits logits = random.normals(200, 3.0);
    if (i % 3 == 0) {
      for (float& v : logits) v = std::round(v);  // ties, across the k-th place too
    }
    GenerationConfig config;
    config.temperature = i % 5 == 0 ? 0.0 : 0.3 + 0.1 * (i % 17);
    config.top_k = 1 + i % 60;
    config.top_p = i % 2 == 0 ? 1.0 : 0.7;
    config.min_p = i % 7 == 0 ? 0.05 : 0.0;
    config.typical_p = i % 11 == 0 ? 0.6 : 1.0;
    config.ignore_eos = i % 4 < 2;
    std::vector<std::int32_t> ends;  // none, the likeliest, or that and two more
    if (i % 4 != 1)
      ends.push_back(
          static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    if (i % 8 == 4) ends.insert(ends.end(), {(ends[0] + 1) % 200, (ends[0] + 60) % 200});
    const auto count = static_cast<std::size_t>(Sampler::top_wanted(logits.size(), config, ends));
    REQUIRE(count == (config.temperature == 0.0 ? 1 : static_cast<std::size_t>(config.top_k)) +
                         (config.ignore_eos ? ends.size() : 0));
    std::vector<std::int32_t> ids(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) {
      return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
    });
    ids.resize(count);
    Logits top;
    for (const std::int32_t id : ids) top.push_back(logits[static_cast<std::size_t>(id)]);
    const DrawKey key{17, i, i % 4};
    const std::int32_t expected = whole.draw(logits, config, {}, key, ends);
    CHECK(part.draw({top, ids}, config, key, ends) == expected);
    if (config.ignore_eos) CHECK(std::ranges::find(ends, expected) == ends.end());
    drawn += expected != ids.front() ? 1 : 0;
  }
  CHECK(drawn > 100);  // not greedy throughout
  GenerationConfig config;
  config.top_k = 40;
  const std::vector<std::int32_t> ends{3, 4};
  CHECK(Sampler::top_wanted(200, config, ends) == 40);
  CHECK(Sampler::top_wanted(40, config, ends) == 0);  // nothing is cut
  config.ignore_eos = true;
  CHECK(Sampler::top_wanted(200, config, ends) == 42);
  CHECK(Sampler::top_wanted(41, config, ends) == 41);  // there are no more
  CHECK(Sampler::top_wanted(200, config, {}) == 40);
  config.logprobs = 0;
  CHECK(Sampler::top_wanted(200, config, {}) == 0);
}

TEST_CASE("the op's draw is the sampler's, on rows with ties, limits and every mix of cuts") {
  ExecContext context({.device = Device::cpu, .threads = 2});
  const auto draw_of = [&](const Logits& rows, std::int64_t n, const std::vector<DrawSettings>& settings) {
    std::vector<std::int32_t> ids(settings.size());
    const TensorView logits(const_cast<float*>(rows.data()), DType::f32,
                            {static_cast<std::int64_t>(rows.size()) / n, n});
    draw(context, {logits, settings.data(), static_cast<std::int64_t>(settings.size()), ids.data()});
    return ids;
  };
  Sampler sampler;
  for (const std::int64_t n : {8, 1000, 5000}) {
    test::check_draws(n, draw_of, [&](const Logits& row, const DrawSettings& one) {
      GenerationConfig config;
      config.temperature = one.scale == 0.0f ? 0.0 : 1.0 / static_cast<double>(one.scale);
      config.top_k = one.top_k, config.top_p = one.top_p, config.min_p = one.min_p;
      config.ignore_eos = one.forbidden >= 0;
      const EndIds ends(&one.forbidden, one.forbidden >= 0 ? 1 : 0);
      const DrawKey key{one.seed, one.position, one.sample};
      REQUIRE(Sampler::op_refusal(row.size(), config, ends).empty());
      DrawSettings made = Sampler::settings(row.size(), config, key, ends);
      made.row = one.row;
      CHECK(draw_from(row, made) == draw_from(row, one));
      return sampler.draw(row, config, {}, key, ends);
    });
  }
}

TEST_CASE("what the op cannot draw is told by name") {
  const auto refusal = [](auto&& change) {
    GenerationConfig config;
    change(config);
    return Sampler::op_refusal(5000, config, std::vector<std::int32_t>{1, 2});
  };
  CHECK(refusal([](GenerationConfig&) {}).empty());
  CHECK(refusal([](GenerationConfig& c) { c.logprobs = 0; }) == "log-probabilities are asked for");
  CHECK(refusal([](GenerationConfig& c) { c.ignore_eos = true; }) == "several tokens are forbidden");
  CHECK(refusal([](GenerationConfig& c) { c.typical_p = 0.5; }) == "typical_p is set");
  CHECK(refusal([](GenerationConfig& c) { c.typical_p = 0.5, c.temperature = 0.0; }).empty());
  CHECK(refusal([](GenerationConfig& c) { c.top_k = 1025; }) == "top_k is large");
  CHECK(refusal([](GenerationConfig& c) { c.top_k = 5000; }).empty());
  for (const auto& change : {+[](GenerationConfig& c) { c.repetition_penalty = 1.1; },
                             +[](GenerationConfig& c) { c.frequency_penalty = 0.1; },
                             +[](GenerationConfig& c) { c.presence_penalty = -0.1; },
                             +[](GenerationConfig& c) { c.no_repeat_ngram_size = 2; },
                             +[](GenerationConfig& c) {
                               c.logit_bias = {{3, 1.0}};
                             }}) {
    CHECK(refusal(change).find("changes the logits") != std::string_view::npos);
  }
}

TEST_CASE("a draw depends on seed, position and sample, and on nothing that came before") {
  const Logits logits(5000, 0.0f);  // uniform
  const auto draw = [&](Sampler& sampler, DrawKey key) {
    Logits row = logits;
    return sampler.draw(row, plain(), {}, key);
  };
  Sampler one, other;
  (void)draw(other, {77, 7, 7});
  CHECK(draw(one, {1, 2, 3}) == draw(other, {1, 2, 3}));
  CHECK(draw(one, {1, 2, 3}) != draw(one, {2, 2, 3}));
  CHECK(draw(one, {1, 2, 3}) != draw(one, {1, 3, 3}));
  CHECK(draw(one, {1, 2, 3}) != draw(one, {1, 2, 4}));
  // The rule, spelt out: the 53-bit fraction of philox({position, sample, 0, 0}, seed) walks over the ids.
  const auto words = philox({2, 3, 0, 0}, 1);
  CHECK(draw(one, {1, 2, 3}) == static_cast<std::int32_t>(philox_unit(words[0], words[1]) * 5000));
}

TEST_CASE("bias, penalties, n-grams and ignore_eos change the logits as documented") {
  Sampler sampler;
  GenerationConfig config = plain();
  config.temperature = 0.0;
  const std::vector<std::int32_t> history{4, 4, 2, 4};
  std::vector<std::int32_t> ends{3};
  const auto argmax = [&](Logits row) { return sampler.draw(row, config, history, {}, ends); };
  CHECK(argmax({0, 0, 1, 0, 5}) == 4);
  config.presence_penalty = 4.5;  // 5 − 4.5 = 0.5 and 1 − 4.5: id 0 stays at 0
  CHECK(argmax({0, 0, 1, 0, 5}) == 4);
  config.frequency_penalty = 0.5;  // 5 − 4.5 − 3·0.5 < 0
  CHECK(argmax({0, 0, 1, 0, 5}) == 0);
  config.repeat_last_n = 1;  // sees 4 once: 5 − 4.5 − 0.5 = 0, tie with ids 0, 1 and 3, but 2 has 1
  CHECK(argmax({0, 0, 1, 0, 5}) == 2);
  config = plain();
  config.temperature = 0.0;
  config.repetition_penalty = 2.0;
  CHECK(argmax({3, 0, 1, 0, 5}) == 0);       // 5 / 2 < 3
  CHECK(argmax({-3, -9, -1, -9, -2}) == 2);  // −1 · 2 = −2 beats −2 · 2 = −4 and −3
  config = plain();
  config.temperature = 0.0;
  config.no_repeat_ngram_size = 2;  // after 4 came 4 and 2 before
  CHECK(argmax({0, 1, 8, 0, 9}) == 1);
  config.no_repeat_ngram_size = 1;
  CHECK(argmax({0, 1, 8, 0, 9}) == 1);
  config = plain();
  config.temperature = 0.0;
  config.logit_bias = {{1, 100.0}};
  CHECK(argmax({0, 1, 8, 0, 9}) == 1);
  config.logit_bias.clear();
  CHECK(argmax({0, 1, 2, 9, 3}) == 3);
  config.ignore_eos = true;
  CHECK(argmax({0, 1, 2, 9, 3}) == 4);
  ends = {3, 4, 1};
  CHECK(argmax({0, 1, 2, 9, 3}) == 2);
}

TEST_CASE("rows of −inf and single survivors do no harm") {
  const float inf = std::numeric_limits<float>::infinity();
  Sampler sampler;
  for (const GenerationConfig& config : {plain(), GenerationConfig()}) {
    Logits dead(50, -inf), one(50, -inf);
    one[33] = -1e30f;
    CHECK(sampler.draw(dead, config, {}, {}) == 0);
    CHECK(sampler.draw(one, config, {}, {}) == 33);
  }
}

TEST_CASE("a logit that is no number counts as −inf, under every cut") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Random random(8);
  std::vector<GenerationConfig> configs(6, plain());
  configs[0].temperature = 0.0;
  configs[1].top_k = 40;
  configs[2].top_k = 290;  // more than there are numbers
  configs[3].top_p = 0.95;
  configs[4].typical_p = 0.9;
  configs[5].top_k = 40, configs[5].top_p = 0.9, configs[5].min_p = 0.01;
  configs[5].repetition_penalty = 1.2;
  const std::vector<std::int32_t> history{0, 1, 2, 3};
  Sampler sampler;
  for (std::uint32_t i = 0; i < 200; ++i) {
    Logits row = random.normals(300, 2.0), never = row;
    for (std::size_t at = i % 3; at < row.size(); at += 2 + i % 5) {
      row[at] = i % 2 == 0 ? nan : -nan;
      never[at] = kNever;
    }
    for (const GenerationConfig& config : configs) {
      REQUIRE(sampler.draw(row, config, history, {7, i, 0}) ==
              sampler.draw(never, config, history, {7, i, 0}));
    }
    const double lse = Sampler::log_sum_exp(row);
    REQUIRE(lse == Sampler::log_sum_exp(never));
    const auto ids_of = [&](const Logits& logits) {
      std::vector<std::int32_t> ids;
      for (const TokenLogprob& t : sampler.top(logits, lse, 300)) ids.push_back(t.id);
      return ids;
    };
    REQUIRE(ids_of(row) == ids_of(never));
  }
}

TEST_CASE("the largest vocabulary can be drawn from, all of it alike, and a larger one is refused") {
  Sampler sampler;
  GenerationConfig config = plain();
  Logits row(static_cast<std::size_t>(kMostDrawn), -5.0f);
  double sum = 0.0;
  for (std::uint32_t i = 0; i < 16; ++i) sum += sampler.draw(row, config, {}, {3, i, 0});
  CHECK(sum / 16 == doctest::Approx(static_cast<double>(kMostDrawn) / 2).epsilon(0.4));
  config.top_p = 0.9;
  row[7] = 20.0f;
  CHECK(sampler.draw(row, config, {}, {}) == 7);
  row.push_back(0.0f);
  CHECK_THROWS_WITH_AS((void)sampler.draw(row, config, {}, {}),
                       "sampler: expected at most 4194304 logits, got 4194305", Error);
}

TEST_CASE("log-probabilities are those of the model's own distribution") {
  Random random(8);
  const Logits logits = random.normals(777, 4.0);
  double sum = 0.0;
  for (const float v : logits) sum += std::exp(static_cast<double>(v));
  Sampler sampler;
  const double lse = Sampler::log_sum_exp(logits);
  CHECK(lse == doctest::Approx(std::log(sum)).epsilon(1e-7));
  const auto top = sampler.top(logits, lse, 4);
  REQUIRE(top.size() == 4);
  for (std::size_t i = 1; i < 4; ++i) CHECK(top[i - 1].logprob >= top[i].logprob);
  CHECK(top[0].id == std::max_element(logits.begin(), logits.end()) - logits.begin());
  CHECK(top[0].logprob == doctest::Approx(logits[static_cast<std::size_t>(top[0].id)] - std::log(sum)));
  CHECK(sampler.top(logits, lse, 0).empty());
  CHECK(sampler.top(logits, lse, 1000).size() == 777);
}

TEST_CASE("a draw tells the profiler what it must compute") {
  GenerationConfig config;
  config.temperature = 1.0;
  config.top_k = 0;
  CHECK(Sampler::work(100, config).bytes == 400);
  CHECK(Sampler::work(100, config).flops == 400);
  config.logprobs = 0;
  CHECK(Sampler::work(100, config).flops == 700);
  config.top_k = 10;
  CHECK(Sampler::work(100, config).flops == 340);
  config.temperature = 0.0;
  CHECK(Sampler::work(100, config).flops == 300);
  config.logprobs = -1;
  CHECK(Sampler::work(100, config).flops == 0);
}

TEST_CASE("every option is tested at its limits: min − 1, min, max, max + 1, NaN, nonsense") {
  const auto takes = [](std::string_view name, const std::string& text) {
    GenerationConfig config;
    const Result<void> result = set_option(config, name, text);
    if (!result) {
      CHECK(result.error().code() == Code::usage);
      CHECK(result.error().message().starts_with(name));
    }
    return result.has_value();
  };
  for (const Option& option : generation_options()) {
    CAPTURE(option.name);
    CHECK_FALSE(option.help.empty());
    CHECK(find_option(option.name) == &option);
    CHECK_FALSE(takes(option.name, ""));
    if (!std::holds_alternative<std::vector<std::string> GenerationConfig::*>(option.member)) {
      CHECK_FALSE(takes(option.name, "nan"));
      CHECK_FALSE(takes(option.name, "12x"));
    }
    const bool whole = std::holds_alternative<std::int64_t GenerationConfig::*>(option.member);
    if (!whole && !std::holds_alternative<double GenerationConfig::*>(option.member)) continue;
    const auto text = [&](double value) {
      char buffer[64];
      std::snprintf(buffer, sizeof buffer, whole ? "%.0f" : "%.17g", value);
      return std::string(buffer);
    };
    const double beyond = whole ? 1.0 : 1e-6 * std::max(1.0, std::fabs(option.max));
    CHECK_FALSE(takes(option.name, text(option.min - beyond)));
    CHECK(takes(option.name, text(option.min)));
    CHECK(takes(option.name, text(option.max)));
    CHECK_FALSE(takes(option.name, text(option.max + beyond)));
    CHECK_FALSE(takes(option.name, "1e999"));
  }
  CHECK_FALSE(takes("seed", "-1"));
  CHECK(takes("seed", "18446744073709551615"));
  CHECK_FALSE(takes("seed", "18446744073709551616"));
  CHECK(takes("logit_bias", "50256-100"));
  CHECK(takes("logit_bias", "11:2.5"));
  CHECK_FALSE(takes("logit_bias", "-1+2"));
  CHECK_FALSE(takes("logit_bias", "5+1e9"));
  CHECK_FALSE(takes("no_such_option", "1"));
  CHECK(find_option("n_predict") == find_option("max_tokens"));
}

TEST_CASE("validate names the bad field, whoever set it") {
  GenerationConfig config;
  CHECK_NOTHROW(config.validate(100));
  config.temperature = std::nan("");
  CHECK_THROWS_WITH_AS(config.validate(100), "temperature: expected a number from 0 to 10000, got 'nan'",
                       Error);
  config = {};
  config.logit_bias = {{100, 1.0}};
  CHECK_THROWS_WITH_AS(config.validate(100), "logit_bias: expected ids below 100, got 100", Error);
  for (const double bias : {10001.0, -10001.0, std::nan("")}) {
    config.logit_bias = {{1, 1.0}, {2, bias}};
    CHECK_THROWS_AS(config.validate(100), Error);
  }
  config.logit_bias = {{1, 10000.0}, {2, -10000.0}};
  CHECK_NOTHROW(config.validate(100));
  config = {};
  config.stop = {""};
  CHECK_THROWS_AS(config.validate(100), Error);
  for (const char* name : {"default", "openai-gpt2", "nanogpt", "hf", "llama"}) {
    REQUIRE(GenerationConfig::preset(name).has_value());
    CHECK_NOTHROW(GenerationConfig::preset(name)->validate(50257));
  }
  CHECK_FALSE(GenerationConfig::preset("gpt5").has_value());
}
