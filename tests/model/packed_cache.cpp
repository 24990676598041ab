// The packed-weights cache: a hit is the same model, and whatever does not fit is a miss.
#include "model/packed_cache.h"

#include <doctest/doctest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <thread>

#include "tests/model/run_model.h"
#include "tests/model/small_world.h"

namespace inkling {
namespace {

namespace fs = std::filesystem;
using test::Ids;
using test::World;

struct Cached {
  World world;
  ExecContext context{{.threads = 2}};
  fs::path folder = world.folder.path() / "cache";

  Model load(WeightType dtype = WeightType::automatic, Quantisation quant = Quantisation::none) {
    LoadOptions options;
    options.dtype = dtype;
    options.quant = quant;
    options.packed_cache = folder;
    return Model::load(world.folder.path(), context, options).value();
  }
  void fill() { load().write_packed_cache().value(); }
  bool hits() { return load().from_packed_cache(); }
  fs::path file() {
    REQUIRE(std::distance(fs::directory_iterator(folder), fs::directory_iterator()) == 1);
    return fs::directory_iterator(folder)->path();
  }
  std::vector<float> logits(const Model& model) {
    Forward forward(model, context);
    KvPool pool(forward.kv_shape(DType::f32));
    Ids ids(20);
    std::iota(ids.begin(), ids.end(), 3);
    return test::logits_of(forward, pool, ids, {20});
  }
};

std::string bytes_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("mapped weights give the logits of packed ones, bit for bit, in every format") {
  Cached c;
  for (const test::Format& format : test::kFormats) {
    const Model packed = c.load(format.dtype, format.quant);
    CHECK(!packed.from_packed_cache());
    packed.write_packed_cache().value();
    const Model mapped = c.load(format.dtype, format.quant);
    CHECK(mapped.from_packed_cache());
    CHECK(mapped.nbytes() == packed.nbytes());
    CHECK(c.logits(mapped) == c.logits(packed));
  }
  // One file for each format that there is; automatic is f32 here.
  CHECK(std::distance(fs::directory_iterator(c.folder), fs::directory_iterator()) >= 5);
}

TEST_CASE("another instruction set, format or config has weights of its own") {
  Cached c;
  c.fill();
  CHECK(c.hits());
  CHECK(!c.load(WeightType::bf16).from_packed_cache());
  for (const Isa isa : supported_isas()) {
    if (isa == c.context.isa()) continue;
    ExecContext other({.threads = 1, .isa = isa});
    LoadOptions options;
    options.packed_cache = c.folder;
    CHECK(!Model::load(c.world.folder.path(), other, options).value().from_packed_cache());
  }
  ModelConfig changed = c.world.config;
  changed.layer_norm_epsilon = 1e-3f;
  std::ofstream(c.world.folder.path() / "config.json") << to_config_json(changed);
  CHECK(!c.hits());
}

TEST_CASE("weights that have changed are packed anew, and take the place of the old") {
  Cached c;
  c.fill();
  const std::vector<float> before = c.logits(c.load());
  test::RandomGpt2(c.world.config, 6).save(c.world.folder.path());
  const Model model = c.load();
  CHECK(!model.from_packed_cache());
  CHECK(c.logits(model) != before);
  model.write_packed_cache().value();
  CHECK(c.hits());
  c.file();  // the only one
  // The same bytes at another time are another file: a clock is all that tells.
  fs::last_write_time(c.world.folder.path() / "model.safetensors",
                      fs::file_time_type::clock::now() - std::chrono::hours(1));
  CHECK(!c.hits());
}

TEST_CASE("the key is of the files that were opened, whatever has been renamed over them since") {
  Cached c;
  const fs::path model = c.world.folder.path(), weights = model / "model.safetensors", next = model / "next";
  const auto key_of = [&](const Gpt2Source& source) {
    return PackedCacheKey::of(source.files(), source.config(), WeightFormat::f32, c.context.isa());
  };
  fs::create_directory(next);
  test::RandomGpt2(c.world.config, 6).save(next);
  const Gpt2Source old = Gpt2Source::open(model).value();
  const PackedCacheKey before = key_of(old);
  fs::rename(next / "model.safetensors", weights);
  CHECK(key_of(old).text == before.text);
  const PackedCacheKey after = key_of(Gpt2Source::open(model).value());
  CHECK(after.text != before.text);
  CHECK(after.name == before.name);
  CHECK(after.text.find(fs::canonical(weights).string()) != std::string::npos);
}

TEST_CASE("a file that is cut, longer or has another header is no hit") {
  Cached c;
  c.fill();
  const fs::path path = c.file();
  const std::string whole = bytes_of(path);
  const auto hit = [&](const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
    return c.hits();
  };
  for (const std::size_t size : {std::size_t{0}, std::size_t{100}, std::size_t{4096}, whole.size() - 1}) {
    CHECK(!hit(whole.substr(0, size)));
  }
  CHECK(!hit(whole + 'x'));
  const std::size_t header = whole.find('\0');
  REQUIRE(header < 4096);
  for (std::size_t i = 0; i <= header; i += 7) {
    std::string bytes = whole;
    bytes[i] = static_cast<char>(bytes[i] ^ 1);
    CHECK(!hit(bytes));
  }
  CHECK(hit(whole));
  c.fill();
  CHECK(bytes_of(path) == whole);
}

TEST_CASE("a folder that cannot be written is an error of writing alone") {
  Cached c;
  std::ofstream(c.folder) << "a file";
  const Model model = c.load();
  CHECK(!model.from_packed_cache());
  const Result<void> wrote = model.write_packed_cache();
  REQUIRE(!wrote);
  CHECK(wrote.error().code() == Code::output);
  const Error none = Model::load(c.world.folder.path(), c.context).value().write_packed_cache().error();
  CHECK(none.code() == Code::usage);
  CHECK(std::string(none.what()).find("got one without") != std::string::npos);
}

TEST_CASE("writers at once leave one whole file, and what a killed one left goes") {
  Cached c;
  c.fill();
  const fs::path path = c.file();
  const std::string whole = bytes_of(path);
  const fs::path leftover = c.folder / ('.' + path.filename().string() + ".1.0.tmp");
  std::ofstream(leftover) << "half";
  fs::last_write_time(leftover, fs::file_time_type::clock::now() - std::chrono::hours(2));
  const Model model = c.load();
  std::vector<std::thread> writers;
  for (int i = 0; i < 4; ++i) writers.emplace_back([&] { model.write_packed_cache().value(); });
  for (std::thread& writer : writers) writer.join();
  CHECK(c.file() == path);
  CHECK(bytes_of(path) == whole);
}

}  // namespace inkling
