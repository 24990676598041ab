// Rows and settings that a draw must get right, ties and limits among them: for whatever draws.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "engine/draw_rule.h"
#include "tests/random.h"

namespace inkling::test {

struct DrawRow {
  std::string name;
  std::vector<float> logits;
};

/// Rows of `n` ≥ 8 logits.
inline std::vector<DrawRow> draw_rows(std::int64_t n, Random& random) {
  std::vector<DrawRow> rows;
  rows.push_back({"normal", random.normals(n, 3.0)});
  rows.push_back({"flat", random.normals(n, 0.02)});
  rows.push_back({"far below zero", random.normals(n, 4.0)});
  for (float& v : rows.back().logits) v -= 90.0f;
  rows.push_back({"steep", random.normals(n, 40.0)});
  rows.push_back({"ties", random.normals(n, 2.0)});
  for (float& v : rows.back().logits) v = std::round(v);
  rows.push_back({"all equal", std::vector<float>(static_cast<std::size_t>(n), -7.25f)});
  rows.push_back({"two levels", std::vector<float>(static_cast<std::size_t>(n), 0.0f)});
  for (std::size_t i = 0; i < rows.back().logits.size(); i += 3) rows.back().logits[i] = -0.0f;
  for (std::size_t i = 1; i < rows.back().logits.size(); i += 3) rows.back().logits[i] = -0.5f;
  rows.push_back({"half forbidden", random.normals(n, 1.0)});
  for (std::size_t i = 0; i < rows.back().logits.size(); i += 2) rows.back().logits[i] = kNever;
  rows.push_back({"one huge", random.normals(n, 1.0)});
  rows.back().logits[static_cast<std::size_t>(n / 2)] = std::numeric_limits<float>::max();
  rows.push_back({"one infinite", random.normals(n, 1.0)});
  rows.back().logits[static_cast<std::size_t>(n / 3)] = -kNever;
  rows.push_back({"one survivor", std::vector<float>(static_cast<std::size_t>(n), kNever)});
  rows.back().logits[static_cast<std::size_t>(n - 1)] = -1e30f;
  rows.push_back({"none", std::vector<float>(static_cast<std::size_t>(n), kNever)});
  constexpr float kNoNumber = std::numeric_limits<float>::quiet_NaN();
  rows.push_back({"no numbers", std::vector<float>(static_cast<std::size_t>(n), kNoNumber)});
  rows.push_back({"no numbers among others", random.normals(n, 1.0)});
  for (std::size_t i = 0; i < rows.back().logits.size(); i += 3) {
    rows.back().logits[i] = i % 2 == 0 ? kNoNumber : -kNoNumber;
  }
  rows.push_back({"neighbours", std::vector<float>(static_cast<std::size_t>(n), 1.0f)});
  for (std::size_t i = 1; i < rows.back().logits.size(); ++i) {  // one unit in the last place apart, 64 times
    rows.back().logits[i] = std::nextafter(i % 64 == 0 ? 1.0f : rows.back().logits[i - 1], 0.0f);
  }
  return rows;
}

/// Settings for rows of n logits; the row and the key are the caller's to fill in.
inline std::vector<DrawSettings> draw_settings(std::int64_t n, Random& random) {
  std::vector<DrawSettings> all;
  const auto with = [&](auto&& change) { change(all.emplace_back()); };
  with([](DrawSettings&) {});
  with([](DrawSettings& d) { d.scale = 0.0f; });
  with([](DrawSettings& d) { d.scale = 1e30f; });
  with([](DrawSettings& d) { d.scale = 1e-4f; });
  with([&](DrawSettings& d) { d.scale = 0.0f, d.top_k = 5, d.forbidden = static_cast<std::int32_t>(n / 2); });
  for (const double p : {0.0, 1e-9, 0.3, 0.5, 0.95, 1.0 - 0x1p-53}) {
    with([p](DrawSettings& d) { d.top_p = p; });
    with([p](DrawSettings& d) { d.top_p = p, d.top_k = 7, d.scale = 1.25f; });
    with([p, n](DrawSettings& d) {
      d.top_p = p, d.forbidden = static_cast<std::int32_t>(n / 2), d.scale = 0.1f;
    });
  }
  for (const double p : {1e-13, 0.05, 1.0}) {
    with([p](DrawSettings& d) { d.min_p = p; });
    with([p, n](DrawSettings& d) { d.min_p = p, d.top_p = 0.9, d.top_k = n > 40 ? 40 : 7; });
    with([p](DrawSettings& d) { d.min_p = p, d.top_p = 0.8, d.scale = 2.0f; });
  }
  for (const std::int64_t k : {std::int64_t{1}, std::int64_t{40}, std::int64_t{1000}, n - 1}) {
    if (k >= n || k > 1024) continue;
    with([k](DrawSettings& d) { d.top_k = static_cast<std::int32_t>(k); });
    with([&](DrawSettings& d) { d.top_k = static_cast<std::int32_t>(k), d.forbidden = 0, d.top_p = 0.7; });
  }
  for (DrawSettings& draw : all) {
    draw.seed = static_cast<std::uint64_t>(random.range(0, 1 << 30)) << 31;
    draw.position = static_cast<std::uint32_t>(random.range(0, 1000));
    draw.sample = static_cast<std::uint32_t>(random.range(0, 3));
  }
  return all;
}

/// draw_of(rows, n, settings) gives an id for each of `settings`, each of one of the rows of n logits;
/// expected_of(row, settings) what it should be.
template <class DrawOf, class Expected>
void check_draws(std::int64_t n, const DrawOf& draw_of, const Expected& expected_of) {
  Random random(static_cast<std::uint64_t>(n));
  const auto rows = draw_rows(n, random);
  std::vector<float> together;
  std::vector<DrawSettings> settings;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    together.insert(together.end(), rows[r].logits.begin(), rows[r].logits.end());
    for (DrawSettings draw : draw_settings(n, random)) {
      draw.row = static_cast<std::int32_t>(r);
      settings.push_back(draw);
    }
  }
  const std::vector<std::int32_t> ids = draw_of(together, n, settings);
  REQUIRE(ids.size() == settings.size());
  for (std::size_t i = 0; i < settings.size(); ++i) {
    const DrawRow& row = rows[static_cast<std::size_t>(settings[i].row)];
    CAPTURE(n);
    CAPTURE(row.name);
    CAPTURE(i);
    CAPTURE(settings[i].scale);
    CAPTURE(settings[i].top_k);
    CAPTURE(settings[i].top_p);
    CAPTURE(settings[i].min_p);
    CHECK(ids[i] == expected_of(row.logits, settings[i]));
  }
}

}  // namespace inkling::test
