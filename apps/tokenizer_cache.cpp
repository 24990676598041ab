#include "apps/tokenizer_cache.h"

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "weights/atomic_file.h"
#include "weights/file.h"

namespace inkling::app {
namespace {

constexpr std::size_t kSmall = std::size_t{256} << 10;  // of files: 4 ms
constexpr std::size_t kAlignment = 64;

}  // namespace

Result<Tokenizer> TokenizerCache::load() {
  locate();
  if (auto tokenizer = find()) {
    found_ = true;
    return *std::move(tokenizer);
  }
  return Tokenizer::load(tokenizer_);
}

// Before the files are read: if they change meanwhile, what is kept is of no use to anybody.
void TokenizerCache::locate() {
  if (folder_.empty()) return;
  const auto files = Tokenizer::files(tokenizer_);
  if (!files) return;
  std::string header = "INKLTOKF\n", paths;
  std::size_t size = 0;
  for (const std::filesystem::path& file : *files) {
    const auto identity = weights::FileIdentity::of(file);
    if (!identity) return;
    size += identity->size;
    paths += identity->path.string() + '\n';
    header += identity->text + '\n';
  }
  if (size < kSmall) return;
  header.resize((header.size() + kAlignment) / kAlignment * kAlignment);  // at least one NUL
  header_ = std::move(header);
  file_ = folder_ / (weights::name_of(paths) + ".tokenizer");
}

std::optional<Tokenizer> TokenizerCache::find() const {
  if (file_.empty()) return std::nullopt;
  auto map = weights::FileMap::open(file_);
  if (!map || map->bytes().size() < header_.size()) return std::nullopt;
  const auto owner = std::make_shared<const weights::FileMap>(std::move(*map));
  const std::span<const std::byte> bytes = owner->bytes();
  if (std::memcmp(bytes.data(), header_.data(), header_.size()) != 0) return std::nullopt;
  auto tokenizer = Tokenizer::from_image(bytes.subspan(header_.size()), owner);
  return tokenizer ? std::optional(*std::move(tokenizer)) : std::nullopt;
}

void TokenizerCache::keep(const Tokenizer& tokenizer) const {
  if (file_.empty() || found_) return;
  const std::vector<std::byte> image = tokenizer.image();
  if (image.empty()) return;  // of another kind
  make_folder(file_.parent_path()).value();
  remove_leftovers(file_);
  auto file = AtomicFile::create(file_).value();
  file.write(header_).value();
  file.write(image).value();
  file.commit().value();
}

}  // namespace inkling::app
