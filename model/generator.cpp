#include "model/generator.h"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "engine/profiler.h"

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
  TokenLogprob drawn;  // of the step
  std::vector<TokenLogprob> top;
  bool finished = false;

  explicit Sequence(KvPool& pool) : kv(pool) {}
  std::size_t pending() const { return tokens.size() - forgotten - static_cast<std::size_t>(kv.length()); }
};

namespace {

constexpr std::int64_t kReserved = 4096;  // tokens that a sequence has memory for from the start, at most

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
      pool_(forward_.kv_shape(options.kv_dtype.value_or(forward_.default_kv_dtype())), options.kv_max_bytes,
            &context.backend()),
      samplers_(static_cast<std::size_t>(context.pool().size())) {}

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
  std::int64_t keep = prompt;
  if (prompt + fresh - 1 > context_length_) {
    if (request.overflow == Overflow::error) {
      refuse("; ask for fewer tokens, or for overflow truncate-left or slide");
    } else if (request.overflow == Overflow::truncate_left) {
      if (fresh > context_length_) refuse("; not even an empty prompt leaves room");
      keep = context_length_ - fresh + 1;
    } else if (prompt > context_length_) {  // slide begins at once
      keep = std::max<std::int64_t>(context_length_ / 2, 1);
    }
  }
  const std::int64_t positions = std::min(keep + fresh - 1, context_length_);
  require(pool_.max_bytes() == 0 || pool_.bytes_for(positions) <= pool_.max_bytes(), Code::out_of_memory,
          [&] {
            return "kv cache: " + std::to_string(positions) + " positions need " +
                   std::to_string(pool_.bytes_for(positions)) + " bytes, but the limit is " +
                   std::to_string(pool_.max_bytes());
          });
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
  sequence->tokens.reserve(request.prompt.size() +
                           static_cast<std::size_t>(std::min(request.config.max_tokens, kReserved)));
  sequence->tokens = request.prompt;
  sequence->top.reserve(static_cast<std::size_t>(std::max<std::int64_t>(request.config.logprobs, 0)));
  sequence->forks_to_come = request.samples > 1;
  for (Sampler& sampler : samplers_) {
    sampler.reserve(static_cast<std::size_t>(vocab), sequence->tokens.capacity(), request.config);
  }
  sequence->request = std::make_shared<const GenerationRequest>(std::move(request));
  const std::uint64_t id = sequence->id;
  // Nothing to draw is nothing to do.
  if (sequence->request->config.max_tokens > 0) waiting_.push_back(std::move(sequence));
  return id;
}

