#include "apps/train_log.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <system_error>

#include "apps/console.h"
#include "apps/input.h"
#include "weights/atomic_file.h"

namespace inkling::app {
namespace {

constexpr const char* kName = "log.jsonl";
constexpr double kWidth = 720, kHeight = 400, kLeft = 60, kRight = 20, kTop = 30, kBottom = 40;

std::string json_line(const Evaluation& e) {
  return "{\"iter\":" + std::to_string(e.iter) + format(",\"train_loss\":%.9g", e.train_loss) +
         format(",\"val_loss\":%.9g", e.val_loss) + format(",\"lr\":%.9g", e.lr) +
         format(",\"tok_per_s\":%.9g}\n", e.tok_per_s);
}

Evaluation parse_line(std::string_view line, const std::string& where) {
  const auto json = nlohmann::json::parse(line, nullptr, false);
  const auto number = [&](const char* field) {
    if (!json.is_object() || !json.contains(field) || !json[field].is_number()) {
      throw Error(Code::malformed, where + ": " + field + ": expected a number");
    }
    return json[field].get<double>();
  };
  return {static_cast<std::int64_t>(number("iter")), number("train_loss"), number("val_loss"), number("lr"),
          number("tok_per_s")};
}

// A step of 1, 2 or 5 · 10^k that cuts `range` into at most eight.
double tick_step(double range) {
  const double power = std::pow(10.0, std::floor(std::log10(range / 8)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (range / (factor * power) <= 8) return factor * power;
  }
  return 10 * power;
}

class Curve {
 public:
  explicit Curve(const std::vector<Evaluation>& points) : points_(points) {
    last_ = std::max<double>(1.0, static_cast<double>(points.back().iter));
    low_ = high_ = points[0].val_loss;
    for (const Evaluation& e : points) {
      low_ = std::min({low_, e.train_loss, e.val_loss});
      high_ = std::max({high_, e.train_loss, e.val_loss});
    }
    if (high_ - low_ < 1e-6) high_ = low_ + 1e-6;
  }

  std::string svg() {
    out_ =
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 400\" font-family=\"sans-serif\" "
        "font-size=\"12\">\n<rect width=\"720\" height=\"400\" fill=\"white\"/>\n";
    for (double v = std::ceil(low_ / step(high_ - low_)) * step(high_ - low_); v <= high_;
         v += step(high_ - low_)) {
      grid(kLeft, y(v), kWidth - kRight, y(v));
      label(kLeft - 6, y(v) + 4, "end", format("%.4g", v));
    }
    for (double v = 0; v <= last_; v += step(last_)) {
      grid(x(v), kTop, x(v), kHeight - kBottom);
      label(x(v), kHeight - kBottom + 18, "middle", format("%.6g", v));
    }
    line(&Evaluation::train_loss, "#1f77b4");
    line(&Evaluation::val_loss, "#d62728");
    label(kLeft, 18, "start",
          "<tspan fill=\"#1f77b4\">training</tspan> and <tspan fill=\"#d62728\">validation</tspan> loss, "
          "by iteration; " +
              format("%.4f", points_.back().val_loss) + " at the end");
    return out_ + "</svg>\n";
  }

 private:
  static double step(double range) { return tick_step(range); }
  double x(double iter) const { return kLeft + iter / last_ * (kWidth - kLeft - kRight); }
  double y(double loss) const {
    return kHeight - kBottom - (loss - low_) / (high_ - low_) * (kHeight - kTop - kBottom);
  }
  void grid(double x1, double y1, double x2, double y2) {
    out_ += format("<line x1=\"%.1f\"", x1) + format(" y1=\"%.1f\"", y1) + format(" x2=\"%.1f\"", x2) +
            format(" y2=\"%.1f\" stroke=\"#ddd\"/>\n", y2);
  }
  void label(double at_x, double at_y, const char* anchor, const std::string& text) {
    out_ += format("<text x=\"%.1f\"", at_x) + format(" y=\"%.1f\"", at_y) + " text-anchor=\"" + anchor +
            "\">" + text + "</text>\n";
  }
  void line(double Evaluation::*loss, const char* color) {
    out_ += "<polyline fill=\"none\" stroke-width=\"1.5\" stroke=\"" + std::string(color) + "\" points=\"";
    for (const Evaluation& e : points_) {
      out_ += format("%.1f,", x(static_cast<double>(e.iter))) + format("%.1f ", y(e.*loss));
    }
    out_ += "\"/>\n";
  }

  const std::vector<Evaluation>& points_;
  double last_ = 1, low_ = 0, high_ = 1;
  std::string out_;
};

}  // namespace

TrainLog::TrainLog(const std::filesystem::path& folder, std::int64_t last) : folder_(folder) {
  std::error_code ignored;
  const std::filesystem::path path = folder / kName;
  if (last < 0 || !std::filesystem::exists(path, ignored)) return;
  const std::string text = read_text(path);
  for (std::size_t at = 0, number = 1; at < text.size(); ++number) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string where = path.string() + ": line " + std::to_string(number);
    const Evaluation e = parse_line(std::string_view(text).substr(at, end - at), where);
    if (e.iter <= last) {
      evaluations_.push_back(e);
      text_ += text.substr(at, end - at) + '\n';
    }
    at = end + 1;
  }
}

void TrainLog::add(const Evaluation& evaluation) {
  evaluations_.push_back(evaluation);
  text_ += json_line(evaluation);
  write_file(folder_ / kName, text_).value();
  write_file(folder_ / "loss.svg", Curve(evaluations_).svg()).value();
}

bool TrainLog::has(std::int64_t iter) const {
  return std::ranges::any_of(evaluations_, [&](const Evaluation& e) { return e.iter == iter; });
}

}  // namespace inkling::app
