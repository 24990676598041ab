// Reader and writer agree with each other and with Python's safetensors.
#include <doctest/doctest.h>

#include <algorithm>

#include "tests/weights/fixtures.h"
#include "weights/safetensors.h"

namespace inkling::test {
namespace {

const std::filesystem::path golden() {
  return source_dir() / "tests" / "golden" / "weights.safetensors";
}

// The value that make_weights_golden.py gives element i.
template <class T>
T golden_value(std::int64_t i) {
  if constexpr (std::is_same_v<T, std::uint8_t>) {
    return static_cast<T>(i);
  } else if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(i - 1);
  } else {
    return T(static_cast<float>(i) / 2 - 1);
  }
}

template <class T>
void check_golden(const SafetensorsFile& file, std::string_view name) {
  CAPTURE(name);
  const NamedTensor* tensor = file.find(name);
  REQUIRE(tensor != nullptr);
  CHECK(tensor->view.shape_string() == "[2, 3]");
  for (std::int64_t i = 0; i < 6; ++i) {
    const T got = tensor->view.as<T>()[i];
    CHECK(static_cast<double>(static_cast<float>(got)) ==
          static_cast<double>(static_cast<float>(golden_value<T>(i))));
  }
}

TEST_CASE("[golden] the reader sees what Python wrote") {
  const auto file = SafetensorsFile::open(golden());
  REQUIRE_MESSAGE(file, (file ? "" : file.error().message()));
  check_golden<double>(*file, "f64");
  check_golden<float>(*file, "f32");
  check_golden<f16>(*file, "f16");
  check_golden<bf16>(*file, "bf16");
  check_golden<std::int64_t>(*file, "i64");
  check_golden<std::int32_t>(*file, "i32");
  check_golden<std::int8_t>(*file, "i8");
  check_golden<std::uint8_t>(*file, "u8");
  CHECK(file->find("i16")->view.dtype == DType::i16);
  CHECK(file->find("bool")->view.dtype == DType::boolean);
  CHECK(file->find("scalar")->view.rank == 0);
  CHECK(*file->find("scalar")->view.as<float>() == -1.0f);
  CHECK(file->find("nothing")->view.shape_string() == "[0, 4]");
  CHECK(file->find("name \"quoted\", é") != nullptr);
  CHECK(file->find("f3") == nullptr);
  CHECK(file->metadata() == Metadata{{"format", "pt"}});
  CHECK(file->tensors().size() == 13);
}

TEST_CASE("[golden] the writer writes what Python writes, byte for byte, whatever the order") {
  const auto file = SafetensorsFile::open(golden());
  REQUIRE(file);
  TempDir dir;
  std::vector<NamedTensor> tensors(file->tensors().begin(), file->tensors().end());
  for (int turn = 0; turn < 2; ++turn) {
    REQUIRE(write_safetensors(dir / "copy.safetensors", tensors, file->metadata()));
    CHECK(content_of(dir / "copy.safetensors") == content_of(golden()));
    std::ranges::reverse(tensors);
  }
  CHECK(dir.files() == 1);
}

TEST_CASE("an empty file of tensors is a file") {
  TempDir dir;
  REQUIRE(write_safetensors(dir / "none.safetensors", {}));
  const auto file = SafetensorsFile::open(dir / "none.safetensors");
  REQUIRE(file);
  CHECK(file->tensors().empty());
  CHECK(file->find("") == nullptr);
}

TEST_CASE("legal oddities are read") {
  const std::string wide = R"("a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]})";
  const std::vector<std::pair<std::string, std::size_t>> headers = {
      {"{" + wide + "}", 1},
      {"{" + wide + "}   ", 1},
      {"{ \"a\" :\n{\"data_offsets\":[0,2], \"shape\":[2],\"dtype\":\"U8\"} }", 1},
      {"{\"__metadata__\":{}," + wide + "}", 1},
      {"{" + wide + R"(,"z":{"dtype":"F32","shape":[0],"data_offsets":[2,2]}})", 2},
      {R"({"z":{"dtype":"F32","shape":[3,0],"data_offsets":[0,0]},)" + wide + "}", 2},
      {R"({"s":{"dtype":"U8","shape":[],"data_offsets":[1,2]},"t":{"dtype":"I8","shape":[1,1,1,1],"data_offsets":[0,1]}})",
       2},
  };
  for (const auto& [header, count] : headers) {
    CAPTURE(header);
    const std::string bytes = safetensors_file(header, "xy");
    const auto file = SafetensorsFile::from_bytes(bytes_of(bytes), "odd");
    REQUIRE_MESSAGE(file, (file ? "" : file.error().message()));
    CHECK(file->tensors().size() == count);
    CHECK(file->file_bytes() == bytes.size());
  }
}