void Generator::cancel(std::uint64_t request) {
  std::erase_if(waiting_, [&](const auto& s) { return s->id == request; });
  for (const auto& s : active_) {
    if (s->id == request) s->finished = true;
  }
  if (!stepping_) std::erase_if(active_, [](const auto& s) { return s->finished; });
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

// Room in the cache for `count` more tokens of active_[index]. False when it must wait for older sequences to
// end: those after it have given back all they had.
bool Generator::reserve(std::size_t index, std::int64_t count) {
  for (std::size_t youngest = active_.size();;) {
    try {
      active_[index]->kv.reserve(count);
      return true;
    } catch (const Error& error) {
      if (error.code() != Code::out_of_memory) throw;
      while (youngest > index + 1 && active_[youngest - 1]->kv.pages().empty()) --youngest;
      if (youngest > index + 1) {
        active_[--youngest]->kv.truncate(0);
      } else if (index > 0) {
        return false;
      } else {
        throw;
      }
    }
  }
}

void Generator::fill_batch() {
  batch_.clear();
  stepped_.clear();
  for (std::size_t i = 0; i < active_.size(); ++i) {
    Sequence& s = *active_[i];
    make_room(s);
    std::size_t count = s.pending();
    const auto chunk = static_cast<std::size_t>(options_.prefill_chunk);
    if (chunk != 0) count = std::min(count, chunk);
    if (!reserve(i, static_cast<std::int64_t>(count))) continue;
    const auto tokens =
        std::span(s.tokens).subspan(s.forgotten + static_cast<std::size_t>(s.kv.length()), count);
    batch_.add(s.kv, tokens, count == s.pending() ? 1 : 0);
    stepped_.push_back(&s);
  }
}

bool Generator::step() {
  const ProfileRange range(forward_.context(), "step");
  admit();
  if (active_.empty()) return false;
  fill_batch();
  forward_.run(batch_);
  draw_all();
  std::exception_ptr thrown;
  stepping_ = true;
  for (const Draw& draw : draws_) {
    if (draw.sequence->finished) continue;  // a hook has cancelled it
    try {
      emit(*draw.sequence);
    } catch (...) {
      draw.sequence->finished = true;
      if (!thrown) thrown = std::current_exception();
    }
  }
  stepping_ = false;
  std::erase_if(active_, [](const auto& s) { return s->finished; });
  if (thrown) std::rethrow_exception(thrown);
  return !active_.empty() || !waiting_.empty();
}

// The other samples of a prompt that is now in the cache. They draw from the same logits.
void Generator::fork(Sequence& s, std::int64_t row) {
  if (!std::exchange(s.forks_to_come, false)) return;
  for (std::uint32_t i = 1; i < s.request->samples; ++i) {
    auto other = std::make_unique<Sequence>(pool_);
    other->id = s.id;
    other->request = s.request;
    other->sample = i;
    other->kv = s.kv.fork();
    other->tokens.reserve(s.tokens.capacity());
    other->tokens = s.tokens;
    other->forgotten = s.forgotten;
    other->dropped = s.dropped;
    other->top.reserve(s.top.capacity());
    draws_.push_back({other.get(), row});
    active_.push_back(std::move(other));
  }
}

// How many of the likeliest tokens suffice for every draw of the step; 0: whole rows are wanted, as they are
// on the CPU, where they need not travel.
std::int64_t Generator::top_wanted() const {
  if (model_.device() == Device::cpu) return 0;
  const auto vocab = static_cast<std::size_t>(model_.config().vocab_size);
  std::int64_t most = 0;
  for (const Draw& draw : draws_) {
    const std::int64_t count =
        Sampler::top_wanted(vocab, draw.sequence->request->config, model_.config().eos_token_id);
    if (count == 0 || count > kMostTop) return 0;
    most = std::max(most, count);
  }
  return most;
}

// Draws for all sequences whose tokens are all in the cache, side by side when there are several.
void Generator::draw_all() {
  draws_.clear();
  for (std::size_t b = 0; b < stepped_.size(); ++b) {
    if (batch_.cu_wanted[b] == batch_.cu_wanted[b + 1]) continue;
    draws_.push_back({stepped_[b], batch_.cu_wanted[b]});
    fork(*stepped_[b], batch_.cu_wanted[b]);
  }
  if (draws_.empty()) return;
  top_count_ = top_wanted();
  if (top_count_ > 0) {
    top_ = forward_.top(top_count_);
  } else {
    logits_ = forward_.on_host(forward_.logits());
  }
  const ProfileRange range(forward_.context(), "sample");
  if (draws_.size() == 1) return draw(samplers_[0], draws_[0]);
  forward_.context().pool().run(
      static_cast<std::int64_t>(draws_.size()), [this](std::int64_t index, int worker) {
        draw(samplers_[static_cast<std::size_t>(worker)], draws_[static_cast<std::size_t>(index)]);
      });
}

void Generator::draw(Sampler& sampler, const Draw& draw) const {
  Sequence& s = *draw.sequence;
  const GenerationConfig& config = s.request->config;
  const auto vocab = static_cast<std::size_t>(model_.config().vocab_size);
  const DrawKey key{s.request->seed, static_cast<std::uint32_t>(s.tokens.size()), s.sample};
  if (top_count_ > 0) {
    const auto begin = static_cast<std::size_t>(draw.row * top_count_),
               count =
                   static_cast<std::size_t>(Sampler::top_wanted(vocab, config, model_.config().eos_token_id));
    s.drawn.id = sampler.draw({top_.logits.subspan(begin, count), top_.ids.subspan(begin, count)}, config,
                              key, model_.config().eos_token_id);
    return;
  }
  const std::span logits(logits_.as<float>() + draw.row * logits_.stride[0], vocab);
  s.drawn.id = sampler.draw(logits, config, s.tokens, key, model_.config().eos_token_id);
  if (config.logprobs < 0) return;
  const double lse = Sampler::log_sum_exp(logits);
  s.drawn.logprob = static_cast<float>(logits[static_cast<std::size_t>(s.drawn.id)] - lse);
  const auto top = sampler.top(logits, lse, config.logprobs);
  s.top.assign(top.begin(), top.end());
}

void Generator::emit(Sequence& s) {
  const GenerationRequest& request = *s.request;
  const auto eos = model_.config().eos_token_id;
  TokenEvent event;
  event.request = s.id;
  event.sample = s.sample;
  event.index = s.made;
  event.id = s.drawn.id;
  event.dropped = s.dropped;
  if (request.config.logprobs >= 0) {
    event.logprob = s.drawn.logprob;
    event.top = s.top;
  }
  s.tokens.push_back(event.id);
  ++s.made;
  if (!request.config.ignore_eos && eos && event.id == *eos) {
    event.finish = Finish::eos;
  } else if (s.made >= request.config.max_tokens) {
    event.finish = Finish::length;
  }
  s.finished = event.finish != Finish::none;
  if (request.on_token && request.on_token(event) == Continue::stop) s.finished = true;
}

}  // namespace inkling
