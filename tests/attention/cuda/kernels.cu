// Checks of the attention kernels on the device they run on, against f64 on the host. Needs the CUDA runtime
// alone.
//
//   kernels     exit 0: every check passed. Prints one line per failure and a summary per group.
// Longer than a source: one program that can be carried to a GPU machine alone.
#include "tests/attention/cuda/device_problem.h"

using namespace inkling;
using namespace inkling::test;

namespace {

// The device; as if it were not a Hopper; as if it had two processors, each of which takes many tiles.
cuda::DeviceTraits traits, older, small;
int failures = 0, checks = 0;

enum class Kernel { mma, hopper, decode };
const char* kernel_name(Kernel kernel) {
  return kernel == Kernel::mma ? "mma" : kernel == Kernel::hopper ? "hopper" : "decode";
}

void expect(bool ok, const std::string& what) {
  ++checks;
  if (ok) return;
  if (++failures <= 60) std::printf("FAILED %s\n", what.c_str());
}

std::string describe(const Shape& s) {
  std::string text = std::string(dtype_name(s.dtype)) + " H=" + std::to_string(s.heads) + '/' +
                     std::to_string(s.kv_heads) + " D=" + std::to_string(s.dim) + ' ' +
                     std::string(mask_kind_name(s.mask)) + (s.p > 0 ? " dropout" : "") +
                     (s.out == DType::f32 && s.dtype != DType::f32 ? " ->f32" : "") +
                     (s.packed_qkv ? " qkv" : "") + " T=";
  for (std::size_t i = 0; i < s.lengths.size() && i < 4; ++i) {
    text += std::to_string(s.lengths[i].first) + 'x' + std::to_string(s.lengths[i].second) + ' ';
  }
  return text;
}

bool can(const DeviceProblem& x, Kernel kernel) {
  if (kernel == Kernel::hopper) return cuda::hopper_refusal(x.args, traits).empty();
  if (kernel == Kernel::decode) {
    return x.most_q * (x.shape.heads / x.shape.kv_heads) <= cuda::kDecodeMostRows && x.shape.p == 0;
  }
  return true;
}

/// Runs one kernel and waits; out and lse are poisoned first.
void run(DeviceProblem& x, const cuda::ForwardArgs& args, Kernel kernel,
         const cuda::DeviceTraits& device = traits) {
  x.out.device.fill(0xff);
  x.lse.fill(0xff);
  if (kernel == Kernel::mma) {
    must(cuda::forward_mma(args, traits, nullptr), "forward_mma");
  } else if (kernel == Kernel::hopper) {
    must(cuda::forward_hopper(args, traits, nullptr), "forward_hopper");
  } else {
    const cuda::DecodeShape shape{x.most_q * (args.heads / args.kv_heads), x.most_k + 100};
    DeviceArray<std::byte> workspace(cuda::decode_workspace_bytes(args, shape));
    DeviceArray<unsigned int> counters(static_cast<std::size_t>(args.batch) * args.kv_heads);
    counters.fill(0);
    for (int i = 0; i < 2; ++i) {
      must(cuda::decode(args, shape, {workspace.get(), counters.get()}, device, nullptr), "decode");
    }
    must(cudaDeviceSynchronize(), "decode");
  }
  must(cudaDeviceSynchronize(), kernel_name(kernel));
}

/// Unit roundoff. f32 weights are split in tf32 halves: no further rounding to speak of.
double unit(DType dtype) {
  return dtype == DType::bf16 ? 0x1p-8 : dtype == DType::f16 ? 0x1p-11 : 0x1p-22;
}

/// Errors in units of what they may be. A score is a sum of D products in steps of at least 8, each of which
/// may lose 2⁻²² of the sum of their sizes (tensor cores cut off rather than round); a weight is off by twice
/// that and by the rounding to the 16-bit type; a result by its weights, 2⁻²⁰ for exp2 and the sums, and its
/// own rounding.
void compare_forward(const DeviceProblem& x, const Reference& want, const std::string& what) {
  const std::vector<float> got = x.out.download(), lse = x.lse.values();
  const double step = (x.shape.dim / 8 + 2) * 0x1p-22;
  double worst = 0, worst_lse = 0;
  for (int row = 0; row < x.rows_q(); ++row) {
    for (int h = 0; h < x.shape.heads; ++h) {
      const std::size_t at = static_cast<std::size_t>(h) * x.rows_q() + row;
      const double score = step * want.size[at];
      const bool same = std::isinf(want.lse[at]) && double{lse[at]} == want.lse[at];
      const double off = std::isfinite(lse[at]) ? std::fabs(lse[at] - want.lse[at]) / (score + 4e-6) : 1e9;
      worst_lse = std::max(worst_lse, same ? 0.0 : off);
      for (int d = 0; d < x.shape.dim; ++d) {
        const std::size_t i = x.out_at(row, h, d);
        const double allowed = (unit(x.shape.dtype) + 2 * score + 0x1p-20) * want.bound[i] +
                               unit(x.shape.out) * std::fabs(want.out[i]) + 1e-7;
        worst = std::max(worst, std::isfinite(got[i]) ? std::fabs(got[i] - want.out[i]) / allowed : 1e9);
      }
    }
  }
  expect(worst <= 1, what + ": out is " + std::to_string(worst) + " times the bound off");
  expect(worst_lse <= 1, what + ": lse is " + std::to_string(worst_lse) + " times the bound off");
}

double distance(const std::vector<float>& got, const std::vector<double>& want) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  return size == 0 ? std::sqrt(error) : std::sqrt(error / size);
}

