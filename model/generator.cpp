// Above 400 lines: admission, memory and draws are decisions over the same sequences.
#include "model/generator.h"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "engine/profiler.h"

namespace inkling {

// One sample under way. Until its prompt is in the cache a sequence stands for a group of samples.
//
// Its tokens, and `unseen` behind them if there is one:
//
//   | forgotten | in the cache, kv.length() | pending() |
//               |<------------- held() ---------------->|
//
// Between steps pending() ≥ 1: the last token is in the cache only once it has been fed. `unseen` is null, or
// the token that the device drew in the step before; then pending() is 1, unless the cache was given back.
//
// fill_batch() takes up to prefill_chunk of the pending tokens. A sequence with an `unseen` one goes on only
// by feeding that alone (goes_on()), else waits a step, until the token is seen. Forward::run() adds what was
// taken to the cache. draw_all() draws where nothing is pending any more: on the host, emit() appends the
// token at once; on the device it becomes `unseen`, while that of the step before is seen and emit() appends
// it. So pending() is 1 again.
struct Generator::Sequence {
  std::uint64_t id = 0;
  std::shared_ptr<const GenerationRequest> request;
  std::uint32_t sample = 0;
  std::uint32_t group = 1;  // samples from this one on that it stands for; 1 once it stands for itself alone
  KvSequence kv;
  std::vector<std::int32_t> tokens;  // prompt and new tokens; the cache holds a prefix of tokens[forgotten …]
  std::size_t forgotten = 0;         // tokens that overflow has cut off the front
  std::int64_t dropped = 0;
  std::int64_t made = 0;
  std::string_view op_refusal;           // why the device cannot draw for it
  const std::int32_t* unseen = nullptr;  // on the device: the token behind `tokens`, drawn by the step before
  TokenLogprob drawn;                    // of the step
  std::vector<TokenLogprob> top;
  bool finished = false;

