#include "apps/bench_report.h"

#include <vector>

#include "apps/json_text.h"

namespace inkling::app {
namespace {

void print_json(std::span<const BenchRow> rows, const BenchRun& run) {
  JsonRows out(JsonRows::Shape::array);
  for (const BenchRow& row : rows) {
    out.write("{\"model\":" + json_string(run.model) + ",\"dtype\":" + json_string(run.dtype) +
              ",\"quant\":" + json_string(run.quant) + ",\"threads\":" + std::to_string(run.threads) +
              ",\"isa\":" + json_string(run.isa) + ",\"test\":" + json_string(row.test) + ",\"batch\":" +
              std::to_string(row.batch) + ",\"tok_per_s\":{\"median\":" + format("%.6g", row.rate.median) +
              ",\"min\":" + format("%.6g", row.rate.min) + ",\"max\":" + format("%.6g", row.rate.max) +
              "},\"rss_mb\":" + format("%.6g", run.rss_mb) + ",\"load_ms\":" + format("%.6g", run.load_ms) +
              "}");
  }
  out.finish();
}

using Cells = std::vector<std::string>;

Cells head(CeilingColumn ceiling) {
  Cells cells{"model", "dtype", "quant", "threads", "isa",    "test",
              "batch", "tok/s", "min",   "max",     "rss MB", "load ms"};
  if (ceiling == CeilingColumn::shown) cells.emplace_back("of ceiling");
  return cells;
}

Cells cells_of(const BenchRow& row, const BenchRun& run, CeilingColumn ceiling) {
  Cells cells{run.model,
              run.dtype,
              run.quant,
              std::to_string(run.threads),
              run.isa,
              row.test,
              std::to_string(row.batch),
              format("%.1f", row.rate.median),
              format("%.1f", row.rate.min),
              format("%.1f", row.rate.max),
              format("%.0f", run.rss_mb),
              format("%.0f", run.load_ms)};
  if (ceiling == CeilingColumn::shown)
    cells.push_back(row.ceiling > 0 ? format("%.0f%%", 100 * row.rate.median / row.ceiling) : "");
  return cells;
}

void write_line(const Cells& cells, const char* begin, const char* between, const char* end) {
  std::string line = begin;
  for (std::size_t i = 0; i < cells.size(); ++i) line += (i == 0 ? "" : between) + cells[i];
  Console::write(line + end);
}

}  // namespace

void print_bench(std::span<const BenchRow> rows, const BenchRun& run, Table form, CeilingColumn ceiling) {
  if (form == Table::json) return print_json(rows, run);
  const auto line = [form](const Cells& cells) {
    form == Table::csv ? write_line(cells, "", ",", "\n") : write_line(cells, "| ", " | ", " |\n");
  };
  line(head(ceiling));
  if (form == Table::md)
    Console::write("|---|---|---|--:|---|---|--:|--:|--:|--:|--:|--:|" +
                   std::string(ceiling == CeilingColumn::shown ? "--:|\n" : "\n"));
  for (const BenchRow& row : rows) line(cells_of(row, run, ceiling));
}

}  // namespace inkling::app
