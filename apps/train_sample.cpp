#include "apps/train_sample.h"

#include <utility>

#include "apps/signals.h"
#include "apps/text_stream.h"
#include "model/generator.h"
#include "model/model.h"

namespace inkling::app {

std::string sample_text(const std::filesystem::path& folder, ExecContext& context, const Tokenizer& tokenizer,
                        std::int32_t otherwise, std::int64_t tokens, std::uint64_t seed) {
  const Model model = Model::load(folder, context).value();
  Generator generator(model, context);
  GenerationRequest request;
  const auto start = tokenizer.encode("\n");
  request.prompt = start && !start->empty() ? *start : std::vector<std::int32_t>{otherwise};
  request.config.max_tokens = tokens;
  request.config.temperature = 0.8;
  request.config.top_k = 200;
  request.config.ignore_eos = true;
  request.seed = seed;
  request.overflow = Overflow::slide;
  TextStream stream(&tokenizer, request.prompt, {}, TextForm::utf8);
  std::string text;
  request.on_token = [&](const TokenEvent& event) {
    text += stream.push(event.id);
    return Continue::yes;
  };
  generator.submit(std::move(request));
  while (generator.step() && pending_signal() == 0) {
  }
  return text + stream.finish();
}

}  // namespace inkling::app
