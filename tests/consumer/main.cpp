// What a program that uses the installed library looks like: text in, text out.
#include <cstdio>

#include "model/generator.h"
#include "tokenizer/stream_decoder.h"
#include "tokenizer/tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  inkling::ExecContext context({.threads = 2});
  const auto model = inkling::Model::load(argv[1], context);
  const auto tokenizer = inkling::Tokenizer::load(argv[1]);
  if (!model || !tokenizer) return 4;

  inkling::StreamDecoder decoder(*tokenizer);
  inkling::Generator generator(*model, context);
  inkling::GenerationRequest request;
  request.prompt = tokenizer->encode(argv[2]).value();
  request.config.max_tokens = 24;
  request.config.temperature = 0.0;
  request.on_token = [&](const inkling::TokenEvent& event) {
    const auto text = decoder.push(event.id).value();
    std::fwrite(text.data(), 1, text.size(), stdout);
    return inkling::Continue::yes;
  };
  generator.submit(std::move(request));
  while (generator.step()) {
  }
  std::puts("");
}
