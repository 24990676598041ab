/* A whole llama.cpp process for the start and memory rows: load, encode, one greedy token, leave.
 *
 *     first_token_llama MODEL.gguf THREADS PROMPT            prints the token's text
 *     first_token_llama MODEL.gguf THREADS "" 512 128        prefills 512, decodes 128: for its peak memory
 *
 * In C against the same libllama that the benchmark loads, so that no interpreter is in the figure. The
 * context is the model's own 1024 positions, flash attention is on, nothing is warmed up and nothing is freed
 * at the end: as quick as the library lets a caller be. */

#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void quiet(enum ggml_log_level level, const char* text, void* data) {
  (void)level;
  (void)text;
  (void)data;
}

static llama_token greedy(struct llama_context* context, int vocabulary) {
  const float* logits = llama_get_logits_ith(context, -1);
  llama_token best = 0;
  for (llama_token i = 1; i < vocabulary; ++i)
    if (logits[i] > logits[best]) best = i;
  return best;
}

int main(int argc, char** argv) {
  enum { kMost = 1024 };
  if (argc < 4) return 2;
  llama_log_set(quiet, NULL);
  llama_backend_init();
  struct llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (!model) return 3;
  const struct llama_vocab* vocab = llama_model_get_vocab(model);

  struct llama_context_params params = llama_context_default_params();
  params.n_ctx = kMost;
  params.n_batch = params.n_ubatch = 512;
  params.n_threads = params.n_threads_batch = atoi(argv[2]);
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  struct llama_context* context = llama_init_from_model(model, params);
  if (!context) return 4;

  llama_token tokens[kMost];
  int count = llama_tokenize(vocab, argv[3], (int)strlen(argv[3]), tokens, kMost, false, false);
  const int decode = argc > 5 ? atoi(argv[5]) : 0;
  if (argc > 4) {
    count = atoi(argv[4]);
    for (int i = 0; i < count && i < kMost; ++i) tokens[i] = (llama_token)(i * 97 % 50000);
  }
  if (count < 1 || llama_decode(context, llama_batch_get_one(tokens, count)) != 0) return 5;
  llama_token next = greedy(context, llama_vocab_n_tokens(vocab));
  for (int i = 0; i < decode; ++i) {
    if (llama_decode(context, llama_batch_get_one(&next, 1)) != 0) return 6;
    next = greedy(context, llama_vocab_n_tokens(vocab));
  }
  char text[64];
  const int length = llama_token_to_piece(vocab, next, text, sizeof text, 0, false);
  if (length > 0) fwrite(text, 1, (size_t)length, stdout);
  puts("");
  fflush(stdout);
  _Exit(0);
}
