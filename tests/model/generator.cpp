// Requests in company: the same seed gives the same tokens in any batch, chunking and number of threads.
// Above 400 lines: short cases, which all share the world of small_world.h.
#include "model/generator.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <stdexcept>
#include <utility>

#include "engine/profiler.h"
#include "model/score.h"
#include "tests/model/small_world.h"

using namespace inkling;
using test::Answer;
using test::Ids;
using test::Random;
using test::request;
using test::World;

TEST_CASE("the same seed gives the same tokens whatever the batch, the chunks and the threads") {
  const World world;
  Random random(3);
  std::vector<Ids> prompts;
  for (int i = 0; i < 9; ++i) {
    Ids ids(static_cast<std::size_t>(random.range(1, 40)));
    for (auto& id : ids) id = static_cast<std::int32_t>(random.range(0, 119));
    prompts.push_back(ids);
  }
  std::vector<Answer> alone(prompts.size());
  for (const int threads : {1, 2, 3}) {
    ExecContext context({.threads = threads});
    const Model model = Model::load(world.folder.path(), context).value();
    for (const std::int64_t batch : {1, 2, 5, 20}) {
      for (const std::int64_t chunk : {0, 1, 7}) {
        std::vector<Answer> answers(prompts.size());
        Generator generator(model, context, {.max_batch = batch, .prefill_chunk = chunk});
        for (std::size_t i = 0; i < prompts.size(); ++i) {
          generator.submit(request(prompts[i], 10 + static_cast<std::int64_t>(i), 100 + i, answers[i]));
        }
        while (generator.step()) {
        }
        CHECK(generator.pending() == 0);
        CHECK(generator.kv_pool().used_pages() == 0);
        if (alone[0].ids.empty()) alone = answers;
        for (std::size_t i = 0; i < prompts.size(); ++i) {
          REQUIRE(answers[i].ids == alone[i].ids);
          REQUIRE(answers[i].ids.size() == 10 + i);
          REQUIRE(answers[i].finish == Finish::length);
        }
      }
    }
  }
  CHECK(alone[0].ids != alone[1].ids);
}

TEST_CASE("a text that is cut anywhere goes on with the same seed as if it had not been") {
  const World world;
  ExecContext context({.threads = 1});
  const Model model = Model::load(world.folder.path(), context).value();
  Generator generator(model, context);
  const auto run = [&](const Ids& prompt, std::int64_t tokens) {
    Answer answer;
    generator.submit(request(prompt, tokens, 31, answer));
    while (generator.step()) {
    }
    return answer.ids;
  };
  const Ids prompt{4, 9, 2};
  Ids whole = prompt;
  for (const std::int32_t id : run(prompt, 12)) whole.push_back(id);
  for (const std::ptrdiff_t cut : {4, 9, 14}) {
    CHECK(run(Ids(whole.begin(), whole.begin() + cut), 15 - cut) == Ids(whole.begin() + cut, whole.end()));
  }
}

TEST_CASE("samples of one prompt share it, differ from each other, and repeat by seed") {
  const World world;
  ExecContext context({.threads = 2});
  const Model model = Model::load(world.folder.path(), context).value();
  const auto run = [&](std::int64_t batch) {
    Generator generator(model, context, {.max_batch = batch});
    std::vector<Ids> samples(3);
    Answer ignored;
    GenerationRequest r = request({1, 2, 3}, 12, 9, ignored);
    r.samples = 3;
    r.on_token = [&](const TokenEvent& event) {
      samples[event.sample].push_back(event.id);
      return Continue::yes;
    };
    generator.submit(std::move(r));
    std::int64_t seen = 0;
    const auto told = [&] {
      std::int64_t all = 0;
      for (const Ids& ids : samples) all += static_cast<std::int64_t>(ids.size());
      return all - std::exchange(seen, all);
    };
    for (bool more = true; more;) {
      more = generator.step();
      CHECK(told() <= batch);
    }
    CHECK(generator.pending() == 0);
    return samples;
  };
  const auto first = run(3);
  CHECK(first == run(8));
  CHECK(first == run(2));  // in two groups
  CHECK(first == run(1));
  CHECK(first[0].size() == 12);
  CHECK(first[0] != first[1]);
  CHECK(first[1] != first[2]);
  Answer single;
  Generator generator(model, context);
  generator.submit(request({1, 2, 3}, 12, 9, single));
  while (generator.step()) {
  }
  CHECK(single.ids == first[0]);
}