  explicit Sequence(KvPool& pool) : kv(pool) {}
  /// Tokens that the model sees, and those of them that are not in the cache yet.
  std::size_t held() const { return tokens.size() + (unseen != nullptr ? 1 : 0) - forgotten; }
  std::size_t pending() const { return held() - static_cast<std::size_t>(kv.length()); }
};

namespace {

/// Tokens that a sequence has memory for from the start.
std::size_t room_of(const GenerationRequest& request) {
  constexpr std::int64_t kMostNew = 4096;
  return request.prompt.size() + static_cast<std::size_t>(std::min(request.config.max_tokens, kMostNew));
}

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
      samplers_(static_cast<std::size_t>(context.pool().size())) {
  const bool on_cpu = context.device() == Device::cpu;
  if (options.draws == DrawPlace::device || (options.draws == DrawPlace::automatic && !on_cpu)) {
    device_draws_.emplace(context, static_cast<std::size_t>(options.max_batch));
  }
}

Generator::~Generator() = default;

std::size_t Generator::pending() const noexcept {
  std::size_t count = waiting_.size();
  for (auto at = active_.begin(); at != active_.end(); ++at) {
    const auto same = [id = (*at)->id](const auto& other) { return other->id == id; };
    // Of those that wait, only the first may have samples under way.
    const bool waits = !waiting_.empty() && waiting_.front().id == (*at)->id;
    if (!waits && std::none_of(active_.begin(), at, same)) ++count;
  }
  return count;
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
  require(request.samples >= 1, Code::usage, [] { return "samples: expected at least 1, got 0"; });
  std::int64_t dropped = 0;
  check_fit(request, dropped);
  const std::uint64_t id = next_id_++;
  const auto shared = std::make_shared<const GenerationRequest>(std::move(request));
  const GenerationConfig& config = shared->config;
  const auto op_refusal = Sampler::op_refusal(static_cast<std::size_t>(vocab), config, model_.end_ids());
  if (device_draws_ && !op_refusal.empty()) {
    forward_.context().log().debug("request " + std::to_string(id) + ": drawn on the host, since " +
                                   std::string(op_refusal));
  }
  for (Sampler& sampler : samplers_) {
    sampler.reserve(static_cast<std::size_t>(vocab), room_of(*shared), config);
  }
  // Nothing to draw is nothing to do.
  if (config.max_tokens > 0) waiting_.push_back({id, shared, dropped, op_refusal});
  return id;
}

void Generator::cancel(std::uint64_t request) {
  std::erase_if(waiting_, [&](const Waiting& w) { return w.id == request; });
  for (const auto& s : active_) {
    if (s->id == request) s->finished = true;
  }
  if (!stepping_) retire();
}

// Lets finished sequences go, with what the device has drawn for them since.
void Generator::retire() {
  for (Draw& draw : unseen_) {
    if (draw.sequence != nullptr && draw.sequence->finished) draw.sequence = nullptr;
  }
  std::erase_if(active_, [](const auto& s) { return s->finished; });
}

// A group of samples enters when there is a place for each.
void Generator::admit() {
  std::int64_t places = options_.max_batch;
  for (const auto& s : active_) places -= s->group;
  while (!waiting_.empty()) {
    Waiting& first = waiting_.front();
    const std::int64_t group =
        std::min<std::int64_t>(options_.max_batch, first.request->samples - first.next);
    if (group > places) break;
    active_.push_back(begin(first, static_cast<std::uint32_t>(group)));
    places -= group;
    first.next += static_cast<std::uint32_t>(group);
    if (first.next == first.request->samples) waiting_.pop_front();
  }
}

// The next `group` samples of a request.
std::unique_ptr<Generator::Sequence> Generator::begin(const Waiting& waiting, std::uint32_t group) {
  auto sequence = std::make_unique<Sequence>(pool_);
  const GenerationRequest& request = *waiting.request;
  sequence->id = waiting.id;
  sequence->request = waiting.request;
  sequence->sample = waiting.next;
  sequence->group = group;
  sequence->dropped = waiting.dropped;
  sequence->op_refusal = waiting.op_refusal;
  sequence->tokens.reserve(room_of(request));
  sequence->tokens = request.prompt;
  sequence->top.reserve(static_cast<std::size_t>(std::max<std::int64_t>(request.config.logprobs, 0)));
  return sequence;
}

// slide: forget the older half and encode the rest anew, at positions from 0.
void Generator::make_room(Sequence& s) {
  const auto held = static_cast<std::int64_t>(s.held());
  if (held <= context_length_) return;
  const std::int64_t keep = std::max<std::int64_t>(context_length_ / 2, 1);
  s.forgotten = s.tokens.size() - static_cast<std::size_t>(keep);
  s.dropped += held - keep;
  s.kv.truncate(0);
}

// Room in the cache for `count` more tokens of active_[index]. False when it must wait, for older sequences
// to end or for its last token to be seen: those after it have given back all they had.
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
      } else if (index > 0 || active_[index]->unseen != nullptr) {
        return false;
      } else {
        throw;
      }
    }
  }
}

// Whether a sequence can take its next step before its last token is seen: not when that ends it for certain,
// or when there is more to do than feed it.
bool Generator::goes_on(const Sequence& s) const {
  return s.made + 1 < s.request->config.max_tokens && s.pending() == 1 &&
         static_cast<std::int64_t>(s.held()) <= context_length_;
}

void Generator::fill_batch() {
  batch_.clear();
  stepped_.clear();
  for (std::size_t i = 0; i < active_.size(); ++i) {
    Sequence& s = *active_[i];
    if (s.unseen != nullptr && !goes_on(s)) continue;
    make_room(s);
    std::size_t count = s.pending();
    const auto chunk = static_cast<std::size_t>(options_.prefill_chunk);
    if (chunk != 0) count = std::min(count, chunk);
    if (!reserve(i, static_cast<std::int64_t>(count))) continue;
    stepped_.push_back(&s);
    if (s.unseen != nullptr) {
      batch_.add_drawn(s.kv, s.unseen);
      continue;
    }
    const auto tokens =
        std::span(s.tokens).subspan(s.forgotten + static_cast<std::size_t>(s.kv.length()), count);
    batch_.add(s.kv, tokens, count == s.pending() ? 1 : 0);
  }
}

