// Generator: many requests, one packed forward per step.
//
//   Generator generator(model, context, {.max_batch = 8});
//   generator.submit({.prompt = ids, .config = config, .on_token = print});
//   while (generator.step()) {}
//
// A step mixes chunks of prompts with single tokens of sequences under way; nothing waits for anything but a
// free place. A request's tokens depend on its prompt, config and seed alone: never on max_batch,
// prefill_chunk, threads or company. One thread at a time; once warm, a decode step
// allocates nothing (but for draws that DrawPlace::device sends to a CPU's op).
//
// Where ids are drawn on the device (DrawPlace) a step begins before the host has seen the ids of the one
// before, which it looks at while the device works: events come one step later, with the same tokens. What a
// sequence that then turns out to have ended has drawn too much is dropped.
//
// When kv_max_bytes is reached, the youngest sequences give their keys and values back and are encoded anew
// once older ones have ended: slower, with the same tokens.
#pragma once

#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "model/device_draws.h"
#include "model/forward.h"
#include "model/generation_config.h"
#include "model/sampler.h"

namespace inkling {

enum class Finish : std::uint8_t { none, length, stop, eos, cancelled };
constexpr std::string_view finish_name(Finish finish) noexcept {
  constexpr std::string_view kNames[] = {"none", "length", "stop", "eos", "cancelled"};
  return kNames[static_cast<std::size_t>(finish)];
}

/// What to do when prompt and new tokens need more positions than the context has. Never silent:
/// TokenEvent::dropped tells how many tokens the model no longer sees.
enum class Overflow : std::uint8_t {
  error,          ///< submit() throws Error{input} with both numbers
  truncate_left,  ///< the oldest tokens of the prompt go, as many as needed
  slide,  ///< when the context is full its older half goes and the rest is encoded anew at positions 0 …
          ///< (learned positions cannot be shifted)
};

/// One token drawn. The spans live for the call alone.
struct TokenEvent {
  std::uint64_t request = 0;
  std::uint32_t sample = 0;  ///< which of the request's samples
  std::int64_t index = 0;    ///< of the token among the new ones
  std::int32_t id = 0;
  std::optional<float> logprob;       ///< when config.logprobs ≥ 0, of the model's own distribution
  std::span<const TokenLogprob> top;  ///< the config.logprobs likeliest
  Finish finish = Finish::none;       ///< set on the last token; for eos, `id` is the end token itself
  std::int64_t dropped = 0;           ///< tokens of the sequence that overflow has cost so far
};

enum class Continue : std::uint8_t { yes, stop };

struct GenerationRequest {
  std::vector<std::int32_t> prompt;  ///< at least one id
  GenerationConfig config;
  std::uint64_t seed = 0;  ///< config.seed is not looked at
  /// Continuations of one prompt. Up to max_batch of them share its keys and values; beyond that they run in
  /// groups of max_batch, each of which encodes the prompt anew. A sample's tokens do not depend on its
  /// group.
  std::uint32_t samples = 1;
  Overflow overflow = Overflow::error;
  /// Called for every token, on the thread of step(). Continue::stop ends this sample (a stop string was
  /// seen). It may submit and cancel. What it throws ends this sample and leaves step() once the step is
  /// done.
  std::function<Continue(const TokenEvent&)> on_token;
};

/// Where ids are drawn. A step with a draw that the op draw() does not do (Sampler::op_refusal(), logged) is
/// drawn on the host in any case.
enum class DrawPlace : std::uint8_t { automatic, host, device };  ///< automatic: that of the model

struct GeneratorOptions {
  std::int64_t max_batch = 8;        ///< sequences at a time
  std::int64_t prefill_chunk = 512;  ///< most prompt tokens of one sequence in a step; 0: all
  std::int64_t context = 0;          ///< positions to use; 0: all that the model has
  std::optional<DType> kv_dtype;     ///< default: Forward::default_kv_dtype()
  std::size_t kv_max_bytes = 0;      ///< 0: no limit
  DrawPlace draws = DrawPlace::automatic;
};

class Generator {
 public:
  /// Both outlive the Generator. Throws Error{usage} for options out of range, naming both numbers.
  Generator(const Model& model, ExecContext& context, const GeneratorOptions& options = {});
  ~Generator();