TEST_CASE("generation ends for the reason that it gives") {
  const World world;
  ExecContext context({.threads = 1});
  const Model model = Model::load(world.folder.path(), context).value();
  const auto run = [&](const auto& change) {
    Answer answer;
    Generator generator(model, context);
    GenerationRequest r = request({5, 6}, 30, 4, answer);
    change(r);
    generator.submit(std::move(r));
    while (generator.step()) {
    }
    return answer;
  };
  const Answer whole = run([](GenerationRequest&) {});
  CHECK(whole.finish == Finish::length);
  const Answer eos = run([](GenerationRequest& r) {
    r.config.ignore_eos = false;
    r.config.logit_bias = {{7, 1000.0}};
  });
  CHECK(eos.ids == Ids{7});
  CHECK(eos.finish == Finish::eos);
  int calls = 0;
  run([&](GenerationRequest& r) {
    r.on_token = [&](const TokenEvent&) { return ++calls == 5 ? Continue::stop : Continue::yes; };
  });
  CHECK(calls == 5);
  Answer never;
  Generator generator(model, context);
  const auto id = generator.submit(request({5}, 30, 4, never));
  const auto other = generator.submit(request({5}, 3, 4, never));
  generator.cancel(id);
  while (generator.step()) {
  }
  CHECK(never.ids.size() == 3);
  generator.cancel(other);  // over already: ignored
  CHECK_FALSE(generator.step());
}

TEST_CASE("a text ends at any of the tokens that generation_config.json names, wherever they are drawn") {
  const World world;
  ExecContext context({.threads = 1});
  std::string even = "0";
  for (int id = 2; id < 120; id += 2) even += "," + std::to_string(id);
  world.publish("{\"eos_token_id\": [" + even + "], \"bos_token_id\": 3}");
  const Model model = Model::load(world.folder.path(), context).value();
  CHECK(model.end_ids().size() == 60);
  CHECK(model.first_id() == 3);
  const auto odd = [](std::int32_t id) { return id % 2 == 1; };
  std::size_t longest = 0;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    const auto run = [&](DrawPlace draws, bool ignore_eos) {
      Answer answer;
      Generator generator(model, context, {.draws = draws});
      GenerationRequest r = request({5, 7}, 40, seed, answer);
      r.config.ignore_eos = ignore_eos;
      r.config.temperature = 100.0;  // any token
      r.config.top_k = 0, r.config.top_p = 1.0;
      generator.submit(std::move(r));
      while (generator.step()) {
      }
      return answer;
    };
    for (const DrawPlace draws : {DrawPlace::host, DrawPlace::device}) {
      const Answer ended = run(draws, false);
      CHECK(ended.finish == Finish::eos);
      CHECK(std::ranges::find_if_not(ended.ids, odd) == ended.ids.end() - 1);
      longest = std::max(longest, ended.ids.size());
      const Answer whole = run(draws, true);
      CHECK(whole.finish == Finish::length);
      CHECK(std::ranges::all_of(whole.ids, odd));
    }
  }
  CHECK(longest > 1);
  world.publish("{\"top_k\": 5}");  // states none: config.json's
  const Model other = Model::load(world.folder.path(), context).value();
  CHECK(other.end_ids() == Ids{7});
  CHECK(other.first_id() == 7);
}

TEST_CASE("overflow is an error with both numbers, or cuts and says how much") {
  const World world;
  ExecContext context({.threads = 1});
  const Model model = Model::load(world.folder.path(), context).value();
  const Ids prompt(60, 3);
  Answer answer;
  Generator generator(model, context);
  const auto submit = [&](Overflow overflow, std::int64_t tokens) {
    answer = {};
    GenerationRequest r = request(prompt, tokens, 1, answer);
    r.overflow = overflow;
    generator.submit(std::move(r));
    while (generator.step()) {
    }
  };
  submit(Overflow::error, 5);  // 60 + 5 − 1 positions are just there
  CHECK(answer.ids.size() == 5);
  try {
    submit(Overflow::error, 6);
    FAIL("65 positions were had of 64");
  } catch (const Error& error) {
    CHECK(error.code() == Code::input);
    CHECK(error.message().starts_with(
        "context: a prompt of 60 tokens and 6 new ones need 65 positions, but there are 64"));
  }
  submit(Overflow::truncate_left, 20);
  CHECK(answer.ids.size() == 20);
  CHECK(answer.dropped == 15);
  CHECK_THROWS_AS(submit(Overflow::truncate_left, 65), Error);
  submit(Overflow::slide, 200);
  CHECK(answer.ids.size() == 200);
  CHECK(answer.dropped > 150);
  CHECK(answer.finish == Finish::length);
}

