// Values that say when they are there: a word of 32 bits beside its tag, stored and loaded as one.
//
// Blocks of a running kernel hand rows to each other so without a barrier or a fence: whoever wants a value
// asks for it until it carries the tag of this time (the "LL" protocol of NCCL). Tags count up, and a word is
// asked for by a larger one than it has, so nothing is ever cleared. They wrap after 2³², with 12 layers and
// 5,000 steps a second in 20 hours: then a word that was last written with the very same tag, or one that was
// never written beside tag 0, would be taken as it is. Words of layers are written anew in each.
//
// Memory model (PTX ISA, "Memory Consistency Model"): relaxed accesses of 64 bits are single and coherent,
// and value and tag are one access.
#pragma once

#include <cstdint>

namespace inkling::cuda {

/// Two words side by side, 16 bytes: x and z are values, y and w their tags.
using TaggedPair = uint4;

__device__ inline void put_tagged(uint2* to, std::uint32_t value, std::uint32_t tag) {
  asm volatile("{\n.reg .b64 w;\nmov.b64 w, {%1, %2};\nst.relaxed.gpu.global.b64 [%0], w;\n}" ::"l"(to),
               "r"(value), "r"(tag)
               : "memory");
}
__device__ inline void put_tagged(TaggedPair* to, std::uint32_t first, std::uint32_t second,
                                  std::uint32_t tag) {
  asm volatile(
      "{\n.reg .b64 v, w;\nmov.b64 v, {%1, %3};\nmov.b64 w, {%2, %3};\n"
      "st.relaxed.gpu.global.v2.b64 [%0], {v, w};\n}" ::"l"(to),
      "r"(first), "r"(second), "r"(tag)
      : "memory");
}

__device__ inline uint2 load_tagged(const uint2* from) {
  uint2 word;
  asm volatile("{\n.reg .b64 w;\nld.relaxed.gpu.global.b64 w, [%2];\nmov.b64 {%0, %1}, w;\n}"
               : "=r"(word.x), "=r"(word.y)
               : "l"(from)
               : "memory");
  return word;
}
__device__ inline TaggedPair load_tagged(const TaggedPair* from) {
  TaggedPair pair;
  asm volatile(
      "{\n.reg .b64 v, w;\nld.relaxed.gpu.global.v2.b64 {v, w}, [%4];\nmov.b64 {%0, %1}, v;\n"
      "mov.b64 {%2, %3}, w;\n}"
      : "=r"(pair.x), "=r"(pair.y), "=r"(pair.z), "=r"(pair.w)
      : "l"(from)
      : "memory");
  return pair;
}

__device__ inline bool has_tag(const uint2& word, std::uint32_t tag) {
  return word.y == tag;
}
__device__ inline bool has_tag(const TaggedPair& pair, std::uint32_t tag) {
  return pair.y == tag && pair.w == tag;
}

/// Waits until all of `words`, which are asked for together, carry the tag. from(i): where word i is.
template <int kCount, class Word, class From>
__device__ inline void take_tagged(Word (&words)[kCount], const From& from, std::uint32_t tag) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) words[i] = load_tagged(from(i));
  for (;;) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < kCount; ++i) all = all && has_tag(words[i], tag);
    if (all) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (!has_tag(words[i], tag)) words[i] = load_tagged(from(i));
    }
  }
}

}  // namespace inkling::cuda
