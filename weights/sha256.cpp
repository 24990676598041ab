#include "weights/sha256.h"

#include <openssl/evp.h>

#include <algorithm>
#include <map>

#include "weights/file.h"
#include "weights/guard.h"
#include "weights/sharded.h"

namespace inkling {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kPiece = std::size_t{1} << 20;
constexpr std::size_t kHexDigits = 64;
constexpr std::size_t kMaxManifestBytes = std::size_t{1} << 20;
constexpr std::string_view kScheme = "sha256:";

// `text` in lower case when it is 64 hexadecimal digits, or else nothing.
std::string parse_hex(std::string_view text) {
  if (text.size() != kHexDigits) return {};
  std::string hex(text);
  for (char& c : hex) {
    if (c >= 'A' && c <= 'F') c = static_cast<char>(c - 'A' + 'a');
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return {};
  }
  return hex;
}

Result<void> verify_file(const fs::path& path, const std::string& expected) {
  const auto got = sha256_file(path);
  if (!got) return got.error();
  if (*got != expected) return weights::malformed(path.string(), "sha256", expected, *got);
  return {};
}

using Manifest = std::map<std::string, std::string, std::less<>>;  // file name → hash

// Lines "HEX  NAME" or "HEX *NAME" (binary mode); blank lines and #-comments are skipped. Names stay in the
// folder.
Result<Manifest> read_manifest(const fs::path& path) {
  const auto text = weights::read_text(path, kMaxManifestBytes);
  if (!text) return text.error();
  Manifest manifest;
  std::size_t number = 0;
  for (std::string_view rest = *text; !rest.empty();) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with('#')) continue;
    const std::string hex = parse_hex(line.substr(0, kHexDigits));
    const std::string_view gap = line.substr(std::min(kHexDigits, line.size()), 2);
    std::string name(line.substr(std::min(kHexDigits + 2, line.size())));
    if (name.starts_with("./")) name.erase(0, 2);
    const bool plain = !name.empty() && name.find_first_of("/\\") == name.npos && name != "." && name != "..";
    const bool fine = !hex.empty() && (gap == "  " || gap == " *") && plain;
    if (!fine || !manifest.emplace(std::move(name), hex).second) {
      return weights::malformed(path.string(), "line " + std::to_string(number),
                                "64 hexadecimal digits, two spaces and a file name of its own",
                                in_quotes(line));
    }
  }
  return manifest;
}

Result<void> verify_manifest(const fs::path& model, const fs::path& manifest_path) {
  const auto manifest = read_manifest(manifest_path);
  if (!manifest) return manifest.error();
  std::error_code failed;
  const auto location = locate_weights(model);
  if (!location) return location.error();
  const bool is_folder = fs::is_directory(model, failed);
  std::vector<fs::path> wanted = location->files;
  if (!is_folder && location->index_path) wanted.push_back(*location->index_path);
  for (const fs::path& file : wanted) {
    const auto line = manifest->find(file.filename().string());
    if (line == manifest->end()) {
      return weights::malformed(manifest_path.string(), file.filename().string(), "a line for this file",
                                "none");
    }
    if (auto same = verify_file(file, line->second); !same) return same;
  }
  if (!is_folder) return {};
  for (const auto& [name, hash] : *manifest) {
    const fs::path file = model / name;
    if (std::ranges::find(wanted, file) != wanted.end()) continue;
    if (auto same = verify_file(file, hash); !same) return same;
  }
  return {};
}

}  // namespace

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  State() {
    if (context == nullptr) throw std::bad_alloc();
    require(EVP_DigestInit_ex(context, EVP_sha256(), nullptr) == 1, Code::internal,
            [] { return "sha256: libcrypto refuses to start"; });
  }
  ~State() { EVP_MD_CTX_free(context); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

Sha256::Sha256() : state_(std::make_unique<State>()) {}
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;
Sha256::~Sha256() = default;

void Sha256::update(std::span<const std::byte> bytes) {
  require(EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()) == 1, Code::internal,
          [] { return "sha256: libcrypto refuses to go on"; });
}

std::string Sha256::finish() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  require(EVP_DigestFinal_ex(state_->context, digest, &length) == 1 && length == kHexDigits / 2,
          Code::internal, [] { return "sha256: libcrypto refuses to finish"; });
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string hex;
  for (unsigned int i = 0; i < length; ++i) {
    hex += kDigits[digest[i] >> 4];
    hex += kDigits[digest[i] & 15u];
  }
  return hex;
}

Result<std::string> sha256_file(const fs::path& path) {
  return weights::guarded(path, [&]() -> Result<std::string> {
    auto file = weights::InputFile::open(path);
    if (!file) return file.error();
    Sha256 hash;
    std::vector<std::byte> piece(kPiece);
    for (;;) {
      const auto got = file->read(piece);
      if (!got) return got.error();
      if (*got == 0) return hash.finish();
      hash.update(std::span(piece).first(*got));
    }
  });
}

Result<std::vector<FileHash>> hash_weight_files(const fs::path& folder_or_file) {
  return weights::guarded(folder_or_file, [&]() -> Result<std::vector<FileHash>> {
    const auto location = locate_weights(folder_or_file);
    if (!location) return location.error();
    std::vector<FileHash> hashes;
    for (const fs::path& file : location->files) {
      auto hash = sha256_file(file);
      if (!hash) return hash.error();
      hashes.push_back({file, *std::move(hash)});
    }
    return hashes;
  });
}

Result<void> verify(const fs::path& folder_or_file, std::string_view expected) {
  return weights::guarded(folder_or_file, [&]() -> Result<void> {
    if (!expected.starts_with(kScheme)) return verify_manifest(folder_or_file, fs::path(expected));
    const std::string hex = parse_hex(expected.substr(kScheme.size()));
    if (hex.empty()) {
      return Error(Code::usage,
                   "verify: expected sha256: and 64 hexadecimal digits, got \"" + shown(expected) + '"');
    }
    const auto location = locate_weights(folder_or_file);
    if (!location) return location.error();
    if (location->files.size() != 1) {
      return Error(Code::usage, "verify: " + folder_or_file.string() + ": expected a manifest for " +
                                    std::to_string(location->files.size()) + " shards, got one hash");
    }
    return verify_file(location->files.front(), hex);
  });
}

}  // namespace inkling
