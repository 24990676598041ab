// Available memory, by what /proc and /sys say in a folder of the test's own.
#include "apps/available_memory.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <fstream>
#include <string>

namespace inkling::app {
namespace {

namespace fs = std::filesystem;

struct Root {
  fs::path path = fs::temp_directory_path() / ("inkling-apps-" + std::to_string(::getpid()));
  Root() { fs::remove_all(path); }
  ~Root() { fs::remove_all(path); }
  Root(const Root&) = delete;
  Root& operator=(const Root&) = delete;
  void put(const std::string& name, const std::string& content) const {
    fs::create_directories((path / name).parent_path());
    std::ofstream(path / name) << content;
  }
  std::optional<std::uint64_t> available() const { return available_memory(path); }
};

}  // namespace

TEST_CASE("available memory is what Linux calls so, where no control group has a limit") {
  const Root root;
  CHECK_FALSE(root.available());
  root.put("proc/meminfo",
           "MemTotal:       24661324 kB\nMemFree:  1 kB\nMemAvailable:   1000 kB\nSwapFree: 9 kB\n");
  CHECK(root.available() == 1000 * 1024);
  root.put("proc/self/cgroup", "0::/\n");
  root.put("sys/fs/cgroup/memory.current", "5000\n");
  root.put("sys/fs/cgroup/memory.max", "max\n");
  CHECK(root.available() == 1000 * 1024);
}

TEST_CASE("available memory is what a control group leaves, or one above it, files not counted") {
  const Root root;
  root.put("proc/meminfo", "MemAvailable:   1000 kB\n");
  SUBCASE("version 2") {
    root.put("proc/self/cgroup", "0::/a/b\n");
    root.put("sys/fs/cgroup/a/b/memory.max", "max\n");
    root.put("sys/fs/cgroup/a/b/memory.current", "700000\n");
    root.put("sys/fs/cgroup/a/memory.max", "900000\n");
    root.put("sys/fs/cgroup/a/memory.current", "700000\n");
    CHECK(root.available() == 200000);
    root.put("sys/fs/cgroup/a/memory.stat", "anon 500000\nactive_file 30000\ninactive_file 20000\n");
    CHECK(root.available() == 250000);
    root.put("sys/fs/cgroup/a/b/memory.max", "650000\n");  // used up
    CHECK(root.available() == 0);
  }
  SUBCASE("version 1") {
    root.put("proc/self/cgroup", "9:cpu:/c\n4:memory:/a\n0::/\n");
    root.put("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "600000\n");
    root.put("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "500000\n");
    root.put("sys/fs/cgroup/memory/a/memory.stat",
             "cache 1\ntotal_inactive_file 100\ntotal_active_file 20\n");
    root.put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    root.put("sys/fs/cgroup/memory/memory.usage_in_bytes", "500000\n");
    CHECK(root.available() == 100120);
  }
  SUBCASE("a group that this process cannot see, as in a container") {
    root.put("proc/self/cgroup", "0::/../elsewhere\n");
    root.put("sys/fs/cgroup/memory.max", "3000\n");
    root.put("sys/fs/cgroup/memory.current", "1000\n");
    CHECK(root.available() == 2000);
  }
}

}  // namespace inkling::app
