#include "model/device_draws.h"

#include <exception>

#include "engine/ops.h"

namespace inkling {

DeviceDraws::DeviceDraws(ExecContext& context, std::size_t most)
    : context_(context),
      most_(most),
      settings_(context.backend().allocate(most * sizeof(DrawSettings))),
      ids_(context.backend().allocate(most * sizeof(std::int32_t))),
      host_ids_(context.backend().allocate_on_host(2 * most * sizeof(std::int32_t))) {}

// The device may still be writing to host_ids_.
DeviceDraws::~DeviceDraws() {
  try {
    context_.backend().wait(last_);
  } catch (const std::exception&) {
    return;  // a device that has failed writes no more
  }
}

DeviceDraws::Drawn DeviceDraws::begin(const TensorView& logits, std::span<const DrawSettings> settings) {
  Backend& backend = context_.backend();
  auto* const ids = reinterpret_cast<std::int32_t*>(ids_.data());
  auto* const host_ids = reinterpret_cast<std::int32_t*>(host_ids_.data()) + (second_ ? most_ : 0);
  backend.copy_in(settings_.data(), settings.data(), settings.size_bytes());
  draw(context_, {logits, reinterpret_cast<const DrawSettings*>(settings_.data()),
                  static_cast<std::int64_t>(settings.size()), ids, host_ids});
  last_ = backend.mark();
  second_ = !second_;
  return {ids, {host_ids, settings.size()}, last_};
}

}  // namespace inkling
