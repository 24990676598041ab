#include "model/train/trainer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <numbers>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/profiler.h"
#include "engine/training_ops.h"
#include "model/train/parameters.h"
#include "model/train/training_pass.h"
#include "weights/atomic_file.h"

namespace inkling {
namespace {

constexpr std::string_view kFormatKey = "inkling_checkpoint", kFormat = "1";
constexpr std::string_view kIterationKey = "iteration", kConfigKey = "config";
constexpr std::string_view kFirstMoment = "adamw.m.", kSecondMoment = "adamw.v.";

void check(bool ok, const char* what, double got) {
  require(ok, Code::usage, [&] { return std::string("trainer: ") + what + ", got " + std::to_string(got); });
}

void check_options(const TrainOptions& o) {
  check(o.learning_rate >= 0 && std::isfinite(o.learning_rate), "learning_rate: expected at least 0",
        o.learning_rate);
  check(o.min_lr >= 0 && o.min_lr <= o.learning_rate, "min_lr: expected 0 to learning_rate", o.min_lr);
  check(o.warmup_iters >= 0, "warmup_iters: expected at least 0", static_cast<double>(o.warmup_iters));
  check(o.lr_decay_iters == 0 || o.lr_decay_iters > o.warmup_iters,
        "lr_decay_iters: expected 0 or more than warmup_iters", static_cast<double>(o.lr_decay_iters));
  check(o.beta1 >= 0 && o.beta1 < 1, "beta1: expected a number in [0, 1)", o.beta1);
  check(o.beta2 >= 0 && o.beta2 < 1, "beta2: expected a number in [0, 1)", o.beta2);
  check(o.epsilon > 0, "epsilon: expected a number above 0", o.epsilon);
  check(o.weight_decay >= 0 && std::isfinite(o.weight_decay), "weight_decay: expected at least 0",
        o.weight_decay);
  check(o.grad_clip >= 0, "grad_clip: expected at least 0", o.grad_clip);
  check(o.dropout >= 0 && o.dropout < 1, "dropout: expected a rate in [0, 1)", double{o.dropout});
}

Buffer zeros(Memory& memory, std::int64_t floats) {
  Buffer buffer = memory.allocate(static_cast<std::size_t>(floats) * sizeof(float));
  memory.zero(buffer.data(), buffer.size());
  return buffer;
}

float* floats(const Buffer& buffer) {
  return reinterpret_cast<float*>(buffer.data());
}

// Every tensor of a checkpoint, with weights and moments at these places.
std::vector<NamedTensor> checkpoint_tensors(const ParameterLayout& layout, float* values, float* m,
                                            float* v) {
  std::vector<NamedTensor> all = layout.named(values);
  for (NamedTensor& t : layout.named(m, kFirstMoment)) all.push_back(std::move(t));
  for (NamedTensor& t : layout.named(v, kSecondMoment)) all.push_back(std::move(t));
  return all;
}

Error malformed(const SafetensorsFile& file, std::string_view field, const std::string& expected,
                const std::string& got) {
  return Error(Code::malformed,
               file.name() + ": " + std::string(field) + ": expected " + expected + ", got " + got);
}

std::optional<std::int64_t> parse_iteration(std::string_view text) {
  std::int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole && value >= 0 && value < std::int64_t{1} << 53 ? std::optional(value) : std::nullopt;
}

}  // namespace

double learning_rate_at(const TrainOptions& o, std::int64_t i) {
  if (i < o.warmup_iters) {
    return o.learning_rate * static_cast<double>(i + 1) / static_cast<double>(o.warmup_iters + 1);
  }
  if (o.lr_decay_iters == 0) return o.learning_rate;
  if (i > o.lr_decay_iters) return o.min_lr;
  const double done =
      static_cast<double>(i - o.warmup_iters) / static_cast<double>(o.lr_decay_iters - o.warmup_iters);
  return o.min_lr + 0.5 * (1.0 + std::cos(std::numbers::pi * done)) * (o.learning_rate - o.min_lr);
}

struct Trainer::State {
  State(ExecContext& exec, const ModelConfig& model, const TrainOptions& train, Communicator* others)
      : context(exec),
        config(model),
        options(train),
        communicator(others),
        layout(model),
        weights(zeros(exec.backend(), layout.size())),
        gradient(zeros(exec.backend(), layout.size())),
        first(zeros(exec.backend(), layout.size())),
        second(zeros(exec.backend(), layout.size())),
        half(exec.backend().activation_dtype(train.compute)),
        rounded(half == DType::f32 ? Buffer() : zeros(exec.backend(), (layout.size() + 1) / 2)),
        pass(exec, model, layout.tensors(floats(weights)), layout.tensors(floats(gradient)), train.compute,
             half == DType::f32 ? Gpt2Tensors() : layout.tensors(rounded.data(), half)) {}