TEST_CASE("bad requests are refused by name") {
  const World world;
  ExecContext context({.threads = 1});
  const Model model = Model::load(world.folder.path(), context).value();
  Generator generator(model, context, {.max_batch = 2});
  Answer answer;
  CHECK_THROWS_WITH_AS(generator.submit(request({}, 1, 1, answer)),
                       "prompt: expected at least one token, got none", Error);
  CHECK_THROWS_WITH_AS(generator.submit(request({120}, 1, 1, answer)),
                       "prompt: expected ids below 120, got 120", Error);
  GenerationRequest many = request({1}, 1, 1, answer);
  many.samples = 0;
  CHECK_THROWS_WITH_AS(generator.submit(std::move(many)), "samples: expected at least 1, got 0", Error);
  GenerationRequest hot = request({1}, 1, 1, answer);
  hot.config.top_p = 1.5;
  CHECK_THROWS_AS(generator.submit(std::move(hot)), Error);
  CHECK_THROWS_AS(Generator(model, context, {.max_batch = 0}), Error);
  CHECK_THROWS_AS(Generator(model, context, {.prefill_chunk = -1}), Error);
  CHECK_THROWS_WITH_AS(Generator(model, context, {.context = 65}),
                       "context: expected at most the model's 64 positions, got 65", Error);
  CHECK_FALSE(generator.step());
}

TEST_CASE("a hook may cancel, submit and throw") {
  const World world;
  ExecContext context({.threads = 2});
  const Model model = Model::load(world.folder.path(), context).value();
  std::vector<Answer> alone(4), together(5);
  Generator generator(model, context, {.max_batch = 4});
  for (std::size_t i = 0; i < 4; ++i) {
    generator.submit(request({3, static_cast<std::int32_t>(i)}, 20, i, alone[i]));
    while (generator.step()) {
    }
  }
  std::vector<std::uint64_t> id(4);
  const auto submit = [&](std::size_t i, const auto& hook) {
    GenerationRequest r = request({3, static_cast<std::int32_t>(i)}, 20, i, together[i]);
    auto keep = r.on_token;
    r.on_token = [keep, hook](const TokenEvent& event) {
      hook(event);
      return keep(event);
    };
    id[i] = generator.submit(std::move(r));
  };
  int after = 0;
  submit(0, [&](const TokenEvent& event) {
    if (event.index == 5) generator.cancel(id[0]), generator.cancel(id[2]);  // itself and a later one
    if (event.index == 7) ++after;
  });
  submit(1, [&](const TokenEvent& event) {
    if (event.index == 3) {
      generator.submit(request({3, 3}, 20, 3, together[4]));
      throw std::runtime_error("the reader has gone");
    }
  });
  submit(2, [](const TokenEvent&) {});
  submit(3, [](const TokenEvent&) {});
  int thrown = 0;
  for (bool more = true; more;) {
    try {
      more = generator.step();
    } catch (const std::runtime_error&) {
      ++thrown;
    }
  }
  CHECK(thrown == 1);
  CHECK(after == 0);
  const auto begin = [&](std::size_t i, std::size_t n) {
    return Ids(alone[i].ids.begin(), alone[i].ids.begin() + static_cast<std::ptrdiff_t>(n));
  };
  CHECK(together[0].ids == begin(0, 6));
  CHECK(together[1].ids == begin(1, 3));
  CHECK(together[2].ids == begin(2, 5));
  CHECK(together[3].ids == alone[3].ids);
  CHECK(together[4].ids == alone[3].ids);  // the same prompt and seed
  CHECK(generator.kv_pool().used_pages() == 0);
}

