#include "tests/weights/allocation_meter.h"

#include <malloc.h>

#include <cstdlib>
#include <new>

namespace {

// Plain variables: one thread runs while the meter watches.
bool watching = false;
std::ptrdiff_t alive = 0, peak = 0;
std::uint64_t countdown = 0;
bool reached = false;

void* take(std::size_t bytes) {
  if (watching && countdown > 0 && --countdown == 0) {
    reached = true;
    throw std::bad_alloc();
  }
  void* memory = std::malloc(bytes > 0 ? bytes : 1);
  if (memory == nullptr) throw std::bad_alloc();
  if (watching) {
    alive += static_cast<std::ptrdiff_t>(malloc_usable_size(memory));
    if (alive > peak) peak = alive;
  }
  return memory;
}

void give(void* memory) noexcept {
  if (watching && memory != nullptr) alive -= static_cast<std::ptrdiff_t>(malloc_usable_size(memory));
  std::free(memory);
}

}  // namespace

void* operator new(std::size_t bytes) {
  return take(bytes);
}
void* operator new[](std::size_t bytes) {
  return take(bytes);
}
void operator delete(void* memory) noexcept {
  give(memory);
}
void operator delete[](void* memory) noexcept {
  give(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  give(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  give(memory);
}

namespace inkling::test {

AllocationMeter::AllocationMeter(std::uint64_t fail_at) {
  alive = peak = 0;
  countdown = fail_at;
  reached = false;
  watching = true;
}
AllocationMeter::~AllocationMeter() {
  watching = false;
}
std::size_t AllocationMeter::peak_bytes() const {
  return static_cast<std::size_t>(peak);
}
bool AllocationMeter::failed() const {
  return reached;
}

}  // namespace inkling::test