bool Generator::step() {
  const ProfileRange range(forward_.context(), "step");
  admit();
  if (active_.empty()) return false;
  fill_batch();
  forward_.run(batch_);
  std::exception_ptr thrown;
  try {
    draw_all(thrown);
  } catch (...) {
    abandon();
    throw;
  }
  retire();
  if (thrown) std::rethrow_exception(thrown);
  return !active_.empty() || !waiting_.empty();
}

// A failure between a step and its tokens: the caches are ahead of the tokens, so what took part ends.
void Generator::abandon() {
  stepping_ = false;
  for (Sequence* s : stepped_) s->finished = true;
  for (const Draws* draws : {&draws_, &unseen_}) {
    for (const Draw& draw : *draws) {
      if (draw.sequence != nullptr) draw.sequence->finished = true;
    }
  }
  draws_.clear();
  unseen_.clear();
  retire();
}

// Draws for the step, on the device or on the host, and tells of the tokens that are seen by now. `thrown`:
// what a hook threw.
void Generator::draw_all(std::exception_ptr& thrown) {
  list_draws();
  const bool on_device = device_draws();
  const DeviceDraws::Drawn last = unseen_ids_;
  for (const Draw& draw : unseen_) {  // seen below
    if (draw.sequence != nullptr) draw.sequence->unseen = nullptr;
  }
  if (on_device) begin_draws();
  if (!unseen_.empty()) see(last, thrown);
  if (on_device) {
    std::swap(unseen_, draws_);
  } else if (!draws_.empty()) {
    draw_on_host();
    emit(draws_, thrown);
  }
}

// Whether all draws of the step are the device's.
bool Generator::device_draws() const {
  return device_draws_ && !draws_.empty() &&
         std::ranges::all_of(draws_, [](const Draw& draw) { return draw.sequence->op_refusal.empty(); });
}

// Begins draws_ on the device.
void Generator::begin_draws() {
  const auto vocab = static_cast<std::size_t>(model_.config().vocab_size);
  settings_.clear();
  for (const Draw& draw : draws_) {
    settings_.push_back(Sampler::settings(vocab, draw.sequence->request->config, draw.key, model_.end_ids()));
    settings_.back().row = static_cast<std::int32_t>(draw.row);
  }
  unseen_ids_ = device_draws_->begin(forward_.logits(), settings_);
  for (std::size_t i = 0; i < draws_.size(); ++i) draws_[i].sequence->unseen = unseen_ids_.on_device + i;
}

// The ids of unseen_, by now on the way to the host or there: whatever is drawn from here on comes behind
// them.
void Generator::see(const DeviceDraws::Drawn& ids, std::exception_ptr& thrown) {
  device_draws_->wait(ids);
  for (std::size_t i = 0; i < unseen_.size(); ++i) {
    if (unseen_[i].sequence != nullptr) unseen_[i].sequence->drawn.id = ids.on_host[i];
  }
  emit(unseen_, thrown);
  unseen_.clear();
}

void Generator::emit(const Draws& draws, std::exception_ptr& thrown) {
  stepping_ = true;
  for (const Draw& draw : draws) {
    if (draw.sequence == nullptr || draw.sequence->finished) continue;  // a hook has cancelled it
    try {
      emit(*draw.sequence);
    } catch (...) {
      draw.sequence->finished = true;
      if (!thrown) thrown = std::current_exception();
    }
  }
  stepping_ = false;
}

