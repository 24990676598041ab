#include "model/packed_batch.h"

#include <algorithm>
#include <cstddef>
#include <string>

namespace inkling {
namespace {

void validate_sequence(const PackedBatch& batch, std::size_t b) {
  const std::int64_t tokens = batch.cu_seqlens[b + 1] - batch.cu_seqlens[b];
  const std::int64_t wanted = batch.cu_wanted[b + 1] - batch.cu_wanted[b];
  require(tokens >= 0 && batch.cu_seqlens[b + 1] <= batch.tokens(), Code::usage, [&] {
    return "forward: cu_seqlens: expected offsets rising to " + std::to_string(batch.tokens()) + ", got " +
           std::to_string(batch.cu_seqlens[b]) + " and " + std::to_string(batch.cu_seqlens[b + 1]) +
           " for sequence " + std::to_string(b);
  });
  require(batch.sequences[b] != nullptr && wanted >= 0 && wanted <= tokens, Code::usage, [&] {
    return "forward: sequence " + std::to_string(b) + ": expected a sequence and 0 to " +
           std::to_string(tokens) + " wanted rows, got " + std::to_string(wanted);
  });
  const KvSequence& sequence = *batch.sequences[b];
  require(sequence.room() >= tokens, Code::usage, [&] {
    return "forward: sequence " + std::to_string(b) + ": expected room for " + std::to_string(tokens) +
           " tokens, got " + std::to_string(sequence.room()) + "; reserve() first";
  });
  for (std::int64_t i = 0; i < tokens; ++i) {
    const std::int64_t position = batch.positions[static_cast<std::size_t>(batch.cu_seqlens[b] + i)];
    require(position == sequence.length() + i, Code::usage, [&] {
      return "forward: positions: expected " + std::to_string(sequence.length() + i) + " in sequence " +
             std::to_string(b) + ", got " + std::to_string(position);
    });
  }
}

}  // namespace

void PackedBatch::validate(std::int64_t vocab_size, std::int64_t n_positions) const {
  const auto n = static_cast<std::int32_t>(ids.size());
  require(positions.size() == ids.size() && cu_seqlens.size() == sequences.size() + 1 &&
              cu_wanted.size() == sequences.size() + 1 && cu_seqlens.front() == 0 && cu_wanted.front() == 0 &&
              cu_seqlens.back() == n,
          Code::usage, [&] {
            return "forward: batch: expected " + std::to_string(n) + " positions and " +
                   std::to_string(sequences.size() + 1) + " offsets from 0 to " + std::to_string(n);
          });
  for (std::size_t i = 0; i < ids.size(); ++i) {
    require(ids[i] >= 0 && ids[i] < vocab_size, Code::usage, [&] {
      return "forward: ids: expected ids below " + std::to_string(vocab_size) + ", got " +
             std::to_string(ids[i]);
    });
    require(positions[i] >= 0 && positions[i] < n_positions, Code::usage, [&] {
      return "forward: positions: the model has " + std::to_string(n_positions) +
             " positions, got a token at position " + std::to_string(positions[i]);
    });
  }
  for (const Drawn& d : drawn) {
    require(d.ids != nullptr && d.first >= 0 && d.count > 0 && d.first + d.count <= n, Code::usage, [&] {
      return "forward: drawn: expected ids for tokens within the batch's " + std::to_string(n) + ", got " +
             std::to_string(d.count) + " from " + std::to_string(d.first);
    });
  }
  for (std::size_t b = 0; b < sequences.size(); ++b) {
    validate_sequence(*this, b);
    const auto first = std::ranges::find(sequences, sequences[b]) - sequences.begin();
    require(first == static_cast<std::ptrdiff_t>(b), Code::usage, [&] {
      return "forward: sequences: expected each once, got one as " + std::to_string(first) + " and as " +
             std::to_string(b);
    });
  }
}

}  // namespace inkling
