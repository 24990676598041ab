#include "apps/attention_case.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <set>
#include <span>

#include "apps/options.h"
#include "engine/philox.h"

namespace inkling::app {
namespace {

constexpr std::int64_t kDocument = 128;  // tokens of a document under MaskKind::document
constexpr std::int64_t kMostTokens = std::int64_t{1} << 24;
constexpr std::int64_t kDistinct = 1'000'003;  // values; a longer tensor has them again, in other places

constexpr MaskKind kMasks[] = {
    MaskKind::none,           MaskKind::causal_upper_left, MaskKind::causal_lower_right,
    MaskKind::sliding_window, MaskKind::document,          MaskKind::additive_bias,
    MaskKind::boolean};

std::vector<std::int32_t> offsets(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int32_t> cu{0};
  for (const std::int64_t length : lengths) cu.push_back(cu.back() + static_cast<std::int32_t>(length));
  return cu;
}

// Document numbers of all rows: a new document every kDocument tokens of a sequence.
std::vector<std::int32_t> documents(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int32_t> numbers;
  for (const std::int64_t length : lengths) {
    for (std::int64_t i = 0; i < length; ++i) numbers.push_back(static_cast<std::int32_t>(i / kDocument));
  }
  return numbers;
}

std::string lengths_text(const std::vector<std::int64_t>& lengths) {
  const std::int64_t longest = lengths.empty() ? 0 : std::ranges::max(lengths);
  if (std::ranges::count(lengths, longest) == static_cast<std::ptrdiff_t>(lengths.size())) {
    return std::to_string(longest);
  }
  return std::to_string(std::ranges::min(lengths)) + ".." + std::to_string(longest);
}

struct CaseParser {
  AttentionCase shape;
  std::int64_t batch = 1, tq = 1024, tk = 1024;
  std::optional<std::size_t> memory_limit;
  std::set<std::string, std::less<>> seen;

  void set(const std::string& key, const std::string& value) {
    if (!seen.insert(key).second) throw Error(Code::usage, key + ": expected once, got it twice");
    const auto number = [&](std::int64_t& target, std::int64_t most) {
      whole<std::int64_t>(target, 1, most)(value);
    };
    const auto length = [&](std::int64_t& target) { whole<std::int64_t>(target, 0, kMostTokens)(value); };
    if (key == "B") return number(batch, 1 << 20);
    if (key == "H") return number(shape.heads, 1 << 16);
    if (key == "Hkv") return number(shape.kv_heads, 1 << 16);
    if (key == "D") return number(shape.dim, 256);
    if (key == "T") return length(tq), void(tk = tq);
    if (key == "Tq") return length(tq);
    if (key == "Tk") return length(tk);
    if (key == "window") return number(shape.window, kMostTokens);
    if (key == "dtype") return void(shape.dtype = parse_attention_dtype(value));
    if (key == "mask") return void(shape.mask = parse_mask_kind(value));
    if (key == "backward") return choice<bool>(shape.backward, {{"0", false}, {"1", true}})(value);
    if (key == "dropout") {
      if (!parse_number(value, shape.dropout) || !(shape.dropout >= 0.0f && shape.dropout < 1.0f)) {
        refuse("a rate in [0, 1)", value);
      }
      return;
    }
    if (key == "memory_limit") {
      std::uint64_t limit = 0;
      bytes(limit)(value);
      return void(memory_limit = static_cast<std::size_t>(limit));
    }
    refuse("one of B, H, Hkv, T, Tq, Tk, D, dtype, mask, window, dropout, backward, memory_limit", key);
  }

