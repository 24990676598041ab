// What the attention kernels on a device share with the host: which keys a tile meets, and the lists of work.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "attention/cuda/args.h"
#include "attention/cuda/visible.h"
#include "attention/cuda/work_list.h"
#include "attention/sdpa.h"
#include "engine/exec_context.h"

using namespace inkling;
using namespace inkling::cuda;

namespace {

constexpr MaskKind kRanges[] = {MaskKind::none, MaskKind::causal_upper_left, MaskKind::causal_lower_right,
                                MaskKind::sliding_window, MaskKind::document};

/// Written from the contract (attention/sdpa.h), without documents.
bool sees(MaskKind kind, int left, int right, int queries, int keys, int i, int j) {
  const int p = i + keys - queries;
  switch (kind) {
    case MaskKind::causal_upper_left:
      return j <= i;
    case MaskKind::causal_lower_right:
      return j <= p;
    case MaskKind::sliding_window:
    case MaskKind::document:
      return p - left <= j && j <= p + right;
    default:
      return true;
  }
}

}  // namespace

TEST_CASE("cuda schedule: what dropout keeps has memory where the kernels read it, and nowhere else") {
  static_assert(reads_drawn(DType::bf16, 64) && reads_drawn(DType::f16, 8));
  CHECK_FALSE(reads_drawn(DType::f32, 64));
  CHECK_FALSE(reads_drawn(DType::bf16, 72));
  CHECK_FALSE(reads_drawn(DType::bf16, 20));
  ExecContext cpu({.device = Device::cpu, .threads = 1});
  CHECK_FALSE(sdpa_reads_drawn(cpu, DType::bf16, 64));
}

TEST_CASE("cuda schedule: spans are the hull of what is seen") {
  for (const MaskKind kind : kRanges) {
    for (const auto& [queries, keys] : {std::pair{7, 7}, {5, 12}, {12, 5}, {1, 9}, {9, 1}, {4, 0}}) {
      for (int left = 0; left < 4; ++left) {
        const int right = 3 - left;
        const KeyWindow window = key_window(kind, left, right, queries, keys);
        const auto hull = [&](int count, const auto& seen) {
          int begin = count, end = 0;
          for (int i = 0; i < count; ++i) {
            if (seen(i)) begin = std::min(begin, i), end = i + 1;
          }
          return begin < end ? RowSpan{begin, end} : RowSpan{};
        };
        for (int first = 0; first < std::max(queries, keys); ++first) {
          for (int last = first + 1; last <= std::max(queries, keys); ++last) {
            if (last <= queries) {
              const RowSpan span = keys_of_queries(window, first, last, keys);
              const RowSpan want = hull(keys, [&](int j) {
                for (int i = first; i < last; ++i) {
                  if (sees(kind, left, right, queries, keys, i, j)) return true;
                }
                return false;
              });
              CHECK(span.count() == want.count());
              if (want.count() > 0) CHECK(span.begin == want.begin);
              for (int key = 0; key < keys; ++key) {
                bool all = key + 2 <= keys;
                for (int i = first; i < last; ++i) {
                  all = all && sees(kind, left, right, queries, keys, i, key) &&
                        sees(kind, left, right, queries, keys, i, key + 1);
                }
                CHECK(all_visible(window, first, last, key, 2, keys) == all);
              }
            }
            if (last <= keys) {
              const RowSpan span = queries_of_keys(window, first, last, queries);
              const RowSpan want = hull(queries, [&](int i) {
                for (int j = first; j < last; ++j) {
                  if (sees(kind, left, right, queries, keys, i, j)) return true;
                }
                return false;
              });
              CHECK(span.count() == want.count());
              if (want.count() > 0) CHECK(span.begin == want.begin);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("cuda schedule: a list holds every row of every head once, long tiles of a section first") {
  const std::vector<std::int32_t> cu_q{0, 0, 1, 130, 386}, cu_k{0, 4, 5, 134, 390};
  WorkListShape shape{cu_q, cu_k, 3, 64, MaskKind::causal_lower_right, kFar, kFar, 256};
  const auto check = [&](const std::vector<AttentionTile>& tiles, const std::vector<std::int32_t>& cu) {
    std::set<std::tuple<int, int, int>> seen;
    std::size_t want = 0;
    for (std::size_t b = 0; b + 1 < cu.size(); ++b)
      want += static_cast<std::size_t>((cu[b + 1] - cu[b] + 63) / 64) * 3;
    for (const AttentionTile& tile : tiles) {
      const auto b = static_cast<std::size_t>(tile.sequence);
      CHECK(tile.block * 64 < cu[b + 1] - cu[b]);
      CHECK(seen.insert({tile.sequence, tile.head, tile.block}).second);
    }
    CHECK(tiles.size() == want);
  };
  const auto queries = query_tiles(shape), keys = key_tiles(shape);
  check(queries, cu_q);
  check(keys, cu_k);
  // Causal: the last queries see most, the first keys are seen most. All of this fits one section.
  CHECK((queries.front().sequence == 3 && queries.front().block == 3));
  CHECK((keys.front().sequence == 3 && keys.front().block == 0));
  CHECK(queries.back().sequence == 1);
  shape.head_bytes_per_key = std::int64_t{1} << 30;  // every (sequence, head) is a section of its own
  const auto apart = query_tiles(shape);
  check(apart, cu_q);
  for (std::size_t i = 1; i < apart.size(); ++i) {
    CHECK(std::pair(apart[i - 1].sequence, apart[i - 1].head) <= std::pair(apart[i].sequence, apart[i].head));
  }
}

TEST_CASE("cuda schedule: tiles of keys of one head are in the order of keys, whatever the mask") {
  const std::vector<std::int32_t> cu_q{0, 700, 700, 1000}, cu_k{0, 300, 900, 1900};
  for (const MaskKind mask : {MaskKind::none, MaskKind::causal_upper_left, MaskKind::causal_lower_right,
                              MaskKind::sliding_window}) {
    const WorkListShape shape{cu_q, cu_k, 2, 128, mask, 150, 20, 256};
    std::map<std::pair<int, int>, int> next;
    for (const AttentionTile& tile : key_tiles(shape)) {
      CHECK(tile.block == next[std::pair(tile.sequence, tile.head)]++);
    }
    CHECK(next[std::pair(2, 1)] == 8);
  }
}
