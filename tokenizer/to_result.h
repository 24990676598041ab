// The border: inside this folder failures are thrown, outside they are Results.
#pragma once

#include <new>

#include "engine/base/result.h"

namespace inkling {

template <class Make>
auto to_result(Make&& make) -> Result<decltype(make())> {
  try {
    return make();
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(Code::out_of_memory, "tokenizer: not enough memory");
  }
}

}  // namespace inkling