void compare_backward(DeviceProblem& x, const Reference& want, const cuda::DeviceTraits& device,
                      const std::string& what) {
  x.dq.device.fill(0xff);
  x.dk.device.fill(0xff);
  x.dv.device.fill(0xff);
  const cuda::BackwardArgs& grad = x.grad;
  must(cuda::backward(grad, device, nullptr), "backward");
  must(cudaDeviceSynchronize(), "backward");
  const auto first = x.dk.device.values(), first_q = x.dq.device.values();
  // Three roundings meet in a gradient (weights or dS, out in delta, the result), of some u / 2 each.
  const double allowed = x.shape.dtype == DType::f32 ? 2e-5 : 2 * unit(x.shape.dtype);
  const double q = distance(x.dq.download(), want.dq), k = distance(x.dk.download(), want.dk);
  const double v = distance(x.dv.download(), want.dv);
  expect(q <= allowed && k <= allowed && v <= allowed, what + ": dq, dk, dv are off by " + std::to_string(q) +
                                                           ' ' + std::to_string(k) + ' ' + std::to_string(v));
  if (grad.dbias != nullptr) {
    expect(distance(x.dbias.values(), want.dbias) <= allowed, what + ": dbias");
  }
  must(cuda::backward(grad, device, nullptr), "backward");
  expect(x.dk.device.values() == first && x.dq.device.values() == first_q,
         what + ": gradients moved between runs");
}