  std::span<float> part(const Buffer& buffer, std::int64_t begin, std::int64_t end) const {
    return {floats(buffer) + begin, static_cast<std::size_t>(end - begin)};
  }
  std::span<float> all(const Buffer& buffer) const { return part(buffer, 0, layout.size()); }
  /// Calls fill(floats) with where the weights are to be written, and brings them to the device.
  template <class Fill>
  void fill_weights(const Fill& fill) {
    if (context.device() == Device::cpu) {
      fill(floats(weights));
    } else {
      const Buffer host(weights.size());
      fill(floats(host));
      context.backend().copy_in(weights.data(), host.data(), host.size());
    }
    round_weights();
  }
  /// From then on the optimiser keeps them so.
  void round_weights() {
    if (half == DType::f32) return;
    for (const ParameterLayout::Entry& entry : layout.entries()) {
      if (entry.layout.rank != 2) continue;
      TensorView from = entry.layout, to = entry.layout;
      from.data = floats(weights) + entry.offset;
      to.data = rounded.data() + static_cast<std::size_t>(entry.offset) * dtype_size(half);
      to.dtype = half;
      layer_norm(context, {from, {}, {}, to});
    }
  }
  /// The buffer where the host can read it: itself, or what is copied to `host`.
  float* readable(const Buffer& buffer, Buffer& host) {
    if (context.device() == Device::cpu) return floats(buffer);
    if (host.empty()) host = Buffer(buffer.size());
    context.backend().copy_out(host.data(), buffer.data(), buffer.size());
    return floats(host);
  }
  void sum_gradients();
  void update(double rate, double clip);

