#include "model/generator.h"

#include <algorithm>
#include <string>
#include <utility>

namespace inkling {

// One sample under way. Until its prompt is in the cache a sequence stands for all samples of its request.
struct Generator::Sequence {
  std::uint64_t id = 0;
  std::shared_ptr<const GenerationRequest> request;
  std::uint32_t sample = 0;
  bool forks_to_come = false;
  KvSequence kv;
  std::vector<std::int32_t> tokens;  // prompt and new tokens; the cache holds a prefix of tokens[forgotten …]
  std::size_t forgotten = 0;         // tokens that overflow has cut off the front
  std::int64_t dropped = 0;
  std::int64_t made = 0;
  bool finished = false;

  explicit Sequence(KvPool& pool) : kv(pool) {}
  std::size_t pending() const { return tokens.size() - forgotten - static_cast<std::size_t>(kv.length()); }
};

namespace {

std::int64_t context_length(const Model& model, const GeneratorOptions& options) {
  const std::int64_t most = model.config().n_positions;
  require(options.context >= 0 && options.context <= most, Code::usage, [&] {
    return "context: expected at most the model's " + std::to_string(most) + " positions, got " +
           std::to_string(options.context);
  });
  require(options.max_batch > 0 && options.prefill_chunk >= 0, Code::usage, [&] {
    return "generator: expected max_batch ≥ 1 and prefill_chunk ≥ 0, got " +
           std::to_string(options.max_batch) + " and " + std::to_string(options.prefill_chunk);
  });
  return options.context == 0 ? most : options.context;
}

}  // namespace

Generator::Generator(const Model& model, ExecContext& context, const GeneratorOptions& options)
    : model_(model),
      forward_(model, context),
      options_(options),
      context_length_(inkling::context_length(model, options)),
      pool_(forward_.kv_shape(options.kv_dtype.value_or(forward_.default_kv_dtype())), options.kv_max_bytes),
      row_(static_cast<std::size_t>(model.config().vocab_size)) {}

Generator::~Generator() = default;

std::size_t Generator::pending() const noexcept {
  return waiting_.size() + active_.size();
}

// The last token drawn is never fed back, so prompt + new tokens − 1 positions are needed.
void Generator::check_fit(GenerationRequest& request, std::int64_t& dropped) const {
  const auto prompt = static_cast<std::int64_t>(request.prompt.size());
  const std::int64_t fresh = std::max<std::int64_t>(request.config.max_tokens, 1);
  const auto refuse = [&](const char* hint) {
    throw Error(Code::input, "context: a prompt of " + std::to_string(prompt) + " tokens and " +
                                 std::to_string(fresh) + " new ones need " +
                                 std::to_string(prompt + fresh - 1) + " positions, but there are " +
                                 std::to_string(context_length_) + hint);
  };
  if (prompt + fresh - 1 <= context_length_) return;
  std::int64_t keep = prompt;
  switch (request.overflow) {
    case Overflow::error:
      refuse("; ask for fewer tokens, or for overflow truncate-left or slide");
      break;
    case Overflow::truncate_left:
      if (fresh > context_length_) refuse("; not even an empty prompt leaves room");
      keep = context_length_ - fresh + 1;
      break;
    case Overflow::slide:
      if (prompt > context_length_) keep = std::max<std::int64_t>(context_length_ / 2, 1);
      break;
  }
  dropped = prompt - keep;
  request.prompt.erase(request.prompt.begin(), request.prompt.begin() + dropped);
}

std::uint64_t Generator::submit(GenerationRequest request) {
  const std::int64_t vocab = model_.config().vocab_size;
  request.config.validate(vocab);
  require(!request.prompt.empty(), Code::input,
          [] { return "prompt: expected at least one token, got none"; });
  for (const std::int32_t id : request.prompt) {
    require(id >= 0 && id < vocab, Code::input, [&] {
      return "prompt: expected ids below " + std::to_string(vocab) + ", got " + std::to_string(id);
    });
  }
  require(request.samples >= 1 && request.samples <= static_cast<std::uint64_t>(options_.max_batch),
          Code::usage, [&] {
            return "samples: expected 1 to max_batch = " + std::to_string(options_.max_batch) + ", got " +
                   std::to_string(request.samples);
          });
  auto sequence = std::make_unique<Sequence>(pool_);
  check_fit(request, sequence->dropped);
  sequence->id = next_id_++;
  sequence->tokens.reserve(request.prompt.size() + static_cast<std::size_t>(request.config.max_tokens));
  sequence->tokens = request.prompt;
  sequence->forks_to_come = request.samples > 1;
  sequence->request = std::make_shared<const GenerationRequest>(std::move(request));
  const std::uint64_t id = sequence->id;
  // Nothing to draw is nothing to do.
  if (sequence->request->config.max_tokens > 0) waiting_.push_back(std::move(sequence));
  return id;
}

void Generator::cancel(std::uint64_t request) {
  std::erase_if(waiting_, [&](const auto& s) { return s->id == request; });
  std::erase_if(active_, [&](const auto& s) { return s->id == request; });
}

// A request enters when there is a place for each of its samples.
void Generator::admit() {
  auto places = static_cast<std::size_t>(options_.max_batch);
  for (const auto& s : active_) places -= s->forks_to_come ? s->request->samples : 1;
  while (!waiting_.empty() && waiting_.front()->request->samples <= places) {
    places -= waiting_.front()->request->samples;
    active_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

// slide: forget the older half and encode the rest anew, at positions from 0.
void Generator::make_room(Sequence& s) {
  const auto held = static_cast<std::int64_t>(s.tokens.size() - s.forgotten);
  if (held <= context_length_) return;
  const std::int64_t keep = std::max<std::int64_t>(context_length_ / 2, 1);
  s.forgotten = s.tokens.size() - static_cast<std::size_t>(keep);
  s.dropped += held - keep;
  s.kv.truncate(0);
}

void Generator::fill_batch() {
  batch_.clear();
  stepped_.clear();
  for (const auto& s : active_) {
    make_room(*s);
    std::size_t count = s->pending();
    const auto chunk = static_cast<std::size_t>(options_.prefill_chunk);
    if (chunk != 0) count = std::min(count, chunk);
    const auto tokens =
        std::span(s->tokens).subspan(s->forgotten + static_cast<std::size_t>(s->kv.length()), count);
    s->kv.reserve(static_cast<std::int64_t>(count));
    batch_.add(s->kv, tokens, count == s->pending() ? 1 : 0);
    stepped_.push_back(s.get());
  }
}

bool Generator::step() {
  admit();
  if (active_.empty()) return false;
  fill_batch();
  forward_.run(batch_);
  sample_all();
  std::erase_if(active_, [](const auto& s) { return s->finished; });
  return !active_.empty() || !waiting_.empty();
}

void Generator::sample_all() {
  const TensorView logits = forward_.logits();
  for (std::size_t b = 0; b < stepped_.size(); ++b) {
    if (batch_.cu_wanted[b] == batch_.cu_wanted[b + 1]) continue;
    Sequence& s = *stepped_[b];
    const std::span<const float> row(logits.as<float>() + batch_.cu_wanted[b] * logits.stride[0],
                                     row_.size());
    if (s.forks_to_come) {
      s.forks_to_come = false;
      for (std::uint32_t i = 1; i < s.request->samples; ++i) {
        auto fork = std::make_unique<Sequence>(pool_);
        fork->id = s.id;
        fork->request = s.request;
        fork->sample = i;
        fork->kv = s.kv.fork();
        fork->tokens.reserve(s.tokens.capacity());
        fork->tokens = s.tokens;
        fork->forgotten = s.forgotten;
        fork->dropped = s.dropped;
        active_.push_back(std::move(fork));
        sample(*active_.back(), row);
      }
    }
    sample(s, row);
  }
}

void Generator::sample(Sequence& s, std::span<const float> logits) {
  const GenerationRequest& request = *s.request;
  const GenerationConfig& config = request.config;
  const auto eos = model_.config().eos_token_id;
  std::copy(logits.begin(), logits.end(), row_.begin());
  const auto position = static_cast<std::uint32_t>(s.tokens.size());
  TokenEvent event;
  event.request = s.id;
  event.sample = s.sample;
  event.index = s.made;
  event.id = sampler_.draw(row_, config, s.tokens, {request.seed, position, s.sample}, eos);
  event.dropped = s.dropped;
  if (config.logprobs >= 0) {
    event.logprob = sampler_.logprob(logits, event.id).logprob;
    event.top = sampler_.top(logits, config.logprobs);
  }
  s.tokens.push_back(event.id);
  ++s.made;
  if (!config.ignore_eos && eos && event.id == *eos) {
    event.finish = Finish::eos;
  } else if (s.made >= config.max_tokens) {
    event.finish = Finish::length;
  }
  s.finished = event.finish != Finish::none;
  if (request.on_token && request.on_token(event) == Continue::stop) s.finished = true;
}

}  // namespace inkling
