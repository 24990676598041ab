// What the ops of attention/ check alike. Every check that passes builds no string. Internal to attention/.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include "engine/base/error.h"
#include "engine/tensor.h"

namespace inkling {

/// The checks of one op: Error{usage} "op: argument: expected …, got …".
struct ArgumentChecks {
  const char* op;

  /// `text` is a literal, or a callable where it has figures.
  template <class Text>
  void operator()(bool ok, const char* argument, const Text& text) const {
    require(ok, Code::usage, [&] {
      std::string message = std::string(op) + ": " + argument + ": ";
      if constexpr (std::is_invocable_v<Text>) {
        message += text();
      } else {
        message += text;
      }
      return message;
    });
  }

  /// (rows, heads, dim) with the elements of a head side by side.
  void heads(const TensorView& view, const char* argument, std::int64_t heads, std::int64_t dim) const {
    (*this)(
        view.rank == 3 && view.shape[1] == heads && view.shape[2] == dim && (dim == 1 || view.stride[2] == 1),
        argument, [&] {
          return "expected (rows, " + std::to_string(heads) + ", " + std::to_string(dim) +
                 ") with unit last stride, got " + view.shape_string() +
                 (view.rank == 3 ? " with " + std::to_string(view.stride[2]) : "");
        });
  }

  /// B + 1 offsets that rise from 0.
  void offsets(std::span<const std::int32_t> cu, const char* argument, std::int64_t batch) const {
    (*this)(rising(cu, batch), argument, [&] {
      return "expected " + std::to_string(batch + 1) + " offsets rising from 0, got " + text(cu);
    });
  }
  /// The same, to `rows`.
  void offsets(std::span<const std::int32_t> cu, const char* argument, std::int64_t batch,
               std::int64_t rows) const {
    (*this)(rising(cu, batch) && cu.back() == rows, argument, [&] {
      return "expected " + std::to_string(batch + 1) + " offsets rising from 0 to " + std::to_string(rows) +
             ", got " + text(cu);
    });
  }

  /// An address, unless there is nothing to lie there.
  void memory(const TensorView& view, const char* argument) const {
    (*this)(view.data != nullptr || view.numel() == 0, argument,
            [&] { return "expected memory for " + view.shape_string() + ", got a null address"; });
  }

 private:
  static bool rising(std::span<const std::int32_t> cu, std::int64_t batch) {
    return static_cast<std::int64_t>(cu.size()) == batch + 1 && !cu.empty() && cu.front() == 0 &&
           std::ranges::is_sorted(cu);
  }
  static std::string text(std::span<const std::int32_t> cu) {
    if (cu.empty()) return "none";
    std::string text = std::to_string(cu.size()) + " from " + std::to_string(cu.front()) + " to " +
                       std::to_string(cu.back());
    const auto falls = std::ranges::is_sorted_until(cu);
    return falls == cu.end() ? text : text + ", falling at " + std::to_string(falls - cu.begin());
  }
};

}  // namespace inkling
