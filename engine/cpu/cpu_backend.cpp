#include "engine/cpu/cpu_backend.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "engine/cpu/cpu_training.h"
#include "engine/cpu/draw.h"

namespace inkling {
namespace {

using cpu::each_row;
using cpu::InputKind;
using cpu::mutable_row;
using cpu::PrepareRow;
using cpu::row;
using cpu::row_stride;
using cpu::Rows;

constexpr std::size_t round_up(std::size_t n, std::size_t to) {
  return (n + to - 1) / to * to;
}

// Memory for prepared rows: one block of scales, sums and values for a number of rows.
struct PreparedLayout {
  std::int64_t k = 0, k_padded = 0, group = 0, groups = 0;  // group: inputs per scale, 0 for floats
  std::size_t value_bytes = 0;                              // of one row
  std::size_t rows_bytes(std::int64_t rows) const {
    return round_up(static_cast<std::size_t>(rows) * (value_bytes + static_cast<std::size_t>(groups) * 8),
                    64) +
           64;
  }
};

class CpuBackend final : public CpuTraining {
 public:
  CpuBackend(ThreadPool& pool, Isa isa) : CpuTraining(pool, cpu::kernels(isa)) {}

  std::string description() const override {
    return "cpu: " + std::string(isa_name(table_.isa)) + ", " + std::to_string(pool_.size()) + " threads";
  }

  PackedMatrix pack(const MatrixSource& source, WeightFormat format, std::byte* memory) override {
    PackedMatrix matrix = packed_at(memory, source.k, source.n, format);
    if (memory == nullptr) {
      matrix.owned = Buffer(matrix.bytes);
      matrix.data = memory = matrix.owned.data();
    }
    pool_.reserve_scratch(cpu::kLinearScratch);
    pool_.run(matrix.panels(), [&](std::int64_t panel, int worker) {
      table_.pack_panel(source, format, panel, memory + static_cast<std::size_t>(panel) * matrix.panel_bytes,
                        pool_.scratch(worker));
    });
    return matrix;
  }

  PackedMatrix packed_at(const std::byte* memory, std::int64_t k, std::int64_t n,
                         WeightFormat format) const override {
    PackedMatrix matrix;
    matrix.format = format;
    matrix.isa = table_.isa;
    matrix.k = k;
    matrix.n = n;
    matrix.panel = table_.panel;
    matrix.panel_bytes = cpu::panel_nbytes(table_, format, k);
    matrix.data = memory;
    matrix.bytes = packed_nbytes(k, n, format);
    return matrix;
  }

  std::size_t packed_nbytes(std::int64_t k, std::int64_t n, WeightFormat format) const override {
    const auto panels = static_cast<std::size_t>((n + table_.panel - 1) / table_.panel);
    return cpu::panel_nbytes(table_, format, k) * panels;
  }

  void unpack_column(const PackedMatrix& matrix, std::int64_t n, float* out) const override {
    table_.unpack_column(matrix, n, out);
  }

  void linear(const LinearArgs& args) override {
    const std::int64_t rows = args.out.shape[0];
    const Right w = right_of(args);
    const InputKind kind = cpu::input_kind(table_, w.format);
    const bool as_is = kind == InputKind::f32 && args.norm.weight == nullptr && args.rows.empty();
    const PreparedLayout layout = prepared_layout(w, kind);

    // A few rows are prepared by every thread for itself, which is cheaper than a synchronisation point.
    const bool shared = !as_is && rows > kOwnRows;
    const std::size_t own = as_is || shared ? 0 : layout.rows_bytes(kOwnRows);
    const std::size_t normed = round_up(static_cast<std::size_t>(w.k) * sizeof(float), 64);
    pool_.reserve_scratch(cpu::kLinearScratch + own + normed);

    Rows all;
    if (as_is) {
      all.data = args.x.data;
      all.by_columns = w.k > 1 && args.x.stride[1] != 1;  // one column may have any stride
      all.stride = args.x.stride[all.by_columns ? 1 : 0];
    } else if (shared) {
      if (prepared_.size() < layout.rows_bytes(rows)) prepared_ = Buffer(layout.rows_bytes(rows));
      all = rows_at(prepared_.data(), rows, kind, layout);
      each_row(pool_, rows, w.k, [&](std::int64_t m, int worker) {
        prepare_row(args, kind, layout, all, m, reinterpret_cast<float*>(pool_.scratch(worker)));
      });
    }

    ++op_;
    const cpu::LinearBlock shape = block_of(args, w);
    const std::int64_t block_rows = balanced_block(rows, w);
    const std::int64_t blocks = (rows + block_rows - 1) / block_rows;
    pool_.run(blocks * w.panels, [&](std::int64_t task, int worker) {
      cpu::LinearBlock block = shape;
      block.rows = own != 0 ? own_rows(args, kind, layout, worker) : all;
      block.row_begin = task / w.panels * block_rows;
      block.row_end = std::min(rows, block.row_begin + block_rows);
      block.panel = task % w.panels;
      block.scratch = pool_.scratch(worker);
      table_.linear_block(block);
    });
  }