  // Keys that mean something only beside others: none is left without effect.
  void check() const {
    if (seen.contains("Tq") != seen.contains("Tk")) {
      const std::string given = seen.contains("Tq") ? "Tq" : "Tk", other = given == "Tq" ? "Tk" : "Tq";
      throw Error(Code::usage, given + ": expected " + other + " beside it, got it alone");
    }
    if (seen.contains("T") && seen.contains("Tq")) {
      throw Error(Code::usage, "T: expected either T or Tq and Tk, got all");
    }
    if (seen.contains("window")) check_window(shape.mask);
    if (const std::int64_t tokens = batch * std::max(tq, tk); tokens > INT32_MAX) {
      throw Error(Code::usage, "B: expected at most 2147483647 tokens in all, got " + std::to_string(tokens));
    }
  }
};

}  // namespace

MaskKind parse_mask_kind(const std::string& name) {
  std::string plain = name, known;
  std::ranges::replace(plain, '-', '_');
  for (const MaskKind kind : kMasks) {
    if (mask_kind_name(kind) == plain) return kind;
    known += (known.empty() ? "" : ", ") + std::string(mask_kind_name(kind));
  }
  refuse("one of " + known + " (causal needs its alignment)", name);
}

void check_window(MaskKind mask) {
  if (mask == MaskKind::sliding_window) return;
  throw Error(Code::usage,
              "window: expected the mask sliding_window beside it, got " + std::string(mask_kind_name(mask)));
}

DType parse_attention_dtype(const std::string& name) {
  DType dtype = DType::f32;
  choice<DType>(dtype, {{"f32", DType::f32}, {"bf16", DType::bf16}, {"f16", DType::f16}})(name);
  return dtype;
}

std::string AttentionCase::to_string() const {
  std::string text = "B=" + std::to_string(q_lengths.size()) + " H=" + std::to_string(heads);
  if (kv_heads != heads) text += " Hkv=" + std::to_string(kv_heads);
  text += q_lengths == k_lengths ? " T=" + lengths_text(q_lengths)
                                 : " Tq=" + lengths_text(q_lengths) + " Tk=" + lengths_text(k_lengths);
  text += " D=" + std::to_string(dim) + ' ' + std::string(dtype_name(dtype)) + ' ' +
          std::string(mask_kind_name(mask));
  if (mask == MaskKind::sliding_window) text += ' ' + std::to_string(window);
  if (dropout > 0.0f) {
    std::array<char, 32> digits{};
    text +=
        " dropout=" + std::string(digits.data(), std::to_chars(digits.begin(), digits.end(), dropout).ptr);
  }
  return backward ? text + " backward" : text;
}

AttentionCase parse_attention_case(std::string_view text, std::size_t& memory_limit) {
  CaseParser parser;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find_first_of(" ,"), text.size());
    const std::string word(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (word.empty()) continue;
    const std::size_t equals = word.find('=');
    if (equals == std::string::npos || equals == 0) refuse("KEY=VALUE", word);
    const std::string key = word.substr(0, equals);
    try {
      parser.set(key, word.substr(equals + 1));
    } catch (const Error& error) {
      if (error.message().starts_with("expected") && parser.seen.contains(key)) {
        throw Error(Code::usage, key + ": " + error.message());
      }
      throw;
    }
  }
  parser.check();
  if (!parser.seen.contains("Hkv")) parser.shape.kv_heads = parser.shape.heads;
  memory_limit = parser.memory_limit.value_or(memory_limit);
  parser.shape.q_lengths.assign(static_cast<std::size_t>(parser.batch), parser.tq);
  parser.shape.k_lengths.assign(static_cast<std::size_t>(parser.batch), parser.tk);
  return parser.shape;
}