  ExecContext& context;
  ModelConfig config;
  TrainOptions options;
  Communicator* communicator;
  ParameterLayout layout;
  Buffer weights, gradient, first, second;
  DType half;      // of the matrices in `rounded`, as products take them; f32: as they are
  Buffer rounded;  // laid out as the weights
  Buffer host_weights, host_gradient, host_first, host_second;  // copies of a device's, made when asked for
  TrainingPass pass;
  std::int64_t iteration = 0;
};

Trainer::Trainer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Trainer::Trainer(Trainer&&) noexcept = default;
Trainer& Trainer::operator=(Trainer&&) noexcept = default;
Trainer::~Trainer() = default;

Trainer Trainer::from_scratch(ExecContext& context, const ModelConfig& config, const TrainOptions& options,
                              Communicator* communicator) {
  config.validate().value();
  check_options(options);
  Trainer trainer(std::make_unique<State>(context, config, options, communicator));
  State& s = *trainer.state_;
  s.fill_weights([&](float* to) { initialise(s.layout, config, options.seed, to); });
  return trainer;
}

Trainer Trainer::from_weights(ExecContext& context, const Gpt2Source& source, const TrainOptions& options,
                              Communicator* communicator) {
  check_options(options);
  Trainer trainer(std::make_unique<State>(context, source.config(), options, communicator));
  State& s = *trainer.state_;
  s.fill_weights([&](float* to) { copy_parameters(source, s.layout, to); });
  return trainer;
}

std::size_t Trainer::nbytes_of(ExecContext& context, const ModelConfig& config, const TrainOptions& options,
                               std::span<const std::int32_t> cu_seqlens) {
  const ParameterLayout layout(config);
  const DType half = context.backend().activation_dtype(options.compute);
  const Activations activations(config, layout.vocab_rows(), context, half);
  const auto floats = static_cast<std::size_t>(layout.size());
  const std::size_t held = 4 * floats * sizeof(float) + (half == DType::f32 ? 0 : (floats + 1) / 2 * 4);
  const std::size_t passing = activations.nbytes({cu_seqlens, Activations::Direction::both, options.dropout});
  return passing > SIZE_MAX - held ? SIZE_MAX : held + passing;
}

Result<ModelConfig> Trainer::checkpoint_config(const SafetensorsFile& file) {
  const std::string* const format = find(file.metadata(), kFormatKey);
  if (format == nullptr || *format != kFormat) {
    return malformed(file, kFormatKey, std::string(kFormat) + ", as in a checkpoint of training",
                     format == nullptr ? "nothing" : *format);
  }
  const std::string* const text = find(file.metadata(), kConfigKey);
  if (text == nullptr) return malformed(file, kConfigKey, "the model's config", "nothing");
  return parse_config_json(*text, file.name());
}

Result<Trainer> Trainer::from_checkpoint(ExecContext& context, const SafetensorsFile& file,
                                         const TrainOptions& options, Communicator* communicator) {
  check_options(options);
  const Result<ModelConfig> config = checkpoint_config(file);
  if (!config) return config.error();
  const std::string* const count = find(file.metadata(), kIterationKey);
  const std::optional<std::int64_t> iteration = count != nullptr ? parse_iteration(*count) : std::nullopt;
  if (!iteration) {
    return malformed(file, kIterationKey, "a number below 2^53", count == nullptr ? "nothing" : *count);
  }
  // Before memory is taken: the config alone could ask for any amount.
  const ParameterLayout wanted(*config);
  for (const std::string_view prefix : {std::string_view(), kFirstMoment, kSecondMoment}) {
    for (const ParameterLayout::Entry& entry : wanted.entries()) {
      const std::string name = std::string(prefix) + entry.name,
                        expected = "f32 " + entry.layout.shape_string();
      const NamedTensor* from = file.find(name);
      if (from == nullptr) return malformed(file, name, expected, "nothing");
      const std::string got = std::string(dtype_name(from->view.dtype)) + ' ' + from->view.shape_string();
      if (got != expected) return malformed(file, name, expected, got);
    }
  }

  Trainer trainer(std::make_unique<State>(context, *config, options, communicator));
  State& s = *trainer.state_;
  for (const NamedTensor& to :
       checkpoint_tensors(s.layout, floats(s.weights), floats(s.first), floats(s.second))) {
    context.backend().copy_in(to.view.data, file.find(to.name)->view.data, to.view.nbytes());
  }
  s.round_weights();
  s.iteration = *iteration;
  return trainer;
}

Trainer::StepResult Trainer::step(std::span<const TrainingBatch> batches) {
  State& s = *state_;
  const ProfileRange range(s.context, "step");
  std::array<double, 2> sums{};  // of losses, and of targets
  for (const TrainingBatch& batch : batches) sums[1] += static_cast<double>(batch.target_count());
  if (s.communicator != nullptr) s.communicator->sum(std::span(sums).subspan(1));
  require(sums[1] > 0, Code::usage, [] { return std::string("trainer: step: expected targets, got none"); });

  if (batches.empty()) s.context.backend().zero(s.gradient.data(), s.gradient.size());
  const auto scale = static_cast<float>(1.0 / sums[1]);
  const int rank = s.communicator != nullptr ? s.communicator->rank() : 0;
  const int ranks = s.communicator != nullptr ? s.communicator->size() : 1;
  // Batches are numbered through all iterations and processes, so that a mask never depends on who draws it.
  std::uint64_t number = (static_cast<std::uint64_t>(s.iteration) * static_cast<std::uint64_t>(ranks) +
                          static_cast<std::uint64_t>(rank)) *
                         batches.size();
  for (const TrainingBatch& batch : batches) {
    const PassDropout dropout{s.options.dropout, s.options.seed, static_cast<std::uint32_t>(number++)};
    const bool first = &batch == batches.data();
    sums[0] += s.pass.accumulate(batch, scale, dropout, first ? Accumulation::replace : Accumulation::add);
  }
  if (s.communicator != nullptr) {
    s.communicator->sum(std::span(sums).first(1));
    s.sum_gradients();
  }

  StepResult result;
  result.loss = sums[0] / sums[1];
  result.gradient_norm = std::sqrt(sum_of_squares(s.context, s.all(s.gradient)));
  result.learning_rate = learning_rate_at(s.options, s.iteration);
  require(std::isfinite(result.loss) && std::isfinite(result.gradient_norm), Code::gate, [&] {
    return "trainer: iteration " + std::to_string(s.iteration) +
           ": expected a finite loss and gradient, got " + std::to_string(result.loss) + " and a norm of " +
           std::to_string(result.gradient_norm) + "; a lower learning rate may help";
  });
  // As torch.nn.utils.clip_grad_norm_.
  const double clip =
      s.options.grad_clip > 0 ? std::min(1.0, s.options.grad_clip / (result.gradient_norm + 1e-6)) : 1.0;
  s.update(result.learning_rate, clip);
  ++s.iteration;
  return result;
}

// Through the host, where the communicator works.
void Trainer::State::sum_gradients() {
  float* const values = readable(gradient, host_gradient);
  communicator->sum({values, static_cast<std::size_t>(layout.size())});
  if (values != floats(gradient)) context.backend().copy_in(gradient.data(), values, gradient.size());
}

void Trainer::State::update(double rate, double clip) {
  const auto apply = [&](std::int64_t begin, std::int64_t end, double decay, const TensorView& to_rounded) {
    AdamWArgs args;
    args.parameter = part(weights, begin, end);
    args.gradient = part(gradient, begin, end);
    args.m = part(first, begin, end);
    args.v = part(second, begin, end);
    args.learning_rate = rate;
    args.beta1 = options.beta1;
    args.beta2 = options.beta2;
    args.epsilon = options.epsilon;
    args.weight_decay = decay;
    args.gradient_scale = static_cast<float>(clip);
    args.step = iteration + 1;
    args.rounded = to_rounded;
    adamw(context, args);
  };
  const TensorView matrices(rounded.data(), half, {1, layout.matrices()});
  apply(0, layout.matrices(), options.weight_decay, half == DType::f32 ? TensorView() : matrices);
  apply(layout.matrices(), layout.size(), 0.0, {});
}

double Trainer::loss(const TrainingBatch& batch) {
  const std::int64_t targets = batch.target_count();
  require(targets > 0, Code::usage, [] { return std::string("trainer: loss: expected targets, got none"); });
  return state_->pass.loss(batch) / static_cast<double>(targets);
}

std::int64_t Trainer::iteration() const noexcept {
  return state_->iteration;
}
const ModelConfig& Trainer::config() const noexcept {
  return state_->config;
}
const TrainOptions& Trainer::options() const noexcept {
  return state_->options;
}
std::vector<NamedTensor> Trainer::parameters() const {
  return state_->layout.named(state_->readable(state_->weights, state_->host_weights));
}
std::vector<NamedTensor> Trainer::gradients() const {
  return state_->layout.named(state_->readable(state_->gradient, state_->host_gradient));
}
std::size_t Trainer::nbytes() const noexcept {
  return 4 * state_->weights.size() + state_->rounded.size() + state_->pass.nbytes();
}

Result<void> Trainer::save_model(const std::filesystem::path& folder, DType dtype) const {
  require(dtype == DType::f32 || dtype == DType::bf16, Code::usage,
          [&] { return "trainer: save_model: expected f32 or bf16, got " + std::string(dtype_name(dtype)); });
  if (auto wrote = write_file(folder / "config.json", to_config_json(state_->config)); !wrote) return wrote;
  std::vector<NamedTensor> tensors = parameters();
  std::vector<bf16> rounded;
  if (dtype == DType::bf16) {
    const auto* const weights = static_cast<const float*>(tensors.front().view.data);
    rounded.resize(state_->weights.size() / sizeof(float));
    std::transform(weights, weights + rounded.size(), rounded.begin(), [](float w) { return bf16(w); });
    for (NamedTensor& tensor : tensors) {
      tensor.view.data = rounded.data() + (static_cast<const float*>(tensor.view.data) - weights);
      tensor.view.dtype = DType::bf16;
    }
  }
  return write_safetensors(folder / "model.safetensors", tensors, {{"format", "pt"}});
}

Result<void> Trainer::save_checkpoint(const std::filesystem::path& path, const Metadata& extra) const {
  Metadata metadata = {{std::string(kFormatKey), std::string(kFormat)},
                       {std::string(kIterationKey), std::to_string(state_->iteration)},
                       {std::string(kConfigKey), to_config_json(state_->config)}};
  metadata.insert(metadata.end(), extra.begin(), extra.end());
  State& s = *state_;
  const auto tensors =
      checkpoint_tensors(s.layout, s.readable(s.weights, s.host_weights), s.readable(s.first, s.host_first),
                         s.readable(s.second, s.host_second));
  return write_safetensors(path, tensors, metadata);
}

}  // namespace inkling
