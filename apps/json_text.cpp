#include "apps/json_text.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "apps/console.h"

namespace inkling::app {

std::string json_string(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string json_number(double value) {
  return std::isfinite(value) ? format("%.9g", value) : "null";
}

std::string id_list(std::span<const std::int32_t> ids) {
  std::string out = "[";
  for (const std::int32_t id : ids) out += (out.size() == 1 ? "" : ",") + std::to_string(id);
  return out + "]";
}

void JsonRows::write(std::string_view object) {
  const char* before = shape_ == Shape::lines ? "" : any_ ? ",\n" : "[";
  any_ = true;
  Console::write(before + std::string(object) + (shape_ == Shape::lines ? "\n" : ""));
}

void JsonRows::finish() {
  if (shape_ == Shape::array) Console::write(any_ ? "]\n" : "[]\n");
}

}  // namespace inkling::app
