// Replaces operator new of a test binary by one that counts, to show that a warm call makes none, and that
// fails when asked to (allocations.h). Buffers count too while they are small enough for the heap. Include in
// one source of a binary.
#pragma once

#include <cstdlib>
#include <new>

#include "tests/allocations.h"

namespace inkling::test {

// Not inlined, or g++ takes new and free for a mismatch.
__attribute__((noinline)) inline void* counted(std::size_t bytes) noexcept {
  return counts() ? std::malloc(bytes) : nullptr;
}
__attribute__((noinline)) inline void* counted(std::size_t bytes, std::align_val_t align) noexcept {
  const auto unit = static_cast<std::size_t>(align);
  return counts() ? std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit) : nullptr;
}
__attribute__((noinline)) inline void given_back(void* memory) noexcept {
  std::free(memory);
}

}  // namespace inkling::test

void* operator new(std::size_t bytes) {
  if (void* memory = inkling::test::counted(bytes)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return inkling::test::counted(bytes);
}
void* operator new(std::size_t bytes, std::align_val_t align) {
  if (void* memory = inkling::test::counted(bytes, align)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t bytes, std::align_val_t align, const std::nothrow_t&) noexcept {
  return inkling::test::counted(bytes, align);
}
void operator delete(void* memory) noexcept {
  inkling::test::given_back(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  inkling::test::given_back(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  inkling::test::given_back(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  inkling::test::given_back(memory);
}
