#include "apps/bench_sdpa_table.h"

#include <cmath>

#include "apps/console.h"
#include "apps/json_text.h"

namespace inkling::app {
namespace {

/// Of one row; NaN where there is none.
struct Figures {
  double us, least, most, gflop_s, share, gb_s;

  Figures(const SdpaRow& row, double peak) {
    const bool refused = row.time.median == 0;
    const auto figure = [&](double value) { return refused ? std::nan("") : value; };
    us = figure(row.time.median * 1e6);
    least = figure(row.time.min * 1e6);
    most = figure(row.time.max * 1e6);
    gflop_s = figure(row.flops / row.time.median / 1e9);
    share = peak > 0 ? gflop_s / peak : std::nan("");
    gb_s = figure(row.bytes / row.time.median / 1e9);
  }
};

std::string figure(const char* form, double value) {
  return std::isnan(value) ? "" : format(form, value);
}

std::string json(const SdpaTable& table, const SdpaRow& row) {
  const Figures f(row, table.peak);
  return "{\"experiment\":" + json_string(row.experiment) + ",\"shape\":" + json_string(row.shape) +
         ",\"what\":" + json_string(row.what) + ",\"threads\":" + std::to_string(table.threads) +
         ",\"isa\":" + json_string(table.arithmetic) + ",\"us\":{\"median\":" + json_number(f.us) +
         ",\"min\":" + json_number(f.least) + ",\"max\":" + json_number(f.most) +
         "},\"gflop_per_s\":" + json_number(f.gflop_s) + ",\"gb_per_s\":" + json_number(f.gb_s) +
         ",\"of_f32_peak\":" + json_number(f.share) + ",\"note\":" + json_string(row.note) + "}";
}

std::string csv(const SdpaTable& table, const SdpaRow& row) {
  const Figures f(row, table.peak);
  std::string line = '"' + row.experiment + "\",\"" + row.shape + "\",\"" + row.what + '"';
  for (const double value : {f.us, f.least, f.most, f.gflop_s, f.share, f.gb_s}) {
    line += ',' + figure("%.6g", value);
  }
  return line + ",\"" + row.note + "\"\n";
}

std::string markdown(const SdpaTable& table, const SdpaRow& row) {
  const Figures f(row, table.peak);
  return "| " + row.experiment + " | " + row.shape + " | " + row.what + " | " + figure("%.1f", f.us) + " | " +
         figure("%.1f", f.least) + figure("–%.1f", f.most) + " | " + figure("%.1f", f.gflop_s) + " | " +
         figure("%.2f", f.share) + " | " + figure("%.1f", f.gb_s) + " | " + row.note + " |\n";
}

}  // namespace

void write(const SdpaTable& table, Table form) {
  if (form == Table::json) {
    JsonRows out(JsonRows::Shape::array);
    for (const SdpaRow& row : table.rows) out.write(json(table, row));
    return out.finish();
  }
  Console::write(form == Table::csv
                     ? "experiment,shape,what,us,min,max,gflop_per_s,of_f32_peak,gb_per_s,note\n"
                     : "| experiment | shape | what | µs | min–max | GFLOP/s | of f32 peak | GB/s | |\n"
                       "|---|---|---|--:|--:|--:|--:|--:|---|\n");
  for (const SdpaRow& row : table.rows) {
    Console::write(form == Table::csv ? csv(table, row) : markdown(table, row));
  }
}

}  // namespace inkling::app
