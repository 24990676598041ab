// What generation takes: allocations, synchronisation points and pages of the cache.
#include <doctest/doctest.h>

#include <algorithm>

#include "model/forward.h"
#include "model/generator.h"
#include "tests/count_allocations.h"
#include "tests/model/small_world.h"

using namespace inkling;
using test::Answer;
using test::Ids;
using test::request;
using test::World;

TEST_CASE("a decode step allocates nothing, whatever is drawn") {
  const World world;
  ExecContext context({.threads = 2});
  const Model model = Model::load(world.folder.path(), context).value();
  Generator generator(model, context, {.max_batch = 4});
  std::vector<Answer> answers(4);
  for (std::size_t i = 0; i < answers.size(); ++i) {
    answers[i].ids.reserve(100);
    GenerationRequest r = request({1, 2, 3}, 50, i, answers[i]);
    if (i == 1) r.config.top_k = 0, r.config.top_p = 0.9, r.config.logprobs = 5;
    if (i == 2) r.config.typical_p = 0.7, r.config.repetition_penalty = 1.2, r.config.repeat_last_n = -1;
    if (i == 3)
      r.config.temperature = 0.0, r.config.no_repeat_ngram_size = 3, r.config.logit_bias = {{5, 1.0}};
    generator.submit(std::move(r));
  }
  for (int i = 0; i < 5; ++i) generator.step();
  for (int i = 0; i < 30; ++i) {
    const std::int64_t before = test::allocations;
    generator.step();
    REQUIRE(test::allocations - before == 0);
  }
}

