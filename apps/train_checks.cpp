#include "apps/train_checks.h"

#include <optional>
#include <string>
#include <vector>

#include "apps/attention_case.h"
#include "apps/available_memory.h"
#include "model/train/trainer.h"

namespace inkling::app {

void check_memory(ExecContext& context, const TrainCommand& command, const ModelConfig& config,
                  std::int64_t ranks) {
  const TrainSettings& s = command.settings;
  std::optional<std::uint64_t> limit = command.device.max_memory;
  if (*limit == 0) limit = context.device() == Device::cpu ? available_memory() : std::nullopt;
  if (!limit) return;
  std::vector<std::int32_t> cu_seqlens = {0};
  for (std::int64_t b = 0; b < s.batch_size; ++b) {
    cu_seqlens.push_back(cu_seqlens.back() + static_cast<std::int32_t>(s.block_size));
  }
  constexpr std::int64_t kBytesOfToken = 3 * sizeof(std::int32_t);  // of a batch: id, target, position
  const std::int64_t drawn =
      s.gradient_accumulation_steps / ranks * s.batch_size * s.block_size * kBytesOfToken;
  // The model that speaks at an evaluation is there beside the trainer.
  const std::int64_t speaking = command.sample_tokens > 0 ? 4 * config.parameter_count() : 0;
  const double wanted = static_cast<double>(Trainer::nbytes_of(context, config, s.options(), cu_seqlens)) +
                        static_cast<double>(drawn) + static_cast<double>(speaking);
  if (wanted <= static_cast<double>(*limit)) return;
  const auto megabytes = [](double bytes) {
    return format(bytes < 1e8 ? "%.2f MB" : "%.0f MB", bytes / 1e6);
  };
  throw Error(Code::out_of_memory,
              "--batch-size " + std::to_string(s.batch_size) + " of --block-size " +
                  std::to_string(s.block_size) + ", " + std::to_string(config.n_layer) + " layers of width " +
                  std::to_string(config.n_embd) + ": expected at most " +
                  megabytes(static_cast<double>(*limit)) +
                  (command.device.max_memory != 0 ? " (--max-memory)" : ", which are available") +
                  ", got a run that takes " + megabytes(wanted) + "; a smaller --batch-size takes less");
}

void check_attention(ExecContext& context, const TrainCommand& command, const ModelConfig& config) {
  const TrainSettings& s = command.settings;
  AttentionCase shape;
  shape.q_lengths.assign(static_cast<std::size_t>(s.batch_size), s.block_size);
  shape.k_lengths = shape.q_lengths;
  shape.heads = shape.kv_heads = config.n_head;
  shape.dim = config.head_size();
  shape.dtype = context.backend().activation_dtype(s.options().compute);
  shape.mask = MaskKind::causal_upper_left;
  shape.dropout = s.options().dropout;
  shape.backward = true;
  const AttentionData data(shape, nullptr);
  for (const SdpaChoice& choice :
       {choose(context, data.forward()), choose_backward(context, data.backward())}) {
    if (choice.backend) continue;
    std::string reasons = choice.to_string();
    reasons.pop_back();  // the last line end
    throw Error(Code::usage,
                "--attn: expected a backend that can run " + shape.to_string() + ", got\n" + reasons);
  }
}

}  // namespace inkling::app
