// What the commands `inkling bench …` share.
#pragma once

#include <cstdint>
#include <string_view>

#include "apps/options.h"
#include "engine/exec_context.h"

namespace inkling::app {

class Program;

enum class Table : std::uint8_t { md, csv, json };
Setter table_form(Table& target);

/// What computes, for reports: the instruction set, or a device that is not the CPU.
std::string_view arithmetic_name(const ExecContext& context);

// Commands below `bench`, one per file.
void add_bench_gemm(Program& program, const Options& bench);
void add_bench_sdpa(Program& program, const Options& bench);
void add_bench_train(Program& program, const Options& bench);

}  // namespace inkling::app