  void embed(const EmbedArgs& args) override {
    const std::int64_t width = args.out.shape[1];
    each_row(pool_, args.out, [&](std::int64_t m, int) {
      const auto i = static_cast<std::size_t>(m);
      if (args.token_table != nullptr) {
        table_.unpack_column(*args.token_table, args.ids[i], mutable_row(args.out, m));
      } else {
        std::copy_n(row(args.token_rows, args.ids[i]), width, mutable_row(args.out, m));
      }
      table_.add_row(row(args.position_table, args.positions[i]), mutable_row(args.out, m), width);
    });
  }

  void layer_norm(const NormArgs& args) override {
    const std::int64_t width = args.out.shape[1];
    each_row(pool_, args.out, [&](std::int64_t m, int) {
      const float* x = source_row(args.x, args.rows, m);
      float* out = mutable_row(args.out, m);
      if (args.norm.weight != nullptr) {
        table_.layer_norm(x, width, args.norm, out);
      } else {
        std::copy_n(x, width, out);
      }
    });
  }

  void softmax(TensorView x) override {
    each_row(pool_, x, [&](std::int64_t m, int) { table_.softmax(mutable_row(x, m), x.shape[1]); });
  }

  void top(const TopArgs& args) override {
    const std::int64_t n = args.x.shape[1], k = args.values.shape[1];
    each_row(pool_, args.x, [&](std::int64_t m, int) {
      const float* row = args.x.as<float>() + m * args.x.stride[0];
      const auto before = [row](std::int32_t a, std::int32_t b) {
        const float left = drawable(row[a]), right = drawable(row[b]);
        return left > right || (left == right && a < b);
      };
      std::int32_t* ids = args.ids + m * k;  // a heap of the best so far, the last of them first
      std::int32_t* end = ids + k;
      std::iota(ids, end, 0);
      std::make_heap(ids, end, before);
      for (auto i = static_cast<std::int32_t>(k); i < n; ++i) {
        if (!(row[i] > drawable(row[*ids]))) continue;  // an equal one comes after
        std::pop_heap(ids, end, before);
        end[-1] = i;
        std::push_heap(ids, end, before);
      }
      std::sort_heap(ids, end, before);
      std::transform(ids, end, static_cast<float*>(args.values.data) + m * k,
                     [row](std::int32_t id) { return drawable(row[id]); });
    });
  }
  void draw(const DrawArgs& args) override {
    pool_.run(args.count, [&](std::int64_t i, int) {
      const DrawSettings& one = args.settings[i];
      const float* row = args.logits.as<float>() + one.row * args.logits.stride[0];
      args.ids[i] = draw_from({row, static_cast<std::size_t>(args.logits.shape[1])}, one);
      if (args.host_ids != nullptr) args.host_ids[i] = args.ids[i];
    });
  }
  void log_softmax(TensorView x) override {
    each_row(pool_, x, [&](std::int64_t m, int) { table_.log_softmax(mutable_row(x, m), x.shape[1]); });
  }
  void activate(TensorView x, Activation activation) override {
    each_row(pool_, x,
             [&](std::int64_t m, int) { table_.activate(mutable_row(x, m), x.shape[1], activation); });
  }

 private:
  static constexpr std::int64_t kOwnRows = 2;

  // What x is multiplied with: a packed matrix, or one to be packed on the way.
  struct Right {
    const PackedMatrix* packed = nullptr;
    MatrixSource source;
    WeightFormat format = WeightFormat::f32;
    std::int64_t k = 0, n = 0, panels = 0;
  };
  Right right_of(const LinearArgs& args) const {
    Right w;
    if (args.weight != nullptr) {
      w.packed = args.weight;
      w.format = args.weight->format;
      w.k = args.weight->k;
      w.n = args.weight->n;
    } else {
      const TensorView& m = args.matrix;
      w.source = {m.data, DType::f32, m.shape[0], m.shape[1], m.stride[0], m.stride[1]};
      w.format = args.matrix_format;
      w.k = w.source.k;
      w.n = w.source.n;
    }
    w.panels = (w.n + table_.panel - 1) / table_.panel;
    return w;
  }

  // All that the blocks of one product have in common. `w` outlives it.
  static cpu::LinearBlock block_of(const LinearArgs& args, const Right& w) {
    cpu::LinearBlock block;
    block.weight = w.packed;
    block.matrix = &w.source;
    block.format = w.format;
    block.k = w.k;
    block.n = w.n;
    block.bias = args.bias;
    block.pre_activation = static_cast<float*>(args.pre_activation.data);
    block.pre_activation_stride = args.pre_activation.stride[0];
    block.activation = args.activation;
    block.residual = static_cast<const float*>(args.residual.data);
    block.residual_stride = args.residual.stride[0];
    block.out = static_cast<float*>(args.out.data);
    block.out_stride = row_stride(args.out);
    return block;
  }

