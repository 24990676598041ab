#include "apps/input.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <set>

#include "apps/options.h"
#include "apps/signals.h"
#include "tokenizer/utf8.h"

namespace inkling::app {
namespace {

using Json = nlohmann::json;

// nlohmann's own parser keeps the last of two equal keys in silence.
Json parse_strictly(std::string_view line) {
  std::vector<std::set<std::string>> keys;
  return Json::parse(line, [&](int, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second) {
      throw Error(Code::input, "the key '" + value.get<std::string>() + "' occurs twice");
    }
    return true;
  });
}

std::string shortened(const std::string& text) {
  return text.size() <= 40 ? text : text.substr(0, 37) + "...";
}

std::string shown(const Json& value) {
  return shortened(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

/// The parser's own words, without its number for them.
std::string complaint(const Json::exception& error) {
  const std::string what = error.what();
  return "expected JSON: " + what.substr(std::min(what.find("] ") + 2, what.size()));
}

/// Throws Error{input} "expected …, got …".
std::vector<std::int32_t> to_ids(const Json& array, std::int64_t vocab_size) {
  const auto fail = [](const std::string& message) { throw Error(Code::input, message); };
  if (!array.is_array()) fail("expected an array of token ids, got " + shown(array));
  std::vector<std::int32_t> ids;
  for (const Json& id : array) {
    const std::string place = " at [" + std::to_string(ids.size()) + "]";
    if (!id.is_number_unsigned()) fail("expected ids, got " + shown(id) + place);
    if (id.get<std::uint64_t>() >= static_cast<std::uint64_t>(vocab_size))
      fail("expected ids below " + std::to_string(vocab_size) + ", got " + shown(id) + place);
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

std::vector<std::int32_t> to_ids(std::string_view numbers) {
  constexpr std::string_view kBetween = " \t\r\n";
  std::vector<std::int32_t> ids;
  for (std::size_t at = 0; (at = numbers.find_first_not_of(kBetween, at)) != std::string_view::npos;) {
    const std::size_t end = std::min(numbers.find_first_of(kBetween, at), numbers.size());
    const std::string word(numbers.substr(at, end - at));
    if (!parse_number(word, ids.emplace_back())) {
      throw Error(Code::input,
                  "expected whole numbers with white space between them, or a JSON array, got '" +
                      shortened(to_valid_utf8(word)) + "'");
    }
    at = end;
  }
  return ids;
}

class Descriptor {
 public:
  explicit Descriptor(const std::filesystem::path& path)
      : number_(path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~Descriptor() {
    if (number_ > STDIN_FILENO) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number() const noexcept { return number_; }

 private:
  int number_;
};

}  // namespace

std::string input_name(const std::filesystem::path& path) {
  return path == "-" ? "standard input" : path.string();
}

std::string read_text(const std::filesystem::path& path) {
  const std::string name = input_name(path);
  const auto fail = [&] { throw Error(Code::file, name + ": cannot read: " + std::strerror(errno)); };
  const Descriptor file(path);
  if (file.number() < 0) fail();
  std::string text;
  char buffer[1 << 16];
  while (true) {
    const ssize_t count = ::read(file.number(), buffer, sizeof buffer);
    if (count == 0) return text;
    if (count > 0) {
      text.append(buffer, static_cast<std::size_t>(count));
    } else if (errno == EINTR) {
      check_interrupt();
    } else {
      fail();
    }
  }
}

std::vector<std::int32_t> parse_ids(std::string_view text) {
  return located("ids", [&] {
    const std::size_t first = text.find_first_not_of(" \t\r\n");
    if (first == std::string_view::npos || text[first] != '[') return to_ids(text);
    try {
      return to_ids(parse_strictly(text), std::numeric_limits<std::int32_t>::max());
    } catch (const Json::exception& error) {
      throw Error(Code::input, complaint(error));
    }
  });
}

Record::Record(std::string_view line, std::string where, std::initializer_list<std::string_view> known)
    : where_(std::move(where)) {
  try {
    value_ = parse_strictly(line);
  } catch (const Json::exception& error) {
    fail(complaint(error));
  } catch (const Error& error) {
    fail(error.message());
  }
  if (!value_.is_object()) fail(std::string("expected an object, got ") + value_.type_name());
  for (const auto& [key, value] : value_.items()) {
    if (known.size() == 0 || std::find(known.begin(), known.end(), key) != known.end()) continue;
    std::string names;
    for (const std::string_view name : known) names += (names.empty() ? "" : ", ") + std::string(name);
    fail("expected the fields " + names + "; got '" + key + "'");
  }
}

void Record::fail(const std::string& what) const {
  throw Error(Code::input, where_ + ": " + what);
}

void Record::wrong(const char* field, const std::string& expected) const {
  fail(std::string(field) + ": expected " + expected + ", got " + shown(at(field)));
}

const char* Record::one_of(const char* first, const char* second) const {
  if (has(first) == has(second)) {
    fail(std::string("expected one of the fields ") + first + " and " + second + ", got " +
         (has(first) ? "both" : "none"));
  }
  return has(first) ? first : second;
}

std::string Record::text(const char* field) const {
  if (!at(field).is_string()) wrong(field, "a string");
  return at(field).get<std::string>();
}

std::vector<std::int32_t> Record::ids(const char* field, std::int64_t vocab_size) const {
  return located(field, [&] { return to_ids(at(field), vocab_size); });
}

std::uint64_t Record::count(const char* field, std::uint64_t most) const {
  if (!at(field).is_number_unsigned() || at(field).get<std::uint64_t>() > most) {
    wrong(field, "a whole number from 0 to " + std::to_string(most));
  }
  return at(field).get<std::uint64_t>();
}

std::string Record::id(std::size_t otherwise) const {
  if (!has("id")) return std::to_string(otherwise);
  if (!at("id").is_string() && !at("id").is_number_integer())
    wrong("id", "a string or a whole number of 64 bits");
  return at("id").dump();
}

void for_each_record(std::string_view text, const std::string& name,
                     std::initializer_list<std::string_view> known,
                     const std::function<void(const Record&)>& visit) {
  std::size_t number = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = text.substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    visit(Record(line, name + ": line " + std::to_string(number), known));
  }
}

std::vector<Record> read_records(const std::filesystem::path& path,
                                 std::initializer_list<std::string_view> known) {
  const std::string text = read_text(path);
  std::vector<Record> records;
  for_each_record(text, input_name(path), known, [&](const Record& record) { records.push_back(record); });
  return records;
}

}  // namespace inkling::app