  /// Queues a request, whole or not at all, in memory that does not grow with its samples. Throws
  /// Error{usage} for a bad config and Error{input} for a prompt that is empty, holds an id outside the
  /// vocabulary, or does not fit (Overflow), and Error{out_of_memory} for one that could not be held within
  /// kv_max_bytes even alone.
  std::uint64_t submit(GenerationRequest request);
  /// Ends a request before its next token; its samples see no further event. Unknown ids are ignored.
  void cancel(std::uint64_t request);
  /// Runs one packed step, and tells of the tokens that it draws or, drawn on the device, of those of the
  /// step before. False when there is nothing left to do. Throws Error{out_of_memory} when the oldest
  /// sequence finds no memory; cancel() it and go on. A failure of the device after the forward pass ends the
  /// requests that took part, without further events.
  bool step();
  /// Requests queued or under way, each once, however many samples it has.
  std::size_t pending() const noexcept;

  const KvPool& kv_pool() const noexcept { return pool_; }
  std::int64_t context_length() const noexcept { return context_length_; }

 private:
  struct Sequence;
  struct Waiting {  // a request with samples that have no place yet
    std::uint64_t id;
    std::shared_ptr<const GenerationRequest> request;
    std::int64_t dropped;         // tokens of the prompt that overflow has cut off
    std::string_view op_refusal;  // why the device cannot draw for it
    std::uint32_t next = 0;       // the first such sample
  };
  struct Draw {  // a token to draw from a row of logits, or from its likeliest alone
    Sequence* sequence;
    std::int64_t row;
    DrawKey key;
  };
  using Draws = std::vector<Draw>;
  void check_fit(GenerationRequest& request, std::int64_t& dropped) const;
  void admit();
  std::unique_ptr<Sequence> begin(const Waiting& waiting, std::uint32_t group);
  void make_room(Sequence& sequence);
  bool reserve(std::size_t index, std::int64_t count);
  bool goes_on(const Sequence& sequence) const;
  void fill_batch();
  void fork(Sequence& sequence, const Draw& draw);
  void draw_all(std::exception_ptr& thrown);
  void abandon();
  void list_draws();
  bool device_draws() const;
  void begin_draws();
  void see(const DeviceDraws::Drawn& ids, std::exception_ptr& thrown);
  std::int64_t top_wanted() const;
  void draw_on_host();
  ProfileWork work_of_draws() const;
  void draw(Sampler& sampler, const Draw& draw) const;
  void emit(const Draws& draws, std::exception_ptr& thrown);
  void emit(Sequence& sequence);
  void retire();

  const Model& model_;
  Forward forward_;
  GeneratorOptions options_;
  std::int64_t context_length_;
  KvPool pool_;
  std::vector<Sampler> samplers_;  // one per thread
  PackedBatch batch_;
  std::deque<Waiting> waiting_;
  std::vector<std::unique_ptr<Sequence>> active_;  // the oldest first
  std::vector<Sequence*> stepped_;                 // the sequences of batch_
  Draws draws_;                                    // of the step
  std::vector<DrawSettings> settings_;             // of draws_, for the device
  std::optional<DeviceDraws> device_draws_;        // where there are any
  Draws unseen_;                   // begun on the device and not looked at; a null sequence has ended
  DeviceDraws::Drawn unseen_ids_;  // theirs
  TensorView logits_;              // of the step, on the host; or
  Forward::TopRows top_;
  std::int64_t top_count_ = 0;  // per row of top_; 0: there are logits_
  bool stepping_ = false;       // sequences must stay where they are
  std::uint64_t next_id_ = 1;
};

}  // namespace inkling