AttentionData::AttentionData(const AttentionCase& s, Memory* memory)
    : memory_(memory), cu_q_(offsets(s.q_lengths)), cu_k_(offsets(s.k_lengths)) {
  const std::int64_t n = cu_q_.back(), keys = cu_k_.back();
  SdpaArgs& args = backward_.forward;
  args.q = tensor(s.dtype, {n, s.heads, s.dim});
  args.k = tensor(s.dtype, {keys, s.kv_heads, s.dim});
  args.v = tensor(s.dtype, {keys, s.kv_heads, s.dim});
  args.out = tensor(s.dtype, {n, s.heads, s.dim});
  args.cu_q = cu_q_;
  args.cu_k = cu_k_;
  args.dropout = {s.dropout, 1, 0};
  set_mask(s, std::ranges::max(s.q_lengths), std::ranges::max(s.k_lengths));
  if (!s.backward) return;
  args.lse = tensor(DType::f32, {s.heads, n});
  if (s.dropout > 0.0f) {
    const auto words = static_cast<std::int64_t>(sdpa_drawn_bytes(s.heads, cu_q_, cu_k_) / 4);
    args.dropout.drawn = tensor(DType::i32, {words}).data;
  }
  backward_.dout = tensor(s.dtype, {n, s.heads, s.dim});
  backward_.dq = tensor(s.dtype, {n, s.heads, s.dim});
  backward_.dk = tensor(s.dtype, {keys, s.kv_heads, s.dim});
  backward_.dv = tensor(s.dtype, {keys, s.kv_heads, s.dim});
}

void AttentionData::set_mask(const AttentionCase& s, std::int64_t longest_q, std::int64_t longest_k) {
  Mask& mask = backward_.forward.mask;
  mask.kind = s.mask;
  if (s.mask == MaskKind::sliding_window) {
    mask.left = s.window - 1;
    mask.right = 0;
  } else if (s.mask == MaskKind::document) {
    if (memory_ != nullptr) {
      documents_q_ = documents(s.q_lengths);
      documents_k_ = documents(s.k_lengths);
    }
    // Without memory the numbers have a count and no address, as the tensors do.
    mask.document_q = {documents_q_.data(), static_cast<std::size_t>(cu_q_.back())};
    mask.document_k = {documents_k_.data(), static_cast<std::size_t>(cu_k_.back())};
  } else if (s.mask == MaskKind::additive_bias) {
    mask.bias = tensor(DType::f32, {1, 1, longest_q, longest_k});
  } else if (s.mask == MaskKind::boolean) {
    mask.bias = tensor(DType::boolean, {1, 1, longest_q, longest_k});
  }
}

// Uniform in [-1, 1); as booleans, three in four are true.
TensorView AttentionData::tensor(DType dtype, std::initializer_list<std::int64_t> extents) {
  if (memory_ == nullptr) return {nullptr, dtype, extents};
  const Tensor host(dtype, extents);
  const TensorView view = host.view();
  const std::int64_t distinct = std::min(view.numel(), kDistinct);
  for (std::int64_t i = 0; i < distinct; ++i) {
    const auto words = philox({static_cast<std::uint32_t>(drawn_++), 0, 0, 0}, 1);
    const auto value = static_cast<float>(2 * philox_unit(words[0], words[1]) - 1);
    if (dtype == DType::boolean) {
      static_cast<std::uint8_t*>(view.data)[i] = value > -0.5f ? 1 : 0;
    } else if (dtype == DType::bf16) {
      static_cast<bf16*>(view.data)[i] = bf16(value);
    } else if (dtype == DType::f16) {
      static_cast<f16*>(view.data)[i] = f16(value);
    } else {
      static_cast<float*>(view.data)[i] = value;
    }
  }
  auto* const bytes = static_cast<std::byte*>(view.data);
  const std::size_t size = dtype_size(dtype);
  for (std::size_t at = static_cast<std::size_t>(distinct) * size; at < view.nbytes();) {
    const std::size_t again = std::min(at, view.nbytes() - at);
    std::memcpy(bytes + at, bytes, again);
    at += again;
  }
  nbytes_ += view.nbytes();
  const Tensor& there = owned_.emplace_back(memory_->allocate(view.nbytes()), dtype,
                                            std::span(extents.begin(), extents.size()));
  memory_->copy_in(there.view().data, bytes, view.nbytes());
  return there.view();
}

}  // namespace inkling::app