  PreparedLayout prepared_layout(const Right& w, InputKind kind) const {
    PreparedLayout layout;
    layout.k = w.k;
    layout.k_padded = cpu::padded_k(table_, w.format, w.k);
    layout.group = group_size(w.format);
    layout.groups = layout.group == 0 ? 0 : (w.k + layout.group - 1) / layout.group;
    const std::size_t element = kind == InputKind::f32 ? 4 : kind == InputKind::bf16 ? 2 : 1;
    // Rows are 64-byte aligned and an odd number of lines apart: rows of 3072 floats a multiple of 4 KiB
    // apart would all fall into the same sets of the L1 cache.
    const std::size_t bytes = round_up(static_cast<std::size_t>(layout.k_padded) * element, 64);
    layout.value_bytes = bytes / 64 % 2 == 0 ? bytes + 64 : bytes;
    return layout;
  }

  static Rows rows_at(std::byte* memory, std::int64_t rows, InputKind kind, const PreparedLayout& layout) {
    Rows r;
    r.kind = kind;
    r.data = memory;
    r.stride = static_cast<std::ptrdiff_t>(layout.value_bytes / (kind == InputKind::f32    ? 4
                                                                 : kind == InputKind::bf16 ? 2
                                                                                           : 1));
    std::byte* after = memory + static_cast<std::size_t>(rows) * layout.value_bytes;
    r.scale = reinterpret_cast<float*>(after);
    r.sum = reinterpret_cast<std::int32_t*>(after + static_cast<std::size_t>(rows * layout.groups) * 4);
    r.groups = layout.groups;
    return r;
  }

  static const float* source_row(const TensorView& x, std::span<const std::int32_t> rows, std::int64_t m) {
    return row(x, rows.empty() ? m : rows[static_cast<std::size_t>(m)]);
  }

  void prepare_row(const LinearArgs& args, InputKind kind, const PreparedLayout& layout, const Rows& rows,
                   std::int64_t m, float* normed) const {
    PrepareRow p;
    p.x = source_row(args.x, args.rows, m);
    p.k = layout.k;
    p.k_padded = layout.k_padded;
    p.norm = args.norm;
    p.group = layout.group;
    // `rows` describes memory of this backend; only the caller's rows are const, and those are never
    // prepared.
    auto* base = static_cast<std::byte*>(const_cast<void*>(rows.data));
    p.out = base + static_cast<std::size_t>(m) * layout.value_bytes;
    p.scale = const_cast<float*>(rows.scale) + m * rows.groups;
    p.sum = const_cast<std::int32_t*>(rows.sum) + m * rows.groups;
    p.normed = normed;
    table_.prepare(kind, p);
  }

  // This worker's own prepared rows, made by the first task that it runs in this op.
  Rows own_rows(const LinearArgs& args, InputKind kind, const PreparedLayout& layout, int worker) {
    std::byte* scratch = pool_.scratch(worker) + cpu::kLinearScratch;
    const Rows rows = rows_at(scratch, kOwnRows, kind, layout);
    std::uint64_t& seen = seen_op(worker);
    if (seen != op_) {
      auto* normed = reinterpret_cast<float*>(scratch + layout.rows_bytes(kOwnRows));
      for (std::int64_t m = 0; m < args.out.shape[0]; ++m) prepare_row(args, kind, layout, rows, m, normed);
      seen = op_;
    }
    return rows;
  }

  struct alignas(64) Seen {
    std::uint64_t op = 0;
  };
  std::uint64_t& seen_op(int worker) { return seen_[static_cast<std::size_t>(worker)].op; }

  // Blocks of nearly equal height, so that the last is no sliver. A matrix that is packed on the way is
  // packed anew for every block: high ones, but enough for all threads.
  std::int64_t balanced_block(std::int64_t rows, const Right& w) const {
    const auto blocks_of = [&](std::int64_t height) { return (rows + height - 1) / height; };
    std::int64_t blocks = blocks_of(table_.block_rows);
    if (w.packed == nullptr) {
      constexpr std::int64_t kTasksPerThread = 4;
      const std::int64_t wanted = (kTasksPerThread * pool_.size() + w.panels - 1) / w.panels;
      blocks = std::max(blocks_of(table_.matrix_rows), std::min(wanted, blocks_of(36)));
    }
    return (rows + blocks - 1) / blocks;
  }

  Buffer prepared_;
  std::uint64_t op_ = 0;
  std::vector<Seen> seen_{static_cast<std::size_t>(pool_.size())};
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(ThreadPool& pool, Isa isa) {
  return std::make_unique<CpuBackend>(pool, isa);
}

}  // namespace inkling
