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
    return Error(Code::usage, std::string(path) + ": " + weights::shown(name) + ": " + std::string(why));
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

// Length and JSON. Throws nlohmann's type_error when a name is not UTF-8.
std::string header_text(const Order& order, const Metadata& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  for (const auto& [key, value] : metadata) header["__metadata__"][key] = value;
  std::uint64_t offset = 0;
  for (const NamedTensor* tensor : order) {
    const TensorView& view = tensor->view;
    const std::span shape(view.shape.data(), view.rank);
    auto& entry = header[tensor->name];
    entry["dtype"] = weights::safetensors_dtype(view.dtype);
    entry["shape"] = std::vector<std::int64_t>(shape.begin(), shape.end());
    entry["data_offsets"] = {offset, offset + view.nbytes()};
    offset += view.nbytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // tensors start aligned to 8 bytes
  const std::uint64_t length = text.size();
  char prefix[sizeof length];
  std::memcpy(prefix, &length, sizeof length);
  return std::string(prefix, sizeof prefix) + text;
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
