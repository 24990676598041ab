// make_kernels<V>(): the function table of one instruction set. Include only from sources of one ISA.
#pragma once

#include "engine/cpu/linear.h"
#include "engine/cpu/panels.h"
#include "engine/cpu/training_rows.h"

namespace inkling::cpu {

template <class V>
CpuKernels make_kernels(Isa isa) {
  using Row = RowKernels<V>;
  using Panel = PanelKernels<V>;
  using Training = TrainingKernels<V>;
  CpuKernels table;
  table.isa = isa;
  table.panel = Panel::NR;
  table.block_rows = LinearKernels<V>::kBlockRows;
  table.matrix_rows = LinearKernels<V>::kMatrixRows;
  table.bf16_input = requires {
    &V::dot_bf16;
  }
  ? InputKind::bf16 : InputKind::f32;
  table.pack_panel = &Panel::pack_panel;
  table.unpack_column = &Panel::unpack_column;
  table.prepare = &Row::prepare;
  table.linear_block = &LinearKernels<V>::linear_block;
  table.add_row = &Row::add_row;
  table.layer_norm = &Row::layer_norm;
  table.softmax = &Row::softmax;
  table.log_softmax = &Row::log_softmax;
  table.activate = &Row::activate;
  table.layer_norm_backward = &Training::layer_norm_backward;
  table.activate_backward = &Training::activate_backward;
  table.add_column_sums = &Training::add_column_sums;
  table.transpose = &transpose<V>;
  table.dropout = &Training::dropout;
  table.cross_entropy = &Training::cross_entropy;
  table.sum_of_squares = &Training::sum_of_squares;
  table.adamw = &Training::adamw;
  return table;
}

}  // namespace inkling::cpu