TEST_CASE("slide encodes the newer half anew, and what follows is what that half alone would give") {
  const World world;
  ExecContext context({.threads = 2});
  const Model model = Model::load(world.folder.path(), context).value();
  const auto greedy = [&](Ids prompt, std::int64_t tokens, Overflow overflow) {
    Answer answer;
    Generator generator(model, context);
    GenerationRequest r = request(std::move(prompt), tokens, 1, answer);
    r.config.temperature = 0.0;
    r.overflow = overflow;
    generator.submit(std::move(r));
    while (generator.step()) {
    }
    return answer;
  };
  const Ids prompt(60, 3);
  const Answer slid = greedy(prompt, 30, Overflow::slide);
  // 60 + 4 tokens fill the context; the fifth token after them is seen by a context of 32 and those that
  // come.
  Ids all = prompt;
  all.insert(all.end(), slid.ids.begin(), slid.ids.begin() + 5);
  const Answer rest = greedy(Ids(all.end() - 32, all.end()), 25, Overflow::error);
  CHECK(Ids(slid.ids.begin() + 5, slid.ids.end()) == rest.ids);
  CHECK(slid.dropped == 65 - 32);
  const Answer cut = greedy(prompt, 30, Overflow::truncate_left);
  CHECK(cut.ids == greedy(Ids(35, 3), 30, Overflow::error).ids);
}

TEST_CASE("events carry the model's own log-probabilities") {
  const World world;
  ExecContext context({.threads = 2});
  const Model model = Model::load(world.folder.path(), context).value();
  Ids all{9, 8, 7};
  std::vector<float> logprobs;
  Answer ignored;
  GenerationRequest r = request(all, 15, 6, ignored);
  r.config.logprobs = 3;
  r.config.temperature = 1.7;
  r.on_token = [&](const TokenEvent& event) {
    REQUIRE(event.logprob.has_value());
    REQUIRE(event.top.size() == 3);
    CHECK(event.top[0].logprob >= event.top[2].logprob);
    CHECK(event.top[0].logprob >= *event.logprob);
    all.push_back(event.id);
    logprobs.push_back(*event.logprob);
    return Continue::yes;
  };
  Generator generator(model, context);
  generator.submit(std::move(r));
  while (generator.step()) {
  }
  const auto scored = score(model, context, std::vector<Ids>{all});
  for (std::size_t i = 0; i < logprobs.size(); ++i) {
    CHECK(logprobs[i] == doctest::Approx(scored[0][3 + i]).epsilon(1e-5));
  }
}

