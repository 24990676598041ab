// A library for LD_PRELOAD: one system call of a program goes wrong, as it would on a failing disk.
//
//   FAIL_CALL=read|write|fsync|rename|mmap|thread  FAIL_AT=k (from 1)  FAIL_ERRNO=number  FAIL_MARK=FILE
//
// The k-th call of that kind fails with that error; for FAIL_ERRNO=0, it moves one byte instead of all that
// was asked for. FILE is made at that moment, so that a run which never came so far can be told from one that
// went on. Calls of every thread are counted together; those that libc makes for itself are not seen.
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

struct Plan {
  const char* call = std::getenv("FAIL_CALL");
  const char* mark = std::getenv("FAIL_MARK");
  long at = number("FAIL_AT");
  int error = static_cast<int>(number("FAIL_ERRNO"));

  static long number(const char* name) {
    const char* text = std::getenv(name);
    return text != nullptr ? std::strtol(text, nullptr, 10) : 0;
  }
};

// Whether this call is the one. Leaves errno as the failed call would.
bool chosen(const char* call) {
  static std::atomic<long> calls{0};
  const Plan plan;  // read anew each time: a sanitizer reads files before there is an environment
  if (plan.call == nullptr || std::strcmp(plan.call, call) != 0) return false;
  if (calls.fetch_add(1) + 1 != plan.at) return false;
  if (plan.mark != nullptr) {
    ::close(static_cast<int>(::syscall(SYS_openat, AT_FDCWD, plan.mark, O_CREAT | O_WRONLY, 0600)));
  }
  errno = plan.error;
  return true;
}

template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

ssize_t move_bytes(const char* call, std::size_t count, auto&& real) {
  if (!chosen(call)) return real(count);
  return Plan().error == 0 ? real(std::min<std::size_t>(count, 1)) : -1;
}

}  // namespace

extern "C" {

ssize_t read(int file, void* into, std::size_t count) {
  static const auto real = next<ssize_t (*)(int, void*, std::size_t)>("read");
  return move_bytes("read", count, [&](std::size_t n) { return real(file, into, n); });
}

ssize_t write(int file, const void* from, std::size_t count) {
  static const auto real = next<ssize_t (*)(int, const void*, std::size_t)>("write");
  return move_bytes("write", count, [&](std::size_t n) { return real(file, from, n); });
}

int fsync(int file) {
  static const auto real = next<int (*)(int)>("fsync");
  return chosen("fsync") ? -1 : real(file);
}

int rename(const char* from, const char* to) noexcept {
  static const auto real = next<int (*)(const char*, const char*)>("rename");
  return chosen("rename") ? -1 : real(from, to);
}

void* mmap(void* address, std::size_t size, int access, int flags, int file, off_t offset) noexcept {
  static const auto real = next<void* (*)(void*, std::size_t, int, int, int, off_t)>("mmap");
  return chosen("mmap") ? MAP_FAILED : real(address, size, access, flags, file, offset);
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*main)(void*),
                   void* argument) noexcept {
  static const auto real =
      next<int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*)>("pthread_create");
  return chosen("thread") ? Plan().error : real(thread, attributes, main, argument);
}

}  // extern "C"
