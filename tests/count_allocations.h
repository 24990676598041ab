// Replaces operator new of a test binary by one that counts, to show that a warm call makes none. Include in
// one source of a binary.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace inkling::test {
inline std::atomic<std::int64_t> allocations{0};
}

// Not inlined, or g++ takes new and free for a mismatch.
__attribute__((noinline)) void* operator new(std::size_t bytes) {
  ++inkling::test::allocations;
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
__attribute__((noinline)) void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  ++inkling::test::allocations;
  return std::malloc(bytes);
}
__attribute__((noinline)) void operator delete(void* memory) noexcept {
  std::free(memory);
}
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
