// libFuzzer: any bytes as config.json and generation_config.json; a config that passes is valid and survives
// being written and read again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "weights/config.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = inkling::parse_config_json(text, "fuzz");
  if (config) {
    if (!config->validate() || config->parameter_count() <= 0) std::abort();
    const auto again = inkling::parse_config_json(inkling::to_config_json(*config), "again");
    if (!again || !(*again == *config)) std::abort();
  } else if (config.error().code() != inkling::Code::malformed) {
    std::abort();
  }
  const auto generation = inkling::parse_generation_config_json(text, "fuzz", 50257);
  if (!generation && generation.error().code() != inkling::Code::malformed) std::abort();
  return 0;
}
