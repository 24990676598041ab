// Memory: where the data of one device's ops lies, and the ways in and out. This class is the CPU's; the
// Backend of another device overrides it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engine/device.h"
#include "engine/tensor.h"

namespace inkling {

class Memory {
 public:
  virtual ~Memory() = default;
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  virtual Device device() const noexcept { return Device::cpu; }
  /// Aligned to 64. Throws Error{out_of_memory}.
  virtual Buffer allocate(std::size_t bytes) { return Buffer(bytes); }
  /// Host memory that copy_out() reaches fastest.
  virtual Buffer allocate_on_host(std::size_t bytes) { return Buffer(bytes); }

  // Host to device, device to device, device to host, each in the order of the device's ops. With no bytes
  // the pointers may be null.
  /// Has read `from` on return, unless that is memory of allocate_on_host(): then after synchronise().
  virtual void copy_in(void* to, const void* from, std::size_t bytes) { move(to, from, bytes); }
  virtual void copy(void* to, const void* from, std::size_t bytes) { move(to, from, bytes); }
  /// Has written `to` on return.
  virtual void copy_out(void* to, const void* from, std::size_t bytes) { move(to, from, bytes); }
  /// In the order of the device's ops, too.
  virtual void zero(void* to, std::size_t bytes) {
    if (bytes != 0) std::memset(to, 0, bytes);
  }
  /// Waits for every op begun.
  virtual void synchronise() {}
  /// A point in the order of the ops: wait() for it returns once all that was begun before it is done. The
  /// last kPoints are kept; to wait for one before those is to wait for a later one.
  virtual std::uint64_t mark() { return 0; }
  virtual void wait([[maybe_unused]] std::uint64_t point) {}
  static constexpr std::uint64_t kPoints = 4;

 private:
  static void move(void* to, const void* from, std::size_t bytes) {
    if (bytes != 0) std::memcpy(to, from, bytes);
  }
};

}  // namespace inkling
