// inkling bench gemm: the packed products by themselves, against what the machine can do.
#include <algorithm>
#include <memory>
#include <random>

#include "apps/bench.h"
#include "apps/ceilings.h"
#include "apps/json_text.h"
#include "apps/model_options.h"
#include "apps/program.h"
#include "apps/timing.h"
#include "engine/ops.h"

namespace inkling::app {
namespace {

struct GemmOptions {
  ModelOptions model;
  std::vector<std::pair<std::int64_t, std::int64_t>> shapes{
      {768, 2304}, {768, 768}, {768, 3072}, {3072, 768}};
  std::vector<std::int64_t> rows{1, 8, 32, 512};
  std::vector<WeightFormat> formats{WeightFormat::f32, WeightFormat::bf16, WeightFormat::f16,
                                    WeightFormat::int8, WeightFormat::int4};
  int repeats = 10;
  Table table = Table::md;
};

// "768x2304,768x768"
Setter shapes(std::vector<std::pair<std::int64_t, std::int64_t>>& target) {
  return [&target](const std::string& value) {
    target.clear();
    for (std::size_t at = 0; at <= value.size();) {
      const std::size_t comma = std::min(value.find(',', at), value.size());
      const std::string_view shape = std::string_view(value).substr(at, comma - at);
      const std::size_t cross = std::min(shape.find('x'), shape.size());
      auto& [k, n] = target.emplace_back();
      if (!parse_number(shape.substr(0, cross), k) || cross == shape.size() ||
          !parse_number(shape.substr(cross + 1), n) || k < 1 || n < 1 || k > kMaxInner || n > kMaxVocab) {
        refuse("shapes such as 768x2304,768x768", value);
      }
      at = comma + 1;
    }
  };
}

Setter formats(std::vector<WeightFormat>& target) {
  return [&target](const std::string& value) {
    target.clear();
    const std::vector<std::pair<std::string, WeightFormat>> names{{"f32", WeightFormat::f32},
                                                                  {"bf16", WeightFormat::bf16},
                                                                  {"f16", WeightFormat::f16},
                                                                  {"int8", WeightFormat::int8},
                                                                  {"int4", WeightFormat::int4}};
    for (std::size_t at = 0; at <= value.size();) {
      const std::size_t comma = std::min(value.find(',', at), value.size());
      choice<WeightFormat>(target.emplace_back(), names)(value.substr(at, comma - at));
      at = comma + 1;
    }
  };
}

struct Product {
  std::int64_t k, n, m;
  WeightFormat format;
  Spread time;
  std::size_t bytes;
  double gflop_s() const {
    return 2.0 * static_cast<double>(m) * static_cast<double>(k * n) / time.median / 1e9;
  }
  double gb_s() const { return static_cast<double>(bytes) / time.median / 1e9; }
};

template <class Visit>
void measure(const GemmOptions& o, ExecContext& context, Visit&& visit) {
  std::mt19937 random(1);
  for (const auto& [k, n] : o.shapes) {
    std::vector<float> w(static_cast<std::size_t>(k * n));
    for (float& value : w) value = static_cast<float>(random()) * 0x1p-32f - 0.5f;
    for (const WeightFormat format : o.formats) {
      const PackedMatrix packed = pack(context, {w.data(), DType::f32, k, n, n, 1}, format);
      for (const std::int64_t m : o.rows) {
        std::vector<float> x(static_cast<std::size_t>(m * k)), y(static_cast<std::size_t>(m * n));
        for (float& value : x) value = static_cast<float>(random()) * 0x1p-32f - 0.5f;
        LinearArgs args;
        args.x = TensorView(x.data(), DType::f32, {m, k});
        args.weight = &packed;
        args.out = TensorView(y.data(), DType::f32, {m, n});
        visit(Product{k, n, m, format, time_calls(o.repeats, [&] { linear(context, args); }), packed.bytes});
      }
    }
  }
}

void print_json(const GemmOptions& o, ExecContext& context) {
  JsonRows out(JsonRows::Shape::array);
  measure(o, context, [&](const Product& p) {
    out.write("{\"k\":" + std::to_string(p.k) + ",\"n\":" + std::to_string(p.n) +
              ",\"m\":" + std::to_string(p.m) + ",\"format\":" + json_string(weight_format_name(p.format)) +
              ",\"threads\":" + std::to_string(context.pool().size()) +
              ",\"isa\":" + json_string(arithmetic_name(context)) + ",\"us\":{\"median\":" +
              format("%.6g", p.time.median * 1e6) + ",\"min\":" + format("%.6g", p.time.min * 1e6) +
              ",\"max\":" + format("%.6g", p.time.max * 1e6) + "},\"gflop_per_s\":" +
              format("%.6g", p.gflop_s()) + ",\"gb_per_s\":" + format("%.6g", p.gb_s()) + "}");
  });
  out.finish();
}

void bench_gemm(const GemmOptions& o, const Console& console) {
  ExecContext context(cpu_options(o.model, console, "bench gemm"));
  if (o.table == Table::json) return print_json(o, context);
  const Ceilings ceilings = measure_ceilings(context);
  console.note("inkling: " + context.backend().description() + format(", %.0f GFLOP/s", ceilings.gflop_s) +
               format(" f32 and %.1f GB/s at most", ceilings.read_gb_s));
  const bool csv = o.table == Table::csv;
  Console::write(
      csv ? "k,n,format,m,us,min,max,gflop_per_s,gb_per_s\n"
          : "| K | N | format | M | µs | min–max | GFLOP/s | of f32 peak | GB/s of weights | of reads |\n"
            "|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|\n");
  measure(o, context, [&](const Product& p) {
    const std::string before = (csv ? "" : "| ") + std::to_string(p.k) + (csv ? "," : " | ") +
                               std::to_string(p.n) + (csv ? "," : " | ") +
                               std::string(weight_format_name(p.format)) + (csv ? "," : " | ") +
                               std::to_string(p.m);
    const double of_peak = ceilings.gflop_s > 0 ? p.gflop_s() / ceilings.gflop_s : 0;
    const auto us = [&](const char* pattern, double seconds) { return format(pattern, seconds * 1e6); };
    Console::write(
        csv ? before + us(",%.6g", p.time.median) + us(",%.6g", p.time.min) + us(",%.6g", p.time.max) +
                  format(",%.6g", p.gflop_s()) + format(",%.6g\n", p.gb_s())
            : before + us(" | %.1f", p.time.median) + us(" | %.1f", p.time.min) + us("–%.1f", p.time.max) +
                  format(" | %.1f", p.gflop_s()) + format(" | %.2f", of_peak) + format(" | %.1f", p.gb_s()) +
                  format(" | %.2f |\n", p.gb_s() / ceilings.read_gb_s));
  });
}

}  // namespace

void add_bench_gemm(Program& program, const Options& bench) {
  auto o = std::make_shared<GemmOptions>();
  Options& options = program.command(
      "gemm", "the packed products by themselves, medians",
      [o](const Console& console) { bench_gemm(*o, console); }, &bench);
  options.group("What and how", Options::Layers::command_line);
  options.add("--shapes", "KxN,..", "inputs x outputs [GPT-2 124M's: 768x2304,768x768,768x3072,3072x768]",
              shapes(o->shapes));
  options.add("--rows", "M,..", "rows of activations [1,8,32,512]", numbers(o->rows, 1, 1 << 16));
  options.add("--formats", "NAME,..", "of f32, bf16, f16, int8, int4 [all]", formats(o->formats));
  options.add("-r,--repeats", "N", "samples of each, at least 10 ms long [10]", whole(o->repeats, 1, 10'000));
  options.add("--output", "FORM", "md, csv or json [md]", table_form(o->table));
  add_device_options(options, o->model);
}

}  // namespace inkling::app