void check(const Shape& shape, bool gradients, std::uint64_t seed = 1) {
  DeviceProblem x(shape, seed);
  const Reference want = x.reference(gradients);
  for (const Kernel kernel : {Kernel::decode, Kernel::hopper, Kernel::mma}) {
    if (!can(x, kernel)) continue;
    const std::string what = std::string(kernel_name(kernel)) + ' ' + describe(shape);
    run(x, x.args, kernel);
    const auto first = x.out.device.values();
    compare_forward(x, want, what);
    run(x, x.args, kernel);
    expect(x.out.device.values() == first, what + ": bits moved between runs");
    if (kernel == Kernel::decode) {
      const auto lse = x.lse.values();
      run(x, x.args, kernel, older);
      expect(x.out.device.values() == first &&
                 std::memcmp(x.lse.values().data(), lse.data(), lse.size() * sizeof(float)) == 0,
             what + ": bits on a device without clusters differ");
    }
    if (!gradients || kernel == Kernel::decode) continue;
    compare_backward(x, want, older, "mma backward after " + what);
    if (cuda::backward_hopper_refusal(x.grad, traits).empty()) {
      compare_backward(x, want, traits, "hopper backward after " + what);
      compare_backward(x, want, small, "hopper backward by two processors after " + what);
    }
    if (kernel == Kernel::hopper && shape.p > 0 && shape.dim <= cuda::kMostDrawnDim) {
      x.draw();
      run(x, x.args, kernel);
      compare_forward(x, want, "drawn before, " + what);
      compare_backward(x, want, traits, "backward, drawn before, after " + what);
      x.args.dropout.drawn = x.grad.forward.dropout.drawn = nullptr;
    }
  }
}

constexpr MaskKind kMasks[] = {
    MaskKind::none,           MaskKind::causal_upper_left, MaskKind::causal_lower_right,
    MaskKind::sliding_window, MaskKind::document,          MaskKind::additive_bias,
    MaskKind::boolean};
constexpr DType kTypes[] = {DType::bf16, DType::f16, DType::f32};

void report(const char* group) {
  std::printf("%-28s %d checks, %d failures so far\n", group, checks, failures);
  std::fflush(stdout);
}

/// Every T mod 128 in one packed batch, and Tq ≠ Tk both ways, T = 0 and 1.
void check_lengths() {
  for (const MaskKind mask : {MaskKind::none, MaskKind::causal_lower_right}) {
    Shape s;
    s.mask = mask;
    for (int r = 0; r < 128; ++r) s.lengths.push_back({r + 128 * (r % 2), r + 128 * (r % 2)});
    for (const DType out : {s.dtype, DType::f32}) {  // of the gradients too
      s.out = out;
      check(s, true);
    }
  }
  for (const MaskKind mask : kMasks) {
    for (const DType dtype : kTypes) {
      Shape s;
      s.dtype = s.out = dtype;
      s.mask = mask;
      s.lengths = {{0, 0},    {1, 1},    {0, 5},     {5, 0},     {1, 300},
                   {33, 200}, {200, 33}, {130, 257}, {257, 130}, {64, 64}};
      check(s, true);
    }
  }
}

void check_dims() {
  for (const DType dtype : kTypes) {
    for (const int dim : {1, 7, 8, 24, 32, 40, 64, 72, 80, 96, 100, 128, 160, 256}) {
      Shape s;
      s.dtype = dtype;
      s.out = dim % 16 == 8 ? DType::f32 : dtype;
      s.dim = dim;
      s.mask = dim % 3 == 0 ? MaskKind::none : MaskKind::causal_upper_left;
      s.lengths = {{150, 150}, {70, 70}};
      check(s, true);
    }
  }
}

void check_groups() {
  for (const DType dtype : kTypes) {
    for (const int kv : {1, 2, 4}) {
      Shape s;
      s.dtype = s.out = dtype;
      s.heads = 4;
      s.kv_heads = kv;
      s.mask = MaskKind::causal_lower_right;
      s.lengths = {{100, 170}, {3, 140}};
      check(s, true);
      s.lengths = {{1, 700}, {2, 1}, {4, 129}, {0, 7}};
      check(s, false);
      s.dim = 128;
      check(s, false);
      s.dim = 256;
      check(s, false);
    }
  }
  for (const int dim : {64, 128}) {  // many tiles of keys add to one block of queries, in turn
    Shape s;
    s.kv_heads = 1;
    s.dim = dim;
    s.lengths = {{900, 1100}, {600, 440}};
    for (const MaskKind mask : {MaskKind::causal_lower_right, MaskKind::sliding_window}) {
      s.mask = mask;
      check(s, true);
    }
  }
  Shape s;
  s.heads = s.kv_heads = 12;
  s.packed_qkv = true;
  s.mask = MaskKind::causal_upper_left;
  s.lengths = {{200, 200}, {129, 129}};
  check(s, true);
  s.q_scale = 30.0f;  // scores of hundreds: the reference of a row must rise often
  check(s, false);
}