TEST_CASE("views lie in file order, and releasing pages never hurts") {
  TempDir dir;
  const TinyModel model;
  model.save(dir / "m.safetensors");
  const auto file = SafetensorsFile::open(dir / "m.safetensors");
  REQUIRE(file);
  const std::byte* next = static_cast<const std::byte*>(file->tensors().front().view.data);
  for (const NamedTensor& tensor : file->tensors()) {
    CHECK(tensor.view.data == next);
    next += tensor.view.nbytes();
  }
  const TensorView foreign = model.tensors.front().view;
  std::vector<std::byte> before(foreign.nbytes());
  std::memcpy(before.data(), foreign.data, before.size());
  for (const NamedTensor& tensor : file->tensors()) file->release(tensor.view);
  file->release(foreign);
  file->release(TensorView());
  CHECK(std::memcmp(before.data(), foreign.data, before.size()) == 0);
  for (const NamedTensor& tensor : model.tensors)
    CHECK(same_bytes(file->find(tensor.name)->view, tensor.view));
}

TEST_CASE("released pages leave the memory of the process") {
  constexpr std::int64_t kMiB = 16;
  TempDir dir;
  const Tensor large(DType::u8, {kMiB << 20});
  std::memset(large.view().data, 1, large.nbytes());
  REQUIRE(write_safetensors(dir / "m.safetensors", std::vector<NamedTensor>{{"large", large.view()}}));
  const auto file = SafetensorsFile::open(dir / "m.safetensors");
  REQUIRE(file);
  const TensorView view = file->find("large")->view;
  const auto mapped_mib = [] {  // of files, in memory: the third figure of statm, in pages
    std::int64_t size = 0, resident = 0, shared = 0;
    std::ifstream("/proc/self/statm") >> size >> resident >> shared;
    return shared * ::sysconf(_SC_PAGESIZE) >> 20;
  };
  const std::int64_t before = mapped_mib();
  CHECK(std::memcmp(view.data, large.view().data, large.nbytes()) == 0);
  CHECK(mapped_mib() - before >= kMiB - 1);
  file->release(view);
  CHECK(mapped_mib() - before <= 1);
  CHECK(std::memcmp(view.data, large.view().data, large.nbytes()) == 0);
}

TEST_CASE("a file is what was opened, whatever its name leads to now") {
  TempDir dir;
  const TinyModel model;
  model.save(dir / "a");
  const auto opened = SafetensorsFile::open(dir / "a").value();
  CHECK(opened.identity().path == std::filesystem::canonical(dir / "a"));
  CHECK(opened.identity().size == opened.file_bytes());
  CHECK(opened.identity().text == weights::FileIdentity::of(dir / "a").value().text);
  const auto held = weights::InputFile::open(dir / "a").value();
  std::filesystem::remove(dir / "a");
  CHECK(weights::FileIdentity::of(dir / "a").error().code() == Code::file);
  const auto nameless = SafetensorsFile::open("/proc/self/fd/" + std::to_string(held.descriptor()));
  REQUIRE(nameless);
  CHECK(nameless->tensors().size() == model.tensors.size());
  model.save(dir / "a");
  CHECK(weights::FileIdentity::of(dir / "a").value().text != opened.identity().text);
  CHECK(weights::FileIdentity::of(held).value().size == opened.identity().size);
}

TEST_CASE("what cannot be opened is Error{file} with its path") {
  TempDir dir;
  for (const auto& path : {dir / "absent.safetensors", dir.path(), std::filesystem::path("/dev/null")}) {
    const auto file = SafetensorsFile::open(path);
    REQUIRE(!file);
    CHECK(file.error().code() == Code::file);
    CHECK(file.error().message().find(path.string()) != std::string::npos);
  }
}

TEST_CASE("the writer refuses what no reader could take") {
  TempDir dir;
  TinyModel model;
  const auto refused = [&](std::vector<NamedTensor> tensors) {
    const auto wrote = write_safetensors(dir / "m.safetensors", tensors);
    return !wrote && wrote.error().code() == Code::usage && dir.files() == 0;
  };
  const NamedTensor good = model.tensors.front();
  NamedTensor strided = good;
  std::swap(strided.view.shape[0], strided.view.shape[1]);
  std::swap(strided.view.stride[0], strided.view.stride[1]);
  CHECK(refused({strided}));
  CHECK(refused({good, good}));
  CHECK(refused({{"__metadata__", good.view}}));
  CHECK(refused({{"\xff", good.view}}));
}

}  // namespace
}  // namespace inkling::test
