// Attention over the cache on a GPU, step after step in one context. Where no GPU can be used each case says
// so and checks nothing.
#include <doctest/doctest.h>

#include "attention/cached_attention.h"
#include "attention/heads.h"
#include "tests/engine/on_device.h"
#include "tests/gpu.h"
#include "tests/random.h"

namespace inkling {
namespace {

constexpr std::int64_t kTokens = 70, kDim = 64, kKvHeads = 2;

/// What H heads of queries see of the tokens, which are the sequence's first.
std::vector<float> attended(ExecContext& gpu, KvSequence& sequence, std::int64_t heads) {
  test::Random random(4);
  const std::int64_t width = (heads + 2 * kKvHeads) * kDim;
  const test::OnDevice qkv(gpu, random.normals(kTokens * width), kTokens, width, DType::bf16);
  test::OnDevice out(gpu, std::vector<float>(static_cast<std::size_t>(kTokens * heads * kDim)), kTokens,
                     heads * kDim, DType::bf16);
  const std::int32_t cu[] = {0, kTokens};
  KvSequence* const sequences[] = {&sequence};
  cached_attention(
      gpu, {0, heads_of(qkv.view(), 0, heads, kDim), heads_of(qkv.view(), heads * kDim, kKvHeads, kDim),
            heads_of(qkv.view(), (heads + kKvHeads) * kDim, kKvHeads, kDim), cu, cu, sequences, 0.125f,
            out.view()});
  return out.values();
}

}  // namespace

TEST_CASE("[cuda] the same sequences with other heads are another step") {
  if (!test::have_gpu()) return;
  ExecContext one({.device = Device::cuda, .threads = 1}), other({.device = Device::cuda, .threads = 1});
  const KvShape shape{1, static_cast<int>(kKvHeads), static_cast<int>(kDim), DType::bf16};
  KvPool pool(shape, 0, &one.backend()), fresh_pool(shape, 0, &other.backend());
  KvSequence sequence(pool), fresh(fresh_pool);
  sequence.reserve(kTokens);
  fresh.reserve(kTokens);
  attended(one, sequence, 2);
  CHECK(attended(one, sequence, 4) == attended(other, fresh, 4));
}

}  // namespace inkling
