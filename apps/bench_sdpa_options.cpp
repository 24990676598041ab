#include "apps/bench_sdpa_options.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace inkling::app {
namespace {

constexpr std::int64_t kMostLength = 1 << 20;

void set_lengths(SdpaOptions& o) {
  AttentionCase& s = o.shape;
  s.kv_heads = o.kv_heads != 0 ? o.kv_heads : s.heads;
  const auto batch = static_cast<std::size_t>(o.batch);
  s.q_lengths.assign(batch, o.q_length.value_or(o.length));
  s.k_lengths.assign(batch, o.k_length.value_or(o.length));
  if (!o.varlen.empty()) s.q_lengths = s.k_lengths = o.varlen;
  for (const auto* lengths : {&s.q_lengths, &s.k_lengths}) {
    const auto tokens = std::accumulate(lengths->begin(), lengths->end(), std::int64_t{0});
    if (tokens <= INT32_MAX) continue;
    throw Error(Code::usage, std::string(o.varlen.empty() ? "--batch" : "--varlen") +
                                 ": expected at most 2147483647 tokens in all, got " +
                                 std::to_string(tokens));
  }
}

// An option that would have no effect beside the others is a mistake of the caller's, whom a figure of
// something else would mislead.
void check_given(SdpaOptions& o) {
  if (o.shape.backward) o.given.insert("--backward");
  const auto never = [&](std::initializer_list<const char*> names, const std::string& beside) {
    for (const char* name : names) {
      if (!o.given.contains(name)) continue;
      throw Error(Code::usage, std::string(name) + ": expected none beside " + beside);
    }
  };
  if (o.tutorial()) {
    never({"--backend", "--batch", "--heads", "--kv-heads", "--q-length", "--k-length", "--varlen",
           "--head-dim", "--mask", "--window", "--dropout", "--backward"},
          "--suite, whose shapes are fixed but for --scale, --length and --dtype");
    return;
  }
  if (o.given.contains("--scale")) throw Error(Code::usage, "--scale: expected --suite beside it");
  if (!o.varlen.empty()) never({"--batch", "--length", "--q-length", "--k-length"}, "--varlen");
  if (o.q_length && o.k_length) never({"--length"}, "--q-length and --k-length");
  if (o.given.contains("--window")) {
    try {
      check_window(o.shape.mask);
    } catch (const Error& error) {
      throw Error(error.code(), "--" + error.message());
    }
  }
}

Setter optional_length(std::optional<std::int64_t>& target) {
  return
      [&target](const std::string& value) { whole<std::int64_t>(target.emplace(), 0, kMostLength)(value); };
}

Setter backends_or_all(std::vector<SdpaBackend>& target) {
  return [&target](const std::string& value) {
    if (value == "all") return target.clear();
    if (value == "auto") refuse("all, or some of flash, decode and math, each once", value);
    try {
      backends(target)(value);
    } catch (const Error&) {
      refuse("all, or some of flash, decode and math, each once", value);
    }
  };
}

}  // namespace

void settle(SdpaOptions& o) {
  check_given(o);
  set_lengths(o);
}

void add_sdpa_options(Options& options, const std::shared_ptr<SdpaOptions>& o) {
  options.group("What", Options::Layers::command_line);
  const auto what = [&](const std::string& names, const std::string& value_name, const std::string& help,
                        Setter set) {
    options.add(names, value_name, help,
                [o, name = names.substr(names.find("--")), set = std::move(set)](const std::string& value) {
                  set(value);
                  o->given.insert(name);
                });
  };
  what("--suite", "NAME", "tutorial: the experiments of PyTorch's SDPA tutorial",
       choice<std::string>(o->suite, {{"tutorial", "tutorial"}}));
  what("--scale", "X", "share of the tutorial's batch of 32 [0.03125]",
       fraction(o->scale, 0.001f, 1.001f, "a share from 0.001 to 1"));
  what("--backend", "NAME,..", "all, or some of flash, decode and math [all]", backends_or_all(o->backends));
  what("-b,--batch", "N", "sequences [1]", whole<std::int64_t>(o->batch, 1, 1 << 16));
  what("--heads", "N", "query heads [12]", whole<std::int64_t>(o->shape.heads, 1, 1 << 12));
  what("--kv-heads", "N", "heads of keys and values [as many]", whole<std::int64_t>(o->kv_heads, 1, 1 << 12));
  what("--length", "T", "queries and keys of a sequence [1024]",
       whole<std::int64_t>(o->length, 0, kMostLength));
  what("--q-length", "T", "queries, if not as many", optional_length(o->q_length));
  what("--k-length", "T", "keys, if not as many", optional_length(o->k_length));
  what("--varlen", "T,..", "lengths of packed sequences, instead", numbers(o->varlen, 0, kMostLength));
  what("--head-dim", "D", "[64]", whole<std::int64_t>(o->shape.dim, 1, 256));
  what("--dtype", "TYPE", "f32, bf16 or f16 [f32]",
       [o](const std::string& value) { o->shape.dtype = parse_attention_dtype(value); });
  what("--mask", "KIND", "none, causal_upper_left, sliding_window, .. [causal_lower_right]",
       [o](const std::string& value) { o->shape.mask = parse_mask_kind(value); });
  what("--window", "N", "keys under sliding_window [256]", whole<std::int64_t>(o->shape.window, 1, 1 << 20));
  what("--dropout", "P", "[0]", fraction(o->shape.dropout, 0.0f, 1.0f, "a rate in [0, 1)"));
  options.flag("--backward", "gradients too", o->shape.backward);
  options.group("How", Options::Layers::command_line);
  options.add("-r,--repeats", "N", "samples of each, at least 10 ms long [5; tutorial 3]",
              [o](const std::string& value) { whole(o->repeats.emplace(), 1, 10'000)(value); });
  options.add("--memory-limit", "SIZE", "most bytes that grow with Tq x Tk [64M; tutorial 1G]",
              [o](const std::string& value) { bytes(o->memory_limit.emplace())(value); });
  options.add("--output", "FORM", "md, csv or json [md]", table_form(o->table));
}

}  // namespace inkling::app
