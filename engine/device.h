// Where ops run and where the memory lies that they read and write.
#pragma once

#include <cstdint>
#include <string_view>

namespace inkling {

enum class Device : std::uint8_t { automatic, cpu, cuda };

constexpr std::string_view device_name(Device device) noexcept {
  constexpr std::string_view kNames[] = {"auto", "cpu", "cuda"};
  return kNames[static_cast<std::size_t>(device)];
}

}  // namespace inkling
