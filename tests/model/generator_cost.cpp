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
