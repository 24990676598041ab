#include "attention/cuda/work_list.h"

#include <algorithm>

#include "attention/cuda/visible.h"

namespace inkling::cuda {
namespace {

/// Of a section whose tiles wait for each other: those of one head are begun half an H100 apart. With 16 and
/// 32 heads gradients of D = 128 took 1.7 and 1.1 times as long.
constexpr std::size_t kFewestHeads = 64;
constexpr std::int64_t kSectionBytes = std::int64_t{16} << 20;  // a third of an H100's L2

struct Entry {
  AttentionTile tile;
  std::int32_t cost;
};

enum class Order : std::uint8_t { any, rising };  // of the tiles of one head

/// rows(b): tiled rows of sequence b; cost(b, first, last): rows of the other side that they meet.
template <class Rows, class Cost>
std::vector<AttentionTile> tiles_of(const WorkListShape& shape, Order order, const Rows& rows,
                                    const Cost& cost) {
  std::vector<AttentionTile> tiles;
  std::vector<Entry> section;
  std::int64_t bytes = 0;
  std::size_t heads = 0;  // of the section
  const auto flush = [&] {
    std::ranges::stable_sort(section, [&](const Entry& a, const Entry& b) {
      if (a.cost != b.cost) return a.cost > b.cost;
      return order == Order::rising && a.tile.block < b.tile.block;
    });
    for (const Entry& entry : section) tiles.push_back(entry.tile);
    section.clear();
    bytes = 0;
    heads = 0;
  };
  for (std::size_t b = 0; b + 1 < shape.cu_q.size(); ++b) {
    for (std::int32_t head = 0; head < shape.heads; ++head) {
      for (std::int32_t first = 0, block = 0; first < rows(b); first += shape.rows, ++block) {
        const std::int32_t last = std::min(rows(b), first + shape.rows);
        section.push_back({{static_cast<std::int32_t>(b), head, block}, cost(b, first, last)});
      }
      if (order == Order::rising) {  // a tile counts as much as the longest after it
        std::int32_t most = 0, left = (rows(b) + shape.rows - 1) / shape.rows;
        for (auto entry = section.rbegin(); left > 0; ++entry, --left) {
          most = entry->cost = std::max(most, entry->cost);
        }
      }
      bytes += shape.head_bytes_per_key * (shape.cu_k[b + 1] - shape.cu_k[b]);
      ++heads;
      if (bytes >= kSectionBytes && (order == Order::any || heads >= kFewestHeads)) flush();
    }
  }
  flush();
  return tiles;
}

std::int32_t length(std::span<const std::int32_t> cu, std::size_t b) {
  return cu[b + 1] - cu[b];
}

KeyWindow window(const WorkListShape& shape, std::size_t b) {
  return key_window(shape.mask, shape.left, shape.right, length(shape.cu_q, b), length(shape.cu_k, b));
}

}  // namespace

std::vector<AttentionTile> query_tiles(const WorkListShape& shape) {
  return tiles_of(
      shape, Order::any, [&](std::size_t b) { return length(shape.cu_q, b); },
      [&](std::size_t b, std::int32_t first, std::int32_t last) {
        return keys_of_queries(window(shape, b), first, last, length(shape.cu_k, b)).count();
      });
}

std::vector<AttentionTile> key_tiles(const WorkListShape& shape) {
  return tiles_of(
      shape, Order::rising, [&](std::size_t b) { return length(shape.cu_k, b); },
      [&](std::size_t b, std::int32_t first, std::int32_t last) {
        return queries_of_keys(window(shape, b), first, last, length(shape.cu_q, b)).count();
      });
}

}  // namespace inkling::cuda
