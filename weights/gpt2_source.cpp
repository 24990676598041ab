#include "weights/gpt2_source.h"

#include <cstring>

#include "weights/file.h"
#include "weights/guard.h"

namespace inkling {
namespace {

namespace fs = std::filesystem;

// Calls visit(TensorView&) for each tensor that is present.
template <class Tensors, class Visit>
void for_each_tensor(Tensors& tensors, Visit&& visit) {
  const auto present = [&](auto&... views) { ((views.data != nullptr ? visit(views) : void()), ...); };
  present(tensors.wte, tensors.wpe, tensors.lnf_w, tensors.lnf_b, tensors.lm_head);
  for (auto& l : tensors.layers) {
    present(l.ln1_w, l.ln1_b, l.attn_w, l.attn_b, l.proj_w, l.proj_b, l.ln2_w, l.ln2_b, l.fc_w, l.fc_b,
            l.fcproj_w, l.fcproj_b);
  }
}

Result<ModelConfig> read_config(const fs::path& folder) {
  const fs::path path = folder / "config.json";
  const auto text = weights::read_text(path, kMaxConfigBytes);
  if (!text) return text.error();
  return parse_config_json(*text, path.string());
}

Result<PublishedGeneration> read_generation_config(const fs::path& folder, std::int64_t vocab_size) {
  const fs::path path = folder / "generation_config.json";
  std::error_code failed;
  if (!fs::exists(path, failed)) return PublishedGeneration{};
  const auto text = weights::read_text(path, kMaxConfigBytes);
  if (!text) return text.error();
  return parse_generation_config_json(*text, path.string(), vocab_size);
}

}  // namespace

Result<Gpt2Source> Gpt2Source::open(const fs::path& folder_or_file, const OpenOptions& options) {
  return weights::guarded(folder_or_file, [&]() -> Result<Gpt2Source> {
    auto files = WeightFiles::open(folder_or_file);
    if (!files) return files.error();
    Gpt2Source source(*std::move(files));
    const std::string& name = source.files_.name();

    const auto stated = options.override ? Result(*options.override) : read_config(source.files_.folder());
    if (!stated) return stated.error();
    source.config_ = *stated;
    const BiasRule rule = options.override ? BiasRule::as_found : BiasRule::as_stated;
    auto tensors = match_gpt2(source.files_.tensors(), source.config_, rule, name);
    if (!tensors) return tensors.error();
    source.tensors_ = *std::move(tensors);
    auto generation = read_generation_config(source.files_.folder(), source.config_.vocab_size);
    if (!generation) return generation.error();
    source.generation_ = *std::move(generation);
    for_each_tensor(source.tensors_, [&](const TensorView& view) { source.tensor_bytes_ += view.nbytes(); });
    if (auto aligned = source.align(options.max_memory); !aligned) return aligned.error();
    return source;
  });
}

// Files from careful writers need nothing here. A view that no typed pointer may look through is moved.
Result<void> Gpt2Source::align(std::uint64_t max_memory) {
  std::vector<TensorView*> unaligned;
  std::uint64_t bytes = 0;
  for_each_tensor(tensors_, [&](TensorView& view) {
    if (reinterpret_cast<std::uintptr_t>(view.data) % dtype_size(view.dtype) == 0) return;
    unaligned.push_back(&view);
    bytes += view.nbytes();
  });
  if (max_memory != 0 && bytes > max_memory) {
    return Error(Code::out_of_memory, files_.name() + ": unaligned tensors: expected at most " +
                                          std::to_string(max_memory) + " bytes (max-memory) to copy, got " +
                                          std::to_string(bytes));
  }
  for (TensorView* view : unaligned) {
    Buffer copy(view->nbytes());
    std::memcpy(copy.data(), view->data, view->nbytes());
    view->data = copy.data();
    copies_.push_back(std::move(copy));
  }
  return {};
}

}  // namespace inkling