// The other samples of a prompt that is now in the cache. They draw from the same logits.
void Generator::fork(Sequence& s, const Draw& draw) {
  // No list grows below: a draw must not be left without its sequence.
  draws_.reserve(draws_.size() + s.group - 1);
  active_.reserve(active_.size() + s.group - 1);
  const std::uint32_t end = s.sample + std::exchange(s.group, 1);
  for (std::uint32_t i = s.sample + 1; i < end; ++i) {
    auto other = std::make_unique<Sequence>(pool_);
    other->id = s.id;
    other->request = s.request;
    other->op_refusal = s.op_refusal;
    other->sample = i;
    other->kv = s.kv.fork();
    other->tokens.reserve(s.tokens.capacity());
    other->tokens = s.tokens;
    other->forgotten = s.forgotten;
    other->dropped = s.dropped;
    other->top.reserve(s.top.capacity());
    draws_.push_back({other.get(), draw.row, {draw.key.seed, draw.key.position, i}});
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
    const std::int64_t count = Sampler::top_wanted(vocab, draw.sequence->request->config, model_.end_ids());
    if (count == 0 || count > kMostTop) return 0;
    most = std::max(most, count);
  }
  return most;
}

// A draw for each sequence whose tokens are all in the cache.
void Generator::list_draws() {
  draws_.clear();
  for (std::size_t b = 0; b < stepped_.size(); ++b) {
    if (batch_.cu_wanted[b] == batch_.cu_wanted[b + 1]) continue;
    Sequence& s = *stepped_[b];
    const auto position = static_cast<std::uint32_t>(s.held() + s.forgotten);
    const Draw draw{&s, batch_.cu_wanted[b], {s.request->seed, position, s.sample}};
    draws_.push_back(draw);
    fork(s, draw);
  }
}

ProfileWork Generator::work_of_draws() const {
  const auto vocab = static_cast<std::size_t>(model_.config().vocab_size);
  ProfileWork work;
  for (const Draw& draw : draws_) {
    const GenerationConfig& config = draw.sequence->request->config;
    const std::int64_t top = top_count_ > 0 ? Sampler::top_wanted(vocab, config, model_.end_ids()) : 0;
    const ProfileWork one = Sampler::work(top > 0 ? static_cast<std::size_t>(top) : vocab, config);
    work.bytes += one.bytes;
    work.flops += one.flops;
    work.shape[0] += one.shape[0];
  }
  return work;
}

// draws_ side by side when there are several.
void Generator::draw_on_host() {
  top_count_ = top_wanted();
  if (top_count_ > 0) {
    top_ = forward_.top(top_count_);
  } else {
    logits_ = forward_.on_host(forward_.logits());
  }
  const ProfileRange range(forward_.context(), "sample", [this] { return work_of_draws(); });
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
  if (top_count_ > 0) {
    const auto begin = static_cast<std::size_t>(draw.row * top_count_),
               count = static_cast<std::size_t>(Sampler::top_wanted(vocab, config, model_.end_ids()));
    s.drawn.id = sampler.draw({top_.logits.subspan(begin, count), top_.ids.subspan(begin, count)}, config,
                              draw.key, model_.end_ids());
    return;
  }
  const std::span logits(logits_.as<float>() + draw.row * logits_.stride[0], vocab);
  s.drawn.id = sampler.draw(logits, config, s.tokens, draw.key, model_.end_ids());
  if (config.logprobs < 0) return;
  const double lse = Sampler::log_sum_exp(logits);
  s.drawn.logprob = static_cast<float>(logits[static_cast<std::size_t>(s.drawn.id)] - lse);
  const auto top = sampler.top(logits, lse, config.logprobs);
  s.top.assign(top.begin(), top.end());
}

void Generator::emit(Sequence& s) {
  const GenerationRequest& request = *s.request;
  const EndIds ends = model_.end_ids();
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
  if (!request.config.ignore_eos && std::ranges::find(ends, event.id) != ends.end()) {
    event.finish = Finish::eos;
  } else if (s.made >= request.config.max_tokens) {
    event.finish = Finish::length;
  }
  s.finished = event.finish != Finish::none;
  if (request.on_token && request.on_token(event) == Continue::stop) s.finished = true;
}

}  // namespace inkling
