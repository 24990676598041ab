// Ids drawn on the device, a step ahead of the host, against ids drawn on the host. On the CPU the same
// machinery runs with the CPU's op.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>

#include "model/generator.h"
#include "tests/gpu.h"
#include "tests/model/small_world.h"

using namespace inkling;
using test::Ids;
using test::Random;
using test::World;

namespace {

/// All that a hook is told, by request and sample.
using Told = std::tuple<std::int64_t, std::int32_t, Finish, std::int64_t>;
using Story = std::map<std::pair<std::uint64_t, std::uint32_t>, std::vector<Told>>;

struct Setting {
  Device device = Device::cpu;
  GeneratorOptions options;
  bool host_only_one = false;  // a request among the others that only the host can draw
  bool several_ends = false;   // tokens that end a text; where they are forbidden, only the host can draw
};

/// Requests of every kind, some of which end early, cancel each other, submit or throw.
Story story_of(const World& world, const Setting& setting, DrawPlace place, int& thrown) {
  ExecContext context({.device = setting.device, .threads = 2});
  const Model model = Model::load(world.folder.path(), context).value();
  GeneratorOptions options = setting.options;
  options.draws = place;
  Generator generator(model, context, options);
  Story story;
  Random random(6);
  std::vector<std::uint64_t> ids;
  const auto submit = [&](std::size_t i, auto&& act) {
    Ids prompt(1 + 5 * (i % 11));
    for (auto& id : prompt) id = static_cast<std::int32_t>(random.range(0, 119));
    GenerationRequest r;
    r.prompt = std::move(prompt);
    r.seed = 40 + i;
    r.config.max_tokens = 1 + static_cast<std::int64_t>(i * 7 % 40);
    r.config.temperature = i % 4 == 3 ? 0.0 : 0.5 + 0.3 * static_cast<double>(i % 5);
    r.config.top_k = i % 3 == 0 ? 0 : static_cast<std::int64_t>(3 * i);
    r.config.top_p = i % 2 == 0 ? 1.0 : 0.9;
    r.config.min_p = i % 5 == 0 ? 0.02 : 0.0;
    r.config.ignore_eos = i % 2 == 1;
    if (i % 6 == 2) {  // any token, the end among them
      r.config.temperature = 100.0;
      r.config.top_k = 0, r.config.top_p = 1.0, r.config.min_p = 0.0;
    }
    r.samples = i == 4 ? 3 : 1;
    r.overflow = i % 3 == 2 ? Overflow::slide : Overflow::truncate_left;
    if (i == 5 && setting.host_only_one) r.config.repetition_penalty = 1.3;
    if (i % 3 == 2) r.config.max_tokens += 50;  // beyond the context
    r.on_token = [&story, act](const TokenEvent& event) {
      story[{event.request, event.sample}].emplace_back(event.index, event.id, event.finish, event.dropped);
      return act(event);
    };
    ids.push_back(generator.submit(std::move(r)));
  };
  const auto go_on = [](const TokenEvent&) { return Continue::yes; };
  for (std::size_t i = 0; i < 30; ++i) {
    submit(i, [&, i](const TokenEvent& event) {
      if (i == 6 && event.index == 4) return Continue::stop;
      if (i == 7 && event.index == 3) generator.cancel(ids[7]);  // itself
      if (i == 8 && event.index == 2) {
        submit(9, go_on);
        throw std::runtime_error("the reader has gone");
      }
      return Continue::yes;
    });
  }
  for (bool more = true; more;) {
    try {
      more = generator.step();
    } catch (const std::runtime_error&) {
      ++thrown;
    }
  }
  CHECK(generator.pending() == 0);
  CHECK(generator.kv_pool().used_pages() == 0);
  return story;
}

void check_same(const Setting& setting) {
  const World world;
  if (setting.several_ends) world.publish("{\"eos_token_id\": [7, 30, 99]}");
  int thrown_on_host = 0, thrown = 0;
  const Story host = story_of(world, setting, DrawPlace::host, thrown_on_host);
  const Story device = story_of(world, setting, DrawPlace::device, thrown);
  REQUIRE(host.size() == device.size());
  for (const auto& [key, told] : host) {
    CAPTURE(key.first);
    CAPTURE(key.second);
    CHECK(device.at(key) == told);
  }
  CHECK(thrown_on_host == 1);
  CHECK(thrown == 1);
  std::size_t ended = 0;
  for (const auto& [key, told] : host) ended += std::get<2>(told.back()) == Finish::eos ? 1 : 0;
  CHECK(ended > 0);
}

/// Eight samples of one token, of which the third is stopped early, and then another request in its place:
/// the step's rows become fewer and then others, while each step still begins with ids that the host has not
/// seen.
Story samples_of(const World& world, Device device, DrawPlace place) {
  ExecContext context({.device = device, .threads = 1});
  const Model model = Model::load(world.folder.path(), context).value();
  Generator generator(model, context, {.max_batch = 8, .draws = place});
  Story story;
  const auto submit = [&](Ids prompt, std::int32_t samples, std::uint64_t seed) {
    GenerationRequest r;
    r.prompt = std::move(prompt);
    r.samples = samples;
    r.seed = seed;
    r.config.max_tokens = 20;
    r.config.temperature = 1.0;
    r.config.ignore_eos = true;
    r.on_token = [&story](const TokenEvent& event) {
      story[{event.request, event.sample}].emplace_back(event.index, event.id, event.finish, event.dropped);
      return event.request == 1 && event.sample == 2 && event.index == 5 ? Continue::stop : Continue::yes;
    };
    generator.submit(std::move(r));
  };
  submit({11}, 8, 3);
  for (int step = 0; step < 9; ++step) REQUIRE(generator.step());
  submit({17, 4}, 1, 4);
  while (generator.step()) {
  }
  return story;
}

void check_samples(Device device, DrawPlace place) {
  const World world;
  const Story host = samples_of(world, device, DrawPlace::host), other = samples_of(world, device, place);
  REQUIRE(host.size() == 9);
  for (const auto& [key, told] : host)
    CHECK(told.size() == (key == std::pair{std::uint64_t{1}, 2u} ? 6 : 20));
  CHECK(other == host);
}

void check_all(Device device) {
  for (const std::int64_t batch : {3, 20}) {
    for (const std::int64_t chunk : {0, 4}) {
      CAPTURE(batch);
      CAPTURE(chunk);
      check_same({device, {.max_batch = batch, .prefill_chunk = chunk}});
      check_same({device, {.max_batch = batch, .prefill_chunk = chunk}, true});
      check_same({device, {.max_batch = batch, .prefill_chunk = chunk}, false, true});
    }
  }
}

}  // namespace