/// Weights are uniform and V is the identity, so out shows the mask of dropout itself; dO the identity shows
/// it in dV.
void check_dropout() {
  for (const DType dtype : kTypes) {
    for (const MaskKind mask : {MaskKind::none, MaskKind::document}) {
      Shape s;
      s.dtype = s.out = dtype;
      s.mask = mask;
      s.p = 0.3f;
      for (const int size : {128, 64}) {  // D and keys
        s.dim = size;
        s.lengths = {{size, size}, {size / 2 + 6, size}};
        DeviceProblem x(s);
        for (float& value : x.q.host) value = 0;
        for (int row = 0; row < x.rows_k(); ++row) {
          for (int at = 0; at < 2 * size; ++at)
            x.v.host[row * 2 * size + at] = at % size == row % size ? 1.0f : 0.0f;
        }
        for (int row = 0; row < x.rows_q(); ++row) {
          for (int at = 0; at < 2 * size; ++at)
            x.dout.host[row * 2 * size + at] = at % size == row % size ? 1.0f : 0.0f;
        }
        x.q.upload();
        x.v.upload();
        x.dout.upload();
        for (const Kernel kernel : {Kernel::mma, Kernel::hopper}) {
          if (!can(x, kernel)) continue;
          run(x, x.args, kernel);
          must(cuda::backward(x.grad, kernel == Kernel::mma ? older : traits, nullptr), "backward");
          const std::vector<float> out = x.out.download(), dv = x.dv.download();
          int wrong = 0, wrong_dv = 0, kept = 0;
          for (int b = 0; b < 2; ++b) {
            for (int i = 0; i < s.lengths[b].first; ++i) {
              for (int h = 0; h < 2; ++h) {
                for (int j = 0; j < size; ++j) {
                  const bool want = x.sees(b, h, i, j) && x.keep(b, h, i, j) > 0;
                  kept += want;
                  wrong += (out[x.out_at(x.cu_q[b] + i, h, j)] != 0) != want;
                  wrong_dv += (dv[x.out_at(x.cu_k[b] + j, h, (x.cu_q[b] + i) % size)] != 0) != want;
                }
              }
            }
          }
          expect(wrong == 0 && kept > 500, std::string(kernel_name(kernel)) + " dropout mask: " +
                                               std::to_string(wrong) + " of its bits differ, " + describe(s));
          expect(wrong_dv == 0,
                 "backward dropout mask: " + std::to_string(wrong_dv) + " differ, " + describe(s));
        }
      }
      s.dim = 64;
      s.lengths = {{150, 131}, {20, 300}};
      check(s, true);
    }
    Shape s;
    s.dtype = s.out = dtype;
    s.p = 0.1f;
    s.mask = MaskKind::causal_upper_left;
    s.dim = 32;
    s.lengths = {{300, 300}};
    check(s, true);
  }
}

