#include "engine/profiler.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace inkling {
namespace {

std::uint64_t now_ns() noexcept {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                        std::chrono::steady_clock::now().time_since_epoch())
                                        .count());
}

template <class... Values>
std::string print(const char* pattern, Values... values) {
  std::array<char, 256> text{};
  const int length = std::snprintf(text.data(), text.size(), pattern, values...);
  return {text.data(), std::min(static_cast<std::size_t>(std::max(length, 0)), text.size() - 1)};
}

std::string rate(double amount, double seconds) {
  return amount > 0 && seconds > 0 ? print("%9.1f", amount / seconds / 1e9) : "        -";
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
  std::string text = print("%-28s %8s %11s %11s %7s %9s %9s\n", "range", "calls", "total ms", "self ms",
                           "self", "GB/s", "GFLOP/s");
  for (std::size_t i = 0; i < std::min(most, all.size()); ++i) {
    const Row& row = all[i];
    text += print("%-28s %8lld %11.3f %11.3f %5.1f %% ", row.name.c_str(), static_cast<long long>(row.calls),
                  row.total_seconds * 1e3, row.self_seconds * 1e3,
                  whole > 0 ? 100 * row.self_seconds / whole : 0.0) +
            rate(row.bytes, row.total_seconds) + ' ' + rate(row.flops, row.total_seconds) + '\n';
  }
  if (all.size() > most) text += "and " + std::to_string(all.size() - most) + " more\n";
  return text;
}

void Profiler::write_trace(const std::function<void(std::string_view)>& write) const {
  write(R"({"displayTimeUnit":"ms","traceEvents":[
{"name":"process_name","ph":"M","pid":1,"tid":1,"args":{"name":"inkling"}})");
  for (const Event& event : events_) {
    const Sum& sum = sums_[event.sum];
    std::string line = ",\n{\"name\":\"" + sum.title() + "\",\"ph\":\"X\",\"pid\":1,\"tid\":1" +
                       print(",\"ts\":%.3f,\"dur\":%.3f", static_cast<double>(event.start_ns) * 1e-3,
                             static_cast<double>(event.length_ns) * 1e-3);
    std::string args;
    if (event.rows != 0) args += ",\"rows\":" + std::to_string(event.rows);
    if (event.bytes > 0) args += print(",\"bytes\":%.0f", event.bytes);
    if (event.flops > 0) args += print(",\"flops\":%.0f", event.flops);
    if (!args.empty()) line += ",\"args\":{" + args.substr(1) + '}';
    write(line + '}');
  }
  write("\n],\"otherData\":{\"left_out\":" + std::to_string(left_out_) + "}}\n");
}

}  // namespace inkling
