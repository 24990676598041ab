// inkling: the command line of the engine.
#include "apps/program.h"

int main(int argc, char** argv) {
  inkling::app::Program program;
  inkling::app::add_generate(program);
  inkling::app::add_tokenize(program);
  inkling::app::add_detokenize(program);
  inkling::app::add_tokenizer(program);
  inkling::app::add_train(program);
  inkling::app::add_eval(program);
  inkling::app::add_inspect(program);
  inkling::app::add_bench(program);
  inkling::app::add_doctor(program);
  inkling::app::add_completion(program);
  return program.run(argc, argv);
}
