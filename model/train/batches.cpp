#include "model/train/batches.h"

#include <algorithm>
#include <string>

#include "engine/philox.h"

namespace inkling {
namespace {

// Uniform in [0, count).
std::int64_t draw(const BatchShape& shape, Split split, std::uint64_t number, std::uint32_t sequence,
                  std::int64_t count) {
  constexpr std::uint32_t kBatches = UINT32_MAX - 1;  // counters that neither weights nor dropout draw from
  const auto stream = static_cast<std::uint32_t>(split) + 3 * static_cast<std::uint32_t>(number >> 32);
  const PhiloxWords words =
      philox({static_cast<std::uint32_t>(number), sequence, kBatches, stream}, shape.seed);
  return std::min(count - 1,
                  static_cast<std::int64_t>(philox_unit(words[0], words[1]) * static_cast<double>(count)));
}

// ids [begin, end) with the ids after them; that of the last is in the data only if end < limit.
void append(const TokenData& data, std::int64_t begin, std::int64_t end, std::int64_t limit,
            TrainingBatch& batch) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(end - begin) + 1, kNoTarget);
  data.copy(begin, std::span(ids).first(static_cast<std::size_t>(std::min(end + 1, limit) - begin)));
  batch.add(std::span(ids).first(ids.size() - 1), std::span(ids).subspan(1));
}

void add_document(const TokenData& data, const BatchShape& shape, std::int64_t id, std::int64_t room,
                  TrainingBatch& batch) {
  const std::int64_t document = data.document_of(id);
  const std::int64_t first = document == 0 ? 0 : data.document_end(document - 1);
  const std::int64_t last = data.document_end(document);
  const std::int64_t begin = first + (id - first) / shape.block_size * shape.block_size;
  append(data, begin, begin + std::min({shape.block_size, last - begin, room}), last, batch);
}

}  // namespace

std::int64_t fewest_ids(const BatchShape& shape) noexcept {
  return shape.packing == Packing::blocks ? shape.block_size + 1 : 2;
}

TrainingBatch draw_batch(const TokenData& data, const BatchShape& shape, Split split, std::uint64_t number) {
  require(data.size() >= fewest_ids(shape), Code::usage, [&] {
    return "batches: expected data of at least " + std::to_string(fewest_ids(shape)) + " ids, got " +
           std::to_string(data.size());
  });
  TrainingBatch batch;
  if (shape.packing == Packing::blocks) {
    for (std::int64_t b = 0; b < shape.batch_size; ++b) {
      const std::int64_t begin =
          draw(shape, split, number, static_cast<std::uint32_t>(b), data.size() - shape.block_size);
      append(data, begin, begin + shape.block_size, data.size(), batch);
    }
    return batch;
  }
  const std::int64_t wanted = shape.batch_size * shape.block_size;
  for (std::uint32_t b = 0; batch.tokens() < wanted; ++b) {
    add_document(data, shape, draw(shape, split, number, b, data.size()), wanted - batch.tokens(), batch);
  }
  return batch;
}

}  // namespace inkling
