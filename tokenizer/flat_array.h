// FlatArray: elements that are the array's own, or that lie in memory which someone else keeps.
#pragma once

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

namespace inkling {

/// Move-only. A view must not outlive what it was made of. Reading is thread-safe.
template <class T>
class FlatArray {
 public:
  FlatArray() = default;
  explicit FlatArray(std::vector<T> own) : own_(std::move(own)), elements_(own_) {}
  explicit FlatArray(std::span<const T> elsewhere) : elements_(elsewhere) {}
  FlatArray(FlatArray&& other) noexcept
      : own_(std::move(other.own_)), elements_(std::exchange(other.elements_, {})) {}
  FlatArray& operator=(FlatArray&& other) noexcept {
    own_ = std::move(other.own_);
    elements_ = std::exchange(other.elements_, {});
    return *this;
  }
  ~FlatArray() = default;

  std::size_t size() const noexcept { return elements_.size(); }
  const T& operator[](std::size_t i) const noexcept { return elements_[i]; }
  std::span<const T> elements() const noexcept { return elements_; }
  /// To be written to; empty for a view.
  std::span<T> own() noexcept { return own_; }

 private:
  std::vector<T> own_;
  std::span<const T> elements_;  // of own_, which keeps its address when it moves, or elsewhere
};

}  // namespace inkling
