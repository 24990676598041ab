#include "engine/profiler.h"

#include <algorithm>
#include <chrono>

#include "engine/base/decimal.h"

namespace inkling {
namespace {

std::uint64_t now_ns() noexcept {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                        std::chrono::steady_clock::now().time_since_epoch())
                                        .count());
}

/// A line of the table: the range's name, then its figures, each at the right of its column.
std::string line_of(std::string name, const std::array<std::string, 6>& figures) {
  constexpr std::size_t kName = 28;
  constexpr std::array<std::size_t, 6> kWidths{8, 11, 11, 7, 9, 9};
  name.resize(std::max(name.size(), kName), ' ');
  for (std::size_t i = 0; i < figures.size(); ++i) {
    name.append(1 + kWidths[i] - std::min(kWidths[i], figures[i].size()), ' ').append(figures[i]);
  }
  return name + '\n';
}

std::string rate(double amount, double seconds) {
  return amount > 0 && seconds > 0 ? fixed(amount / seconds / 1e9, 1) : "-";
}

}  // namespace

std::string Profiler::Sum::title() const {
  std::string text(name);
  if (shape[0] != 0) text += ' ' + std::to_string(shape[0]);
  if (shape[1] != 0) text += 'x' + std::to_string(shape[1]);
  return text;
}

Profiler::Profiler(std::size_t max_events) : max_events_(max_events), origin_ns_(now_ns()) {
  events_.reserve(max_events);
}

std::size_t Profiler::sum_of(std::string_view name, const ProfileWork& work) {
  const std::array<std::int64_t, 2> shape{work.shape[1], work.shape[2]};
  for (std::size_t i = 0; i < sums_.size(); ++i) {
    if (sums_[i].shape == shape && sums_[i].name == name) return i;
  }
  Sum& sum = sums_.emplace_back();
  sum.name = name;
  sum.shape = shape;
  return sums_.size() - 1;
}

void Profiler::begin(std::string_view name, const ProfileWork& work) {
  open_.push_back({sum_of(name, work), 0, 0, work});
  open_.back().start_ns = now_ns();
}

void Profiler::end() noexcept {
  const std::uint64_t end_ns = now_ns();
  const Open range = open_.back();
  open_.pop_back();
  const std::uint64_t length = end_ns - range.start_ns;
  Sum& sum = sums_[range.sum];
  ++sum.calls;
  sum.total_ns += length;
  sum.self_ns += length - std::min(length, range.inside_ns);
  sum.bytes += range.work.bytes;
  sum.flops += range.work.flops;
  if (!open_.empty()) open_.back().inside_ns += length;
  if (events_.size() < max_events_) {
    events_.push_back({static_cast<std::uint32_t>(range.sum), range.start_ns - origin_ns_, length,
                       range.work.shape[0], range.work.bytes, range.work.flops});
  } else {
    ++left_out_;
  }
}

std::vector<Profiler::Row> Profiler::rows() const {
  std::vector<Row> rows;
  for (const Sum& sum : sums_) {
    if (sum.calls == 0) continue;
    rows.push_back({sum.title(), sum.calls, static_cast<double>(sum.total_ns) * 1e-9,
                    static_cast<double>(sum.self_ns) * 1e-9, sum.bytes, sum.flops});
  }
  std::ranges::stable_sort(rows, [](const Row& a, const Row& b) { return a.self_seconds > b.self_seconds; });
  return rows;
}

std::string Profiler::table(std::size_t most) const {
  const std::vector<Row> all = rows();
  double whole = 0;
  for (const Row& row : all) whole += row.self_seconds;
  std::string text = line_of("range", {"calls", "total ms", "self ms", "self", "GB/s", "GFLOP/s"});
  for (std::size_t i = 0; i < std::min(most, all.size()); ++i) {
    const Row& row = all[i];
    text += line_of(row.name, {std::to_string(row.calls), fixed(row.total_seconds * 1e3, 3),
                               fixed(row.self_seconds * 1e3, 3),
                               fixed(whole > 0 ? 100 * row.self_seconds / whole : 0.0, 1) + " %",
                               rate(row.bytes, row.total_seconds), rate(row.flops, row.total_seconds)});
  }
  if (all.size() > most) text += "and " + std::to_string(all.size() - most) + " more\n";
  return text;
}

void Profiler::write_trace(const std::function<void(std::string_view)>& write) const {
  write(R"({"displayTimeUnit":"ms","traceEvents":[
{"name":"process_name","ph":"M","pid":1,"tid":1,"args":{"name":"inkling"}})");
  for (const Event& event : events_) {
    const Sum& sum = sums_[event.sum];
    const auto microseconds = [](std::uint64_t ns) { return fixed(static_cast<double>(ns) * 1e-3, 3); };
    std::string line = ",\n{\"name\":\"" + sum.title() +
                       "\",\"ph\":\"X\",\"pid\":1,\"tid\":1,\"ts\":" + microseconds(event.start_ns) +
                       ",\"dur\":" + microseconds(event.length_ns);
    std::string args;
    if (event.rows != 0) args += ",\"rows\":" + std::to_string(event.rows);
    if (event.bytes > 0) args += ",\"bytes\":" + fixed(event.bytes, 0);
    if (event.flops > 0) args += ",\"flops\":" + fixed(event.flops, 0);
    if (!args.empty()) line += ",\"args\":{" + args.substr(1) + '}';
    write(line + '}');
  }
  write("\n],\"otherData\":{\"left_out\":" + std::to_string(left_out_) + "}}\n");
}

}  // namespace inkling