/// Bits of a sequence alone, of the last rows alone, and with neighbours that are NaN throughout.
void check_invariance() {
  for (const int dim : {32, 64, 128, 256}) {
    Shape s;
    s.dim = dim;
    s.mask = MaskKind::causal_lower_right;
    s.lengths = {{200, 200}, {333, 333}, {1, 90}};
    DeviceProblem x(s);
    const int first = x.cu_q[1], rows = 333;
    for (const Kernel kernel : {Kernel::mma, Kernel::hopper}) {
      if (!can(x, kernel)) continue;
      run(x, x.args, kernel);
      const auto all = x.out.device.values();
      const std::size_t row_bytes = static_cast<std::size_t>(s.heads) * dim * 2;
      const auto part = [&](int from, int count) {
        const auto now = x.out.device.values();
        return std::memcmp(now.data() + from * row_bytes, all.data() + from * row_bytes, count * row_bytes) ==
               0;
      };
      for (const int cut :
           {0, 1, 60, 200, 317}) {  // queries cut … 332 of the second sequence against all its keys
        const std::vector<std::int32_t> cu_q{0, rows - cut}, cu_k{0, rows};
        DeviceArray<std::int32_t> d_q(cu_q), d_k(cu_k);
        const auto list = cuda::query_tiles({cu_q, cu_k, s.heads, 128, s.mask, cuda::kFar, cuda::kFar, 256});
        DeviceArray<cuda::AttentionTile> tiles(list);
        cuda::ForwardArgs a = x.args;
        a.cu_q = d_q.get();
        a.cu_k = d_k.get();
        a.batch = 1;
        a.tiles = tiles.get();
        a.tile_count = static_cast<std::int32_t>(list.size());
        const auto shift = [&](cuda::HeadRows& r, int by) {
          r.data = static_cast<std::byte*>(r.data) + by * r.row * 2;
        };
        shift(a.q, first + cut);
        shift(a.out, first + cut);
        shift(a.k, first);
        shift(a.v, first);
        a.q_rows = rows - cut;
        a.k_rows = rows;
        a.lse = nullptr;
        run(x, a, kernel);
        expect(part(first + cut, rows - cut), std::string(kernel_name(kernel)) + " D=" + std::to_string(dim) +
                                                  ": bits of rows from " + std::to_string(cut) +
                                                  " alone differ");
      }
    }
    // Every row but those of the second sequence NaN: it must not notice.
    for (const Kernel kernel : {Kernel::mma, Kernel::hopper}) {
      DeviceProblem y(s);
      if (!can(y, kernel)) continue;
      run(y, y.args, kernel);
      const std::vector<float> clean = y.out.download();
      const auto spoil = [&](Values& values) {
        const std::size_t row = static_cast<std::size_t>(s.heads) * dim;
        for (std::size_t i = 0; i < values.host.size(); ++i) {
          if (i < first * row || i >= (first + rows) * row) values.host[i] = NAN;
        }
        values.upload();
      };
      spoil(y.q);
      spoil(y.k);
      spoil(y.v);
      run(y, y.args, kernel);
      const std::vector<float> spoiled = y.out.download();
      const std::size_t row = static_cast<std::size_t>(s.heads) * dim;
      const bool same = std::equal(clean.begin() + first * row, clean.begin() + (first + rows) * row,
                                   spoiled.begin() + first * row);
      expect(same, std::string(kernel_name(kernel)) + " D=" + std::to_string(dim) +
                       ": a neighbour's NaN came across");
    }
  }
}

/// Decode in a batch whose warps take runs of chunks, against each sequence alone.
void check_decode_invariance() {
  Shape s;
  s.heads = s.kv_heads = 12;
  s.mask = MaskKind::causal_lower_right;
  for (int b = 0; b < 40; ++b) s.lengths.push_back({1, 1 + b * 97 % 2500});
  DeviceProblem x(s);
  run(x, x.args, Kernel::decode);
  const auto all = x.out.device.values();
  {  // the general kernel, which looks at every score
    const DeviceArray<std::uint8_t> visible(std::vector<std::uint8_t>{1});
    cuda::ForwardArgs a = x.args;
    a.mask = {};
    a.mask.kind = MaskKind::boolean;
    a.mask.visible = visible.get();
    run(x, a, Kernel::decode);
    expect(x.out.device.values() == all, "decode: bits of the general kernel differ");
  }
  const std::size_t row_bytes = static_cast<std::size_t>(s.heads) * s.dim * 2;
  for (int b = 0; b < 40; b += 3) {
    const std::vector<std::int32_t> cu_q{0, 1}, cu_k{0, s.lengths[b].second};
    DeviceArray<std::int32_t> d_q(cu_q), d_k(cu_k);
    cuda::ForwardArgs a = x.args;
    a.cu_q = d_q.get();
    a.cu_k = d_k.get();
    a.batch = 1;
    const auto shift = [](cuda::HeadRows& r, int by) {
      r.data = static_cast<std::byte*>(r.data) + by * r.row * 2;
    };
    shift(a.q, b);
    shift(a.out, b);
    shift(a.k, x.cu_k[b]);
    shift(a.v, x.cu_k[b]);
    a.lse = nullptr;
    run(x, a, Kernel::decode);
    const auto now = x.out.device.values();
    expect(std::memcmp(now.data() + b * row_bytes, all.data() + b * row_bytes, row_bytes) == 0,
           "decode: bits of sequence " + std::to_string(b) + " alone differ");
  }
}