TEST_CASE("a request is queued whole or not at all, and its samples take no memory before their turn") {
  const World world;
  ExecContext context({.threads = 2});
  const Model model = Model::load(world.folder.path(), context).value();
  Answer ignored;
  const auto many = [&](std::uint32_t samples) {
    GenerationRequest r = request(Ids(40, 3), 20, 1, ignored);
    r.samples = samples;
    return r;
  };
  const auto allocations_of = [&](std::uint32_t samples) {
    Generator generator(model, context, {.max_batch = 2});
    GenerationRequest r = many(samples);
    const std::int64_t before = test::allocations;
    generator.submit(std::move(r));
    return test::allocations - before;
  };
  CHECK(allocations_of(1'000'000'000) == allocations_of(1));
  std::int64_t failures = 0;
  for (bool queued = false; !queued; ++failures) {
    Generator generator(model, context, {.max_batch = 2});
    GenerationRequest r = many(5);
    {
      const test::FailingAllocation failing(failures);
      try {
        generator.submit(std::move(r));
        queued = true;
      } catch (const std::bad_alloc&) {
      }
    }
    REQUIRE(generator.pending() == (queued ? 1 : 0));
  }
  CHECK(failures > 1);
  // A request counts once while some of its samples are under way and others wait.
  Generator generator(model, context, {.max_batch = 2});
  generator.submit(many(5));
  generator.submit(many(1));
  CHECK(generator.pending() == 2);
  generator.step();
  CHECK(generator.pending() == 2);
  while (generator.step()) {
  }
  CHECK(generator.pending() == 0);
}

TEST_CASE("a step that finds no memory, at any allocation, ends or delays sequences and nothing else") {
  const World world;
  ExecContext context({.threads = 2});
  const Model model = Model::load(world.folder.path(), context).value();
  const auto run = [&](std::int64_t failing_at, bool& failed) {
    Generator generator(model, context, {.max_batch = 4});
    std::vector<Ids> ids(4);
    for (auto& list : ids) list.reserve(32);
    Answer ignored;
    GenerationRequest r = request({4, 5, 6}, 8, 1, ignored);
    r.samples = 3;
    r.on_token = [&](const TokenEvent& event) {
      ids[event.sample].push_back(event.id);
      return Continue::yes;
    };
    generator.submit(std::move(r));
    r = request({7}, 8, 2, ignored);
    r.on_token = [&](const TokenEvent& event) {
      ids[3].push_back(event.id);
      return Continue::yes;
    };
    generator.submit(std::move(r));
    {
      const test::FailingAllocation failing(failing_at);
      try {
        generator.step();
      } catch (const std::exception&) {
      }
      failed = failing.failed();
    }
    while (generator.step()) {
    }
    CHECK(generator.pending() == 0);
    CHECK(generator.kv_pool().used_pages() == 0);
    return ids;
  };
  bool failed = false;
  const auto whole = run(1'000'000, failed);
  REQUIRE_FALSE(failed);
  std::int64_t failures = 0;
  for (failed = true; failed; ++failures) {
    CAPTURE(failures);
    const auto got = run(failures, failed);
    for (std::size_t i = 0; i < got.size(); ++i) {
      CHECK(whole[i].size() == 8);
      REQUIRE((got[i] == whole[i] || got[i].empty()));
    }
  }
  CHECK(failures > 20);
}

TEST_CASE("a decode step takes five jobs per layer") {
  const World world;
  ExecContext context({.threads = 2});
  const Model model = Model::load(world.folder.path(), context).value();
  Generator generator(model, context, {.max_batch = 4});
  std::vector<Answer> answers(2);
  for (std::size_t i = 0; i < answers.size(); ++i) {
    generator.submit(request({1, 2, 3}, 50, i, answers[i]));
  }
  for (int i = 0; i < 5; ++i) generator.step();
  for (int i = 0; i < 30; ++i) {
    const std::uint64_t jobs = context.pool().jobs();
    generator.step();
    // Embedding, five per layer, logits, and the draws of two sequences side by side.
    REQUIRE(context.pool().jobs() - jobs == 1 + 5 * 3 + 1 + 1);
  }
}

TEST_CASE("a short cache makes sequences wait and start anew, with the same tokens") {
  const World world;
  ExecContext context({.threads = 2});
  const Model model = Model::load(world.folder.path(), context).value();
  const Forward forward(model, context);
  const std::size_t page = KvPool(forward.kv_shape(DType::f32)).bytes_for(1);
  const auto run = [&](std::size_t pages, std::size_t& most) {
    Generator generator(model, context, {.max_batch = 6, .prefill_chunk = 16, .kv_max_bytes = pages * page});
    std::vector<Answer> answers(6);
    for (std::size_t i = 0; i < answers.size(); ++i) {
      GenerationRequest r = request(Ids(20 + 5 * i, static_cast<std::int32_t>(i)), 90, i, answers[i]);
      r.overflow = Overflow::slide;
      generator.submit(std::move(r));
    }
    most = 0;
    while (generator.step()) most = std::max(most, generator.kv_pool().used_pages());
    CHECK(generator.kv_pool().used_pages() == 0);
    return answers;
  };
  std::size_t most = 0;
  const auto plenty = run(0, most);
  CHECK(most == 6);
  for (const std::size_t pages : {1u, 2u, 4u}) {
    CAPTURE(pages);
    const auto got = run(pages, most);
    CHECK(most == pages);
    for (std::size_t i = 0; i < got.size(); ++i) {
      REQUIRE(got[i].ids.size() == 90);
      CHECK(got[i].ids == plenty[i].ids);
      CHECK(got[i].dropped == plenty[i].dropped);
    }
  }
  // Samples of one prompt, which then no longer share it.
  const auto samples = [&](std::size_t pages) {
    Generator generator(model, context, {.max_batch = 4, .kv_max_bytes = pages * page});
    Answer ignored;
    std::vector<Ids> all(4);
    GenerationRequest r = request(Ids(30, 2), 30, 1, ignored);
    r.samples = 4;
    r.on_token = [&](const TokenEvent& event) {
      all[event.sample].push_back(event.id);
      return Continue::yes;
    };
    generator.submit(std::move(r));
    while (generator.step()) {
    }
    return all;
  };
  CHECK(samples(0) == samples(2));
  Answer answer;
  Generator tiny(model, context, {.kv_max_bytes = page / 2});
  try {
    tiny.submit(request({1}, 1, 1, answer));
    FAIL("a page was had of half a page");
  } catch (const Error& error) {
    CHECK(error.code() == Code::out_of_memory);
  }
}