TEST_CASE("device draws: every request is told the same, with all that can happen to it") {
  check_all(Device::cpu);
}

TEST_CASE("device draws: samples of one token, one of which ends early, and a request in its place") {
  check_samples(Device::cpu, DrawPlace::device);
}

TEST_CASE("device draws: the same where sequences give their cache back to each other") {
  const World world;
  ExecContext context({.threads = 1});
  const Model model = Model::load(world.folder.path(), context).value();
  const Forward forward(model, context);
  const std::size_t page = KvPool(forward.kv_shape(DType::f32)).bytes_for(1);
  for (const std::size_t pages : {2u, 4u}) {
    CAPTURE(pages);
    check_same({Device::cpu, {.max_batch = 20, .kv_max_bytes = pages * page}});
  }
}

TEST_CASE("device draws: out of memory is told when it would be on the host") {
  const World world;
  ExecContext context({.threads = 1});
  const Model model = Model::load(world.folder.path(), context).value();
  std::vector<std::size_t> told;
  for (const DrawPlace place : {DrawPlace::host, DrawPlace::device}) {
    // One page, shared by two samples: the first to write takes another, and there is none.
    const Forward forward(model, context);
    const std::size_t page = KvPool(forward.kv_shape(DType::f32)).bytes_for(1);
    Generator generator(model, context, {.max_batch = 4, .kv_max_bytes = page, .draws = place});
    test::Answer answer;
    GenerationRequest r = test::request({1, 2, 3}, 20, 8, answer);
    r.samples = 2;
    const auto id = generator.submit(std::move(r));
    bool refused = false;
    try {
      while (generator.step()) {
      }
    } catch (const Error& error) {
      refused = error.code() == Code::out_of_memory;
      generator.cancel(id);
    }
    told.push_back(answer.ids.size() + (refused ? 1000 : 0));
    CHECK_FALSE(generator.step());
  }
  CHECK(told[0] == told[1]);
}

TEST_CASE("device draws: a request that only the host can draw for is told why") {
  const World world;
  std::string told;
  const Log log = Log::to_sink(LogLevel::debug, [&](LogLevel, std::string_view line) { told += line; });
  ExecContext context({.threads = 1, .log = log});
  const Model model = Model::load(world.folder.path(), context).value();
  Generator generator(model, context, {.draws = DrawPlace::device});
  test::Answer answer;
  GenerationRequest r = test::request({1, 2, 3}, 2, 8, answer);
  r.config.logprobs = 1;
  generator.submit(std::move(r));
  CHECK(told.find("request 1: drawn on the host, since log-probabilities are asked for") !=
        std::string::npos);
}

TEST_CASE("[cuda] device draws: every request is told the same, with all that can happen to it") {
  if (!test::have_gpu()) return;
  check_all(Device::cuda);
}

TEST_CASE("[cuda] device draws: samples of one token, one of which ends early, and a request in its place") {
  if (!test::have_gpu()) return;
  check_samples(Device::cuda, DrawPlace::automatic);
}

TEST_CASE("a greedy draw has no top-k for the op, however large the one that was asked for") {
  GenerationConfig config;
  config.temperature = 0.0;
  config.top_k = kMostTop + 1;
  REQUIRE(Sampler::op_refusal(50257, config, {}).empty());
  CHECK(Sampler::settings(50257, config, {}, {}).top_k == 0);
  config.temperature = 1.0;
  CHECK(!Sampler::op_refusal(50257, config, {}).empty());
}

TEST_CASE("a batch whose drawn ids are not there, or not for its tokens, is refused") {
  const World world;
  ExecContext context;
  const Model model = Model::load(world.folder.path(), context).value();
  Forward forward(model, context);
  KvPool pool(forward.kv_shape(DType::f32), 0, &context.backend());
  KvSequence sequence(pool);
  const std::int32_t id = 3;
  for (const PackedBatch::Drawn& drawn :
       {PackedBatch::Drawn{0, 1, nullptr}, {0, 2, &id}, {-1, 1, &id}, {0, 0, &id}}) {
    PackedBatch batch;
    batch.add(sequence, std::span(&id, 1), 1);
    batch.drawn.push_back(drawn);
    CHECK_THROWS_AS(forward.run(batch), Error);
  }
  CHECK(sequence.length() == 0);
}