/// Decode that puts new rows into their pages itself: the same pages and results as append() and decode after
/// it.
void check_fresh() {
  constexpr int kHeads = 12, kDim = 64, kMost = 24;
  constexpr std::size_t kRun = 64 * kDim * 2, kPage = 2 * kHeads * kRun;
  for (const int batch : {1, 2, 24}) {
    Random random(7);
    std::vector<std::int32_t> cu{0}, old, keys;
    const int known[] = {62, 64, 63, 0,
                         1400};  // new rows in one page, at its beginning, at its end, alone, in two
    for (int b = 0; b < batch; ++b) {
      const int rows = b % 3 == 0 ? 3 : 1;
      cu.push_back(cu.back() + rows);
      old.push_back(b < 5 ? known[b] : b * 131 % 1400);
      keys.push_back(old.back() + rows);
    }
    const std::int64_t row = 3 * kHeads * kDim;
    Values qkv(DType::bf16, cu.back() * row), out(DType::bf16, cu.back() * row / 3),
        pool(DType::bf16, batch * kMost * kPage / 2);
    qkv.randomise(random, 1.0f);
    pool.randomise(random, 1.0f);
    const auto clean = pool.device.values();
    std::vector<const std::byte*> table;
    for (int i = 0; i < batch * kMost; ++i)
      table.push_back(pool.device.get() + i * 7 % (batch * kMost) * kPage);
    DeviceArray<const std::byte*> d_table(table);
    DeviceArray<std::int32_t> d_cu(cu), d_old(old), d_keys(keys);
    cuda::ForwardArgs a;
    const auto rows_at = [&](int which) {
      return cuda::HeadRows{qkv.device.get() + which * kHeads * kDim * 2, row, kDim};
    };
    a.q = rows_at(0);
    a.out = {out.device.get(), row / 3, kDim};
    a.pages = {d_table.get(), kMost, 0, kRun, kDim, 2 * 64 * kDim};
    a.cu_q = d_cu.get();
    a.k_length = d_keys.get();
    a.batch = batch;
    a.heads = a.kv_heads = kHeads;
    a.dim = kDim;
    a.q_rows = cu.back();
    a.scale = 0.125f;
    a.mask.kind = MaskKind::causal_lower_right;
    const cuda::FreshRows fresh{rows_at(1), rows_at(2), d_cu.get(), d_old.get()};
    const cuda::DecodeShape shape{3, 2048};
    DeviceArray<std::byte> workspace(cuda::decode_workspace_bytes(a, shape));
    DeviceArray<unsigned int> counters(static_cast<std::size_t>(batch) * kHeads);
    counters.fill(0);
    const auto decode = [&](const cuda::DeviceTraits& device) {
      out.device.fill(0xff);
      must(cuda::decode(a, shape, {workspace.get(), counters.get()}, device, nullptr), "decode");
      must(cudaDeviceSynchronize(), "decode");
      return out.device.values();
    };
    must(cuda::append({DType::bf16, fresh, a.pages, batch, cu.back(), kHeads, kDim}, nullptr), "append");
    const auto want = decode(older), pages = pool.device.values();
    expect(pages != clean, "append() left the pages as they were");
    a.fresh = fresh;
    for (const cuda::DeviceTraits& device : {older, traits}) {
      pool.device.set(clean);
      expect(decode(device) == want, "decode that appends: results differ");
      expect(pool.device.values() == pages, "decode that appends: pages differ");
    }
  }
}

