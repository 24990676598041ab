#include "tokenizer/stop_matcher.h"

namespace inkling {

Result<StopMatcher> StopMatcher::create(std::span<const std::string> stop_strings) {
  StopMatcher matcher;
  std::size_t total = 0;
  for (std::size_t i = 0; i < stop_strings.size(); ++i) {
    const std::string& stop = stop_strings[i];
    if (stop.empty())
      return Error(Code::usage, "stop[" + std::to_string(i) + "]: expected text, got nothing");
    total += stop.size();
    if (total > kMaxStopBytes) {
      return Error(Code::usage,
                   "stop: expected at most " + std::to_string(kMaxStopBytes) + " bytes in all, got more");
    }
    matcher.insert(stop, static_cast<std::uint32_t>(i));
  }
  matcher.link();
  return matcher;
}

std::uint32_t StopMatcher::child(std::uint32_t node, unsigned char byte) const noexcept {
  std::uint32_t at = nodes_[node].first_child;
  while (at != 0 && nodes_[at].byte != byte) at = nodes_[at].next_sibling;
  return at;  // the root is nobody's child, so 0 means none
}

void StopMatcher::insert(std::string_view stop, std::uint32_t index) {
  std::uint32_t node = 0;
  for (const char c : stop) {
    const auto byte = static_cast<unsigned char>(c);
    std::uint32_t next = child(node, byte);
    if (next == 0) {
      next = static_cast<std::uint32_t>(nodes_.size());
      nodes_.push_back(
          {.next_sibling = nodes_[node].first_child, .depth = nodes_[node].depth + 1, .byte = byte});
      nodes_[node].first_child = next;
    }
    node = next;
  }
  if (nodes_[node].stop_length != 0) return;  // the same stop string twice: the first one is reported
  nodes_[node].stop_length = static_cast<std::uint32_t>(stop.size());
  nodes_[node].stop_index = index;
}

// Breadth first, so that the failure link of a node, which is less deep, is final when it is used.
void StopMatcher::link() {
  std::vector<std::uint32_t> queue{0};
  for (std::size_t head = 0; head < queue.size(); ++head) {
    const std::uint32_t node = queue[head];
    for (std::uint32_t at = nodes_[node].first_child; at != 0; at = nodes_[at].next_sibling) {
      queue.push_back(at);
      if (node == 0) continue;
      std::uint32_t fail = nodes_[node].fail;
      while (fail != 0 && child(fail, nodes_[at].byte) == 0) fail = nodes_[fail].fail;
      nodes_[at].fail = child(fail, nodes_[at].byte);
      if (nodes_[at].stop_length == 0) {  // a shorter stop string may end here
        nodes_[at].stop_length = nodes_[nodes_[at].fail].stop_length;
        nodes_[at].stop_index = nodes_[nodes_[at].fail].stop_index;
      }
    }
  }
}

std::string_view StopMatcher::push(std::string_view text) {
  text_.erase(0, shown_);
  shown_ = 0;
  if (matched_) return {};
  for (const char c : text) {
    text_ += c;
    const auto byte = static_cast<unsigned char>(c);
    std::uint32_t next = child(state_, byte);
    while (next == 0 && state_ != 0) {
      state_ = nodes_[state_].fail;
      next = child(state_, byte);
    }
    state_ = next;
    if (nodes_[state_].stop_length != 0) {
      matched_ = nodes_[state_].stop_index;
      text_.resize(text_.size() - nodes_[state_].stop_length);
      shown_ = text_.size();
      return text_;
    }
  }
  shown_ = text_.size() - nodes_[state_].depth;
  return std::string_view(text_).substr(0, shown_);
}

std::string_view StopMatcher::finish() {
  text_.erase(0, shown_);
  shown_ = text_.size();
  state_ = 0;
  return text_;
}

void StopMatcher::reset() noexcept {
  text_.clear();
  shown_ = 0;
  state_ = 0;
  matched_.reset();
}

}  // namespace inkling
