// Faults around the files: full disks, folders that cannot be written, and memory that runs out at every
// point.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>

#include "tests/weights/allocation_meter.h"
#include "tests/weights/fixtures.h"
#include "weights/atomic_file.h"
#include "weights/sha256.h"

namespace inkling::test {
namespace {

namespace fs = std::filesystem;

// Files end at `bytes`, as they do on a full disk, within the scope.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) : signal_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, signal_);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  void (*signal_)(int);
  rlimit before_{};
};

TEST_CASE("a full disk leaves the old file and no other") {
  TempDir dir;
  const TinyModel model;
  const auto path = dir / "m.safetensors";
  put(path, "old");
  const auto size = [&] {
    TempDir other;
    model.save(other / "m");
    return std::filesystem::file_size(other / "m");
  }();
  for (const std::uintmax_t room : {std::uintmax_t{0}, std::uintmax_t{100}, size / 2, size - 1}) {
    const auto wrote = [&] {
      FullDisk full(room);
      return write_safetensors(path, model.tensors);
    }();
    REQUIRE(!wrote);
    CHECK(wrote.error().code() == Code::output);
    CHECK(wrote.error().message().starts_with(path.string() + ": cannot write: "));
    CHECK(content_of(path) == "old");
    CHECK(dir.files() == 1);
  }
  CHECK(write_safetensors(path, model.tensors));
  CHECK(SafetensorsFile::open(path));
}

TEST_CASE("a device is written in place and stays a device") {
  struct stat status {};
  if (::stat("/dev/full", &status) != 0 || !S_ISCHR(status.st_mode)) {
    MESSAGE("SKIPPED: no /dev/full");
    return;
  }
  const auto wrote = write_safetensors("/dev/full", TinyModel().tensors);
  REQUIRE(!wrote);
  CHECK(wrote.error().code() == Code::output);
  CHECK(wrote.error().message().find("No space left") != std::string::npos);
  CHECK(::stat("/dev/full", &status) == 0);
  CHECK(S_ISCHR(status.st_mode));
  CHECK(write_file("/dev/null", "text"));
}

TEST_CASE("a target that cannot be made is Error{output}") {
  TempDir dir;
  for (const auto& path : {dir / "absent/m", std::filesystem::path("/proc/self/m"), dir.path()}) {
    const auto wrote = write_file(path, "text");
    REQUIRE(!wrote);
    CHECK(wrote.error().code() == Code::output);
    CHECK(wrote.error().message().starts_with(path.string() + ": cannot "));
  }
}

TEST_CASE("a folder that may not be written is Error{output}") {
  if (::geteuid() == 0) {
    MESSAGE("SKIPPED: root may write in a read-only folder");
    return;
  }
  TempDir dir;
  std::filesystem::permissions(dir.path(),
                               std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  CHECK(write_file(dir / "m", "text").error().code() == Code::output);
  std::filesystem::permissions(dir.path(), std::filesystem::perms::owner_all);
}

TEST_CASE("a link's target is replaced, not the link, and an abandoned file vanishes") {
  TempDir dir;
  put(dir / "real", "old");
  std::filesystem::create_symlink("real", dir / "link");
  REQUIRE(write_file(dir / "link", "new"));
  CHECK(std::filesystem::is_symlink(dir / "link"));
  CHECK(content_of(dir / "real") == "new");
  {
    auto file = AtomicFile::create(dir / "real");
    REQUIRE(file);
    REQUIRE(file->write("half"));
    CHECK(dir.files() == 3);
  }
  CHECK(dir.files() == 2);
  CHECK(content_of(dir / "real") == "new");
}

TEST_CASE("what killed writers have left in a folder is removed, and nothing else") {
  const TempDir dir;
  {
    auto file = AtomicFile::create(dir / "a.b").value();
    REQUIRE(file.write("half"));
    fs::path half;
    for (const auto& entry : fs::directory_iterator(dir.path())) half = entry.path();
    fs::copy_file(half, dir / ".a.b.4711.0.tmp");  // as of a process that is no more
  }
  const std::vector<std::string> others = {".tmp",      "..1.2.tmp",   ".1.2.tmp",  ".a.1.tmp", ".a..2.tmp",
                                           ".a.1..tmp", ".a.1.2x.tmp", "a.1.2.tmp", ".a.1.2"};
  for (const std::string& name : others) put(dir / name, "whole");
  CHECK(dir.files() == others.size() + 1);
  remove_all_leftovers(dir.path());
  CHECK(dir.files() == others.size());
  CHECK_FALSE(fs::exists(dir / ".a.b.4711.0.tmp"));
  remove_all_leftovers(dir / "none");
}

TEST_CASE("what killed writers have left of one file is removed once it is old") {
  const TempDir dir;
  const auto hours = [&](const char* name, int age) {
    put(dir / name, "half");
    fs::last_write_time(dir / name, fs::file_time_type::clock::now() - std::chrono::hours(age));
  };
  hours(".a.1.0.tmp", 2);
  hours(".a.2.0.tmp", 0);    // somebody may be writing it
  hours(".a.b.1.0.tmp", 2);  // of another file, a.b
  hours(".a.note.tmp", 2);
  hours("a", 2);
  remove_leftovers(dir / "a");
  CHECK_FALSE(fs::exists(dir / ".a.1.0.tmp"));
  CHECK(dir.files() == 4);
}

TEST_CASE("memory running out at any allocation is a clean error, and the next try succeeds") {
  TempDir dir;
  Style style;
  style.head = Style::Lm::own;
  const TinyModel model(style);
  model.save(dir / "model.safetensors");
  put(dir / "config.json", to_config_json(tiny_config()));
  put(dir / "generation_config.json", "{\"eos_token_id\": [1, 2]}");
  const std::string manifest = (dir / "SUMS").string();
  put(manifest, *sha256_file(dir / "model.safetensors") + "  model.safetensors\n");
  const std::filesystem::path target = dir / "copy.safetensors";

  CHECK(fail_each_allocation([&] { return Gpt2Source::open(dir.path()); }) > 100);
  CHECK(fail_each_allocation([&] { return write_safetensors(target, model.tensors); }) > 100);
  CHECK(fail_each_allocation([&] { return verify(dir.path(), manifest); }) > 5);
  CHECK(SafetensorsFile::open(target));
  CHECK(dir.files() == 5);
}

}  // namespace
}  // namespace inkling::test
