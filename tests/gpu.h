// For cases that want a GPU: where none can be used they report themselves skipped.
#pragma once

#include <doctest/doctest.h>

#include <string>

#include "engine/cuda/cuda.h"

namespace inkling::test {

inline bool have_gpu() {
  const std::string reason = cuda_unavailable_reason();
  if (!reason.empty()) MESSAGE("SKIPPED: " << reason);
  return reason.empty();
}

}  // namespace inkling::test