/// The same keys in pages, through a table that is out of order, give the same bits.
void check_pages() {
  for (const DType dtype : kTypes) {
    for (const int dim : {64, 128}) {
      for (const int queries : {1, 5, 200}) {
        Shape s;
        s.dtype = s.out = dtype;
        s.dim = dim;
        s.mask = MaskKind::causal_lower_right;
        s.lengths = {{queries, 333}, {1, 64}, {queries, 200}};
        DeviceProblem x(s);
        const std::size_t size = dtype_size(dtype), run_bytes = 64 * dim * size,
                          page_bytes = 2 * 2 * run_bytes;
        const int most = 6;
        std::vector<std::byte> pool(3 * most * page_bytes, std::byte{0xff});
        DeviceArray<std::byte> d_pool(pool.size());
        std::vector<const std::byte*> table(3 * most, nullptr);
        std::vector<std::int32_t> lengths;
        for (int b = 0; b < 3; ++b) {
          const int keys = s.lengths[b].second;
          lengths.push_back(keys);
          for (int j = 0; j < keys; ++j) {
            const std::size_t page = ((b * most + j / 64) * 7 + 3) % (3 * most);
            table[b * most + j / 64] = d_pool.get() + page * page_bytes;
            for (int h = 0; h < 2; ++h) {
              for (int d = 0; d < dim; ++d) {
                std::byte* k = pool.data() + page * page_bytes + h * run_bytes;
                encode_element(k, dtype, j % 64 * dim + d, x.k_value(x.cu_k[b] + j, h, d));
                encode_element(k + 2 * run_bytes, dtype, j % 64 * dim + d, x.v_value(x.cu_k[b] + j, h, d));
              }
            }
          }
        }
        d_pool.set(pool);
        DeviceArray<const std::byte*> d_table(table);
        DeviceArray<std::int32_t> d_lengths(lengths);
        for (const Kernel kernel : {Kernel::mma, Kernel::decode}) {
          if (!can(x, kernel)) continue;
          run(x, x.args, kernel);
          const auto packed = x.out.device.values();
          cuda::ForwardArgs a = x.args;
          a.pages = {d_table.get(), most, 0, static_cast<std::int64_t>(2 * run_bytes), dim, 64 * dim};
          a.k = a.v = {};
          a.cu_k = nullptr;
          a.k_length = d_lengths.get();
          run(x, a, kernel);
          expect(x.out.device.values() == packed,
                 std::string(kernel_name(kernel)) + " pages differ " + describe(s));
        }
      }
    }
  }
}

}  // namespace

int main() {
  must(cuda::read_traits(0, traits), "device");
  older = small = traits;
  small.processors = 2;
  older.no_hopper = "it is to be as if there were none";
  std::printf("kernels of Hopper: %s; %d processors\n",
              traits.no_hopper.empty() ? "they run" : std::string(traits.no_hopper).c_str(),
              traits.processors);
  check_groups();
  report("groups");
  check_lengths();
  report("lengths and masks");
  check_dims();
  report("head dims");
  check_dropout();
  report("dropout");
  check_invariance();
  check_decode_invariance();
  report("invariance");
  check_pages();
  check_fresh();
  report("pages");
  std::printf("%s: %d checks, %d failures\n", failures == 0 ? "passed" : "FAILED", checks, failures);
  return failures == 0 ? 0 : 1;
}
