// make_attention_kernels(): the table of one instruction set. Include only from sources of one ISA.
#pragma once

#include "attention/cpu/append.h"
#include "attention/cpu/backward.h"
#include "attention/cpu/forward.h"

namespace inkling::cpu {

template <class V>
constexpr AttentionKernels make_attention_kernels() {
  AttentionKernels table{};
  table.append = &Append<V>::run;
  table.forward = &Forward<V>::run;
  table.forward_split = &Forward<V>::run_split;
  table.forward_combine = &Forward<V>::run_combine;
  table.backward = &Backward<V>::run;
  return table;
}

}  // namespace inkling::cpu
