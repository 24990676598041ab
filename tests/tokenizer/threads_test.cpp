// One Tokenizer serves every thread: what each finds is what one alone finds.
#include <thread>

#include "tests/tokenizer/fixtures.h"
#include "tests/tokenizer/generated_text.h"
#include "tokenizer/stream_decoder.h"
#include "tokenizer/vocabulary_training.h"

using namespace inkling;
using namespace inkling::test;

namespace {

struct Work {
  std::string text;
  std::vector<TokenSpan> spans;
  std::string decoded;
};

Work work_of(const Tokenizer& tokenizer, std::string text) {
  Work work{std::move(text), {}, {}};
  work.spans = tokenizer.encode_with_offsets(work.text).value();
  StreamDecoder decoder(tokenizer);
  for (const TokenSpan& span : work.spans) work.decoded += decoder.push(span.id).value();
  work.decoded += decoder.finish();
  return work;
}

void check_threads(const Tokenizer& tokenizer, const std::vector<std::string>& texts) {
  std::vector<Work> alone;
  for (const std::string& text : texts) alone.push_back(work_of(tokenizer, text));
  constexpr std::size_t kThreads = 4;
  std::vector<int> differences(kThreads, 0);
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t, own = tokenizer] {  // a copy shares the vocabulary
        for (std::size_t i = 0; i < alone.size(); ++i) {
          const Work& expected = alone[(i + t * 7) % alone.size()];
          const Work got = work_of(own, expected.text);
          if (got.spans != expected.spans || got.decoded != expected.decoded) ++differences[t];
        }
      });
    }
  }
  CHECK(differences == std::vector<int>(kThreads, 0));
}

}  // namespace

TEST_CASE("threads share a tokenizer of any kind and find what one alone finds") {
  std::vector<std::string> texts;
  for (std::uint64_t seed = 0; seed < 60; ++seed) texts.push_back(generated_text(seed, 40));
  check_threads(tiny(), texts);
  check_threads(Tokenizer::from_sentencepiece(TinyModel().str(), "tiny.model").value(), texts);
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  const auto meta = train_characters(views).value();
  check_threads(Tokenizer::from_characters(meta[0].content, meta[0].name).value(), texts);
}