TEST_CASE("scores have the same bits in any batch and chunking, and perplexity counts every token once") {
  const World world;
  Random random(21);
  std::vector<Ids> sequences;
  for (const std::size_t length : {0u, 1u, 2u, 30u, 64u, 17u}) {
    Ids ids(length);
    for (auto& id : ids) id = static_cast<std::int32_t>(random.range(0, 119));
    sequences.push_back(ids);
  }
  ExecContext context({.threads = 2});
  const Model model = Model::load(world.folder.path(), context).value();
  const auto base = score(model, context, sequences, {.max_batch = 1, .prefill_chunk = 0});
  for (const std::int64_t batch : {1, 3, 8}) {
    for (const std::int64_t chunk : {1, 5, 64}) {
      const auto again = score(model, context, sequences, {.max_batch = batch, .prefill_chunk = chunk});
      for (std::size_t i = 0; i < base.size(); ++i) {
        REQUIRE(again[i].size() == sequences[i].size());
        for (std::size_t t = 1; t < base[i].size(); ++t) REQUIRE(again[i][t] == base[i][t]);
        if (!again[i].empty()) REQUIRE(std::isnan(again[i][0]));
      }
    }
  }
  // Within any limit that the longest fits, alone if need be.
  const Forward forward(model, context);
  const std::size_t page = KvPool(forward.kv_shape(forward.default_kv_dtype())).bytes_for(1);
  std::vector<Ids> many(6, sequences[4]);
  for (std::size_t pages = 1; pages <= 7; ++pages) {
    const auto again = score(model, context, many, {.prefill_chunk = 20, .kv_max_bytes = pages * page + 1});
    for (const auto& row : again) {
      for (std::size_t t = 1; t < 64; ++t) REQUIRE(row[t] == base[4][t]);
    }
  }
  const ScoreOptions tight{.kv_max_bytes = page - 1};
  CHECK_THROWS_AS((void)score(model, context, many, tight), Error);
  CHECK_THROWS_AS(check_scorable(model, context, many, tight), Error);
  check_scorable(model, context, std::vector<Ids>{{1}}, tight);  // runs nothing, so that it needs nothing
  Ids text(300);
  for (auto& id : text) id = static_cast<std::int32_t>(random.range(0, 119));
  for (const auto& [window, stride] :
       {std::pair<std::int64_t, std::int64_t>{64, 64}, {64, 32}, {64, 1}, {10, 3}, {2, 1}}) {
    CAPTURE(window);
    CAPTURE(stride);
    const Perplexity p = perplexity(model, context, text, window, stride);
    CHECK(p.tokens == 299);
    CHECK(p.value == doctest::Approx(std::exp(p.nll)));
    // By the book: a token's window is the first to hold it behind another.
    double nll = 0.0;
    const std::int64_t step = std::min(stride, window - 1);
    for (std::int64_t t = 1; t < 300; ++t) {
      std::int64_t begin = 0;
      while (begin + window <= t) begin += step;
      const Ids upto(text.begin() + begin, text.begin() + t + 1);
      nll -= score(model, context, std::vector<Ids>{upto})[0].back();
    }
    CHECK(p.nll == doctest::Approx(nll / 299));
  }
  // Rows of logits are made for what counts, and for nothing else: one for each token but the first.
  const auto rows_of = [&](const auto& run) {
    Profiler profiler;
    ExecContext watched({.threads = 2, .profiler = &profiler});
    run(watched);
    for (const Profiler::Row& row : profiler.rows()) {
      if (row.name == "linear 32x120") return row.flops / (2 * 32 * 120);
    }
    return 0.0;
  };
  CHECK(rows_of([&](ExecContext& watched) { (void)perplexity(model, watched, text, 64, 1); }) == 299);
  CHECK(rows_of([&](ExecContext& watched) { (void)perplexity(model, watched, text, 64, 64); }) == 299);
  // A continuation has the scores that it has in the whole.
  for (const std::int64_t chunk : {0, 1, 7}) {
    for (const std::int64_t first : {1, 2, 7, 8, 29, 30, 31}) {
      const std::vector<ScoredSequence> one{{sequences[3], first}};
      const auto scores = score(model, context, one, {.prefill_chunk = chunk})[0];
      const auto from = static_cast<std::size_t>(std::min<std::int64_t>(first, 30));
      REQUIRE(scores ==
              std::vector<float>(base[3].begin() + static_cast<std::ptrdiff_t>(from), base[3].end()));
    }
  }
  CHECK(rows_of([&](ExecContext& watched) {
          (void)score(model, watched, std::vector<ScoredSequence>{{sequences[3], 28}});
        }) == 2);
  CHECK_THROWS_WITH_AS((void)score(model, context, std::vector<ScoredSequence>{{sequences[3], 0}}),
                       "score: sequence 0: expected a first token from 1 on, got 0", Error);
  // A text that fits one window: the mean of its scores.
  const Perplexity one = perplexity(model, context, sequences[3], 64, 64);
  double nll = 0.0;
  for (std::size_t t = 1; t < 30; ++t) nll -= base[3][t];
  CHECK(one.nll == doctest::Approx(nll / 29));
  CHECK_THROWS_AS((void)perplexity(model, context, text, 65, 1), Error);
  CHECK_THROWS_AS((void)perplexity(model, context, text, 10, 11), Error);
  CHECK_THROWS_AS((void)score(model, context, std::vector<Ids>{Ids(65, 1)}), Error);
  CHECK_THROWS_AS((void)score(model, context, std::vector<Ids>{Ids{120}}), Error);
  CHECK_THROWS_WITH_AS((void)score(model, context, sequences, {.max_batch = 0}),
                       "score: expected max_batch ≥ 1 and prefill_chunk ≥ 0, got 0 and 512", Error);
  CHECK_THROWS_AS((void)score(model, context, sequences, {.prefill_chunk = -1}), Error);
}
