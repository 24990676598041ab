// libFuzzer: any bytes as a safetensors file; what opens must have its views inside the bytes, and must
// survive being taken for a GPT-2.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "weights/gpt2_source.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto file = inkling::SafetensorsFile::from_bytes(bytes, "fuzz");
  if (!file) return file.error().code() == inkling::Code::malformed ? 0 : (std::abort(), 0);
  std::vector<const inkling::NamedTensor*> tensors;
  std::size_t next = size;
  for (const inkling::NamedTensor& tensor : file->tensors()) next -= tensor.view.nbytes();
  for (const inkling::NamedTensor& tensor : file->tensors()) {
    if (tensor.view.data != data + next || file->find(tensor.name) != &tensor) std::abort();
    next += tensor.view.nbytes();
    tensors.push_back(&tensor);
  }
  if (next != size) std::abort();
  for (const auto rule : {inkling::BiasRule::as_found, inkling::BiasRule::as_stated}) {
    inkling::ModelConfig config;
    config.n_head = 1;
    const auto model = inkling::match_gpt2(tensors, config, rule, "fuzz");
    if (model && !config.validate()) std::abort();
  }
  return 0;
}
