#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <tuple>

#include "weights/atomic_file.h"
#include "weights/guard.h"
#include "weights/safetensors.h"
#include "weights/safetensors_header.h"

namespace inkling {
namespace {

using Order = std::vector<const NamedTensor*>;

// By dtype, widest first, so that every tensor is aligned; then by name, so that equal tensors make equal
// files.
Order file_order(std::span<const NamedTensor> tensors) {
  Order order;
  for (const NamedTensor& tensor : tensors) order.push_back(&tensor);
  std::ranges::sort(order, {}, [](const NamedTensor* tensor) {
    return std::tuple(-weights::safetensors_dtype_rank(tensor->view.dtype), std::string_view(tensor->name));
  });
  return order;
}

Result<void> check_writable(std::span<const NamedTensor> tensors, std::string_view path) {
  const auto refuse = [&](std::string_view name, std::string_view why) {
    return Error(Code::usage, std::string(path) + ": " + shown(name) + ": " + std::string(why));
  };
  std::vector<std::string_view> names;
  for (const NamedTensor& tensor : tensors) {
    if (tensor.name == "__metadata__")
      return refuse(tensor.name, "expected another name, got the reserved one");
    if (!tensor.view.contiguous())
      return refuse(tensor.name, "expected a contiguous tensor, got a strided one");
    names.push_back(tensor.name);
  }
  std::ranges::sort(names);
  const auto twice = std::ranges::adjacent_find(names);
  if (twice != names.end()) return refuse(*twice, "expected the name once, got it twice");
  return {};
}

// A JSON string. Throws nlohmann's type_error when `text` is not UTF-8.
std::string json_string(std::string_view text) {
  return nlohmann::json(text).dump();
}

// Length and JSON. By hand, since nlohmann's DOM crashes when memory runs out halfway through an object.
std::string header_text(const Order& order, const Metadata& metadata) {
  std::string text = "{";
  const auto comma = [&text] { text += text.ends_with('{') ? "" : ","; };
  if (!metadata.empty()) {
    text += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      comma();
      text += json_string(key) + ':' + json_string(value);
    }
    text += '}';
  }
  std::uint64_t offset = 0;
  for (const NamedTensor* tensor : order) {
    const TensorView& view = tensor->view;
    comma();
    text += json_string(tensor->name) + ":{\"dtype\":\"" +
            std::string(weights::safetensors_dtype(view.dtype)) + "\",\"shape\":[";
    for (std::size_t axis = 0; axis < view.rank; ++axis) {
      text += (axis == 0 ? "" : ",") + std::to_string(view.shape[axis]);
    }
    const std::uint64_t end = offset + view.nbytes();
    text += "],\"data_offsets\":[" + std::to_string(offset) + ',' + std::to_string(end) + "]}";
    offset = end;
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');  // tensors start aligned to 8 bytes
  const std::uint64_t length = text.size();
  std::string prefix(sizeof length, '\0');
  std::memcpy(prefix.data(), &length, sizeof length);
  return prefix + text;
}

}  // namespace

Result<void> write_safetensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors,
                               const Metadata& metadata) {
  return weights::guarded(path, [&]() -> Result<void> {
    const std::string name = path.string();
    if (auto writable = check_writable(tensors, name); !writable) return writable;
    const Order order = file_order(tensors);
    std::string header;
    try {
      header = header_text(order, metadata);
    } catch (const nlohmann::json::type_error&) {
      return Error(Code::usage, name + ": names: expected UTF-8");
    }
    auto file = AtomicFile::create(path);
    if (!file) return file.error();
    if (auto wrote = file->write(header); !wrote) return wrote;
    for (const NamedTensor* tensor : order) {
      const auto* data = static_cast<const std::byte*>(tensor->view.data);
      if (auto wrote = file->write(std::span(data, tensor->view.nbytes())); !wrote) return wrote;
    }
    return file->commit();
  });
}

}  // namespace inkling
