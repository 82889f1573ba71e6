// Splitting masters into pairs or forming a change, and the products around them: one launch to
// write the factors, then gemm() calls (low_rank.cuh says what the forms are exact to).
#include "linear/low_rank.cuh"

namespace balora::cuda {
namespace {

struct HiLo {
  bf16 hi, lo;
};
__device__ inline HiLo split(float value) {
  const bf16 hi = store<bf16>(value);
  const float rest = value - load(hi);
  return {hi, store<bf16>(rest == rest ? rest : 0.0f)};  // an infinity is all in hi
}

// The masters of a panel, by value for kernels. Element (i, j) of part p at
// data[p][i * row_stride + j * column_stride].
struct Masters {
  const float* data[kPanelParts];
  float scale[kPanelParts];
  int32_t parts;
  int64_t rank, width, row_stride, column_stride;
};

__device__ inline float master_at(const Masters& m, int64_t i, int64_t column) {
  const int64_t part = column % m.parts, j = column / m.parts;
  return j < m.rank ? m.scale[part] * m.data[part][i * m.row_stride + j * m.column_stride] : 0.0f;
}

// Pairs along a row: hi at column, lo at width + column.
__global__ void split_rows(Masters m, int64_t rows, bf16* out, int64_t stride) {
  for (int64_t at = thread_index(); at < rows * m.width; at += thread_count()) {
    const int64_t i = at / m.width, column = at % m.width;
    const HiLo pair = split(master_at(m, i, column));
    out[i * stride + column] = pair.hi;
    out[i * stride + m.width + column] = pair.lo;
  }
}

// The same transposed: row `column` holds hi, row width + column lo, of `rows` elements.
__global__ void split_columns(Masters m, int64_t rows, bf16* out) {
  for (int64_t at = thread_index(); at < rows * m.width; at += thread_count()) {
    const int64_t column = at / rows, i = at % rows;
    const HiLo pair = split(master_at(m, i, column));
    out[column * rows + i] = pair.hi;
    out[(m.width + column) * rows + i] = pair.lo;
  }
}

struct PartOutputs {
  float* u[kPanelParts];  // null: not wanted
};

// Two products (n, width) side by side, and where their rounded halves go.
struct Products {
  const float* data;
  int64_t data_stride, n, width, rank;
  bf16* out;
  int64_t out_stride;
};

__global__ void join_pairs(Products p, int32_t parts, PartOutputs outputs) {
  for (int64_t at = thread_index(); at < p.n * p.width; at += thread_count()) {
    const int64_t i = at / p.width, column = at % p.width;
    const float* from = p.data + i * p.data_stride + column;
    const float sum = from[0] + from[p.width];
    const HiLo pair = split(sum);
    p.out[i * p.out_stride + column] = pair.hi;
    p.out[i * p.out_stride + p.width + column] = pair.lo;
    const int64_t part = column % parts, j = column / parts;
    if (j < p.rank && outputs.u[part]) outputs.u[part][i * p.rank + j] = sum;
  }
}

// A change's products: u from x A^T beside x (A - A0)^T, or their sum.
__global__ void join_change(Products p, float* u, bf16* sum) {
  for (int64_t at = thread_index(); at < p.n * p.width; at += thread_count()) {
    const int64_t i = at / p.width, column = at % p.width;
    const float first = p.data[i * p.data_stride + column];
    const float second = p.data[i * p.data_stride + p.width + column];
    p.out[i * p.out_stride + column] = store<bf16>(first);
    p.out[i * p.out_stride + p.width + column] = store<bf16>(second);
    if (sum) sum[at] = store<bf16>(first + second);
    if (column < p.rank && u) u[i * p.rank + column] = first;
  }
}

constexpr int kChangedFactors = 16;  // in one launch
struct ChangedFactors {
  ChangedFactor at[kChangedFactors];
};

// Factor blockIdx.y, kCount elements of a row a thread: 8 bytes read and 4 written an element.
template <int kCount>
__global__ void split_changes(ChangedFactors factors) {
  const ChangedFactor& f = factors.at[blockIdx.y];
  const int64_t packs = f.padded_cols / kCount, count = f.padded_rows * packs;
  for (int64_t at = thread_index(); at < count; at += thread_count()) {
    const int64_t i = at / packs, j = at % packs * kCount;
    Pack<float, kCount> now{}, start{};
    if (i < f.rows && j < f.cols) {
      now = *reinterpret_cast<const Pack<float, kCount>*>(f.now + i * f.cols + j);
      start = *reinterpret_cast<const Pack<float, kCount>*>(f.start + i * f.cols + j);
    }
    Pack<bf16, kCount> first, second;
    BALORA_UNROLL
    for (int e = 0; e < kCount; ++e) {
      const float difference = now.at[e] - start.at[e];
      first.at[e] = store<bf16>(f.of_b ? f.scale * difference : now.at[e]);
      second.at[e] = store<bf16>(f.of_b ? f.scale * start.at[e] : difference);
    }
    bf16* to = f.out + i * f.stride + j;
    *reinterpret_cast<Pack<bf16, kCount>*>(to) = first;
    *reinterpret_cast<Pack<bf16, kCount>*>(to + f.second) = second;
  }
}

constexpr int kChangePack = 4;
bool takes_packs(const ChangedFactor& f) {
  return f.cols % kChangePack == 0 && f.padded_cols % kChangePack == 0 &&
         f.stride % kChangePack == 0 && f.second % kChangePack == 0 && aligned16(f.now) &&
         aligned16(f.start) && reinterpret_cast<uintptr_t>(f.out) % (2 * kChangePack) == 0;
}

template <int kCount>
void launch_changes(Context* ctx, const ChangedFactor* list, size_t count) {
  ChangedFactors factors{};
  int64_t most = 0;
  for (size_t i = 0; i < count; ++i) {
    factors.at[i] = list[i];
    most = std::max(most, list[i].padded_rows * list[i].padded_cols / kCount);
  }
  if (most == 0) return;
  Grid grid = elements(most);
  grid.blocks.y = static_cast<unsigned>(count);
  launch(ctx, "low_rank_split", grid, split_changes<kCount>, factors);
}

ChangedFactor changed_factor(const View& now, const View& start) {
  ChangedFactor f{};
  f.now = data_of<float>(&now), f.start = data_of<float>(&start);
  f.rows = f.padded_rows = now.shape[0], f.cols = f.padded_cols = now.shape[1];
  return f;
}

Masters masters_of(const Panel& panel) {
  Masters m{};
  m.parts = panel.parts, m.rank = panel.rank, m.width = panel.width;
  return m;
}

int64_t padded(int64_t columns) {
  return ceil_div(columns, 8) * 8;
}

}  // namespace

std::vector<Panel> panels_of(const LinearOperands& linear, int32_t index, bool interleave) {
  std::vector<Panel> panels;
  for (const LowRankOperands& part : parts_of(linear)) {
    const int64_t rank = part.b->shape[1];
    if (part.start_a) {
      panels.push_back({.linear = index,
                        .parts = 1,
                        .change = true,
                        .rank = rank,
                        .width = padded(rank),
                        .part = {&part}});
      continue;
    }
    Panel* last = panels.empty() ? nullptr : &panels.back();
    if (!interleave || !last || last->change || last->rank != rank || last->parts == kPanelParts) {
      panels.push_back({.linear = index, .rank = rank});
      last = &panels.back();
    }
    last->part[last->parts++] = &part;
    last->width = padded(last->parts * rank);
  }
  return panels;
}

void FactorSplitter::add_a(const Panel& panel, bf16* out) {
  if (panel.change) {
    ChangedFactor f = changed_factor(*panel.part[0]->a, *panel.part[0]->start_a);
    f.padded_rows = panel.width;
    f.out = out, f.stride = f.cols, f.second = panel.width * f.cols;
    changed_.push_back(f);
    return;
  }
  Masters m = masters_of(panel);
  const int64_t in = panel.part[0]->a->shape[1];
  for (int32_t p = 0; p < panel.parts; ++p) {
    m.data[p] = data_of<float>(panel.part[p]->a);
    m.scale[p] = 1;
  }
  m.row_stride = 1, m.column_stride = in;
  if (in * m.width == 0) return;
  launch(ctx_, "low_rank_split", elements(in * m.width), split_columns, m, in, out);
}

void FactorSplitter::add_b(const Panel& panel, const Halves& out) {
  if (panel.change) {
    ChangedFactor f = changed_factor(*panel.part[0]->b, *panel.part[0]->start_b);
    f.padded_cols = panel.width;
    f.out = out.data, f.stride = out.stride, f.second = out.width;
    f.scale = static_cast<float>(panel.part[0]->scale), f.of_b = true;
    changed_.push_back(f);
    return;
  }
  Masters m = masters_of(panel);
  const int64_t rows = panel.part[0]->b->shape[0];
  for (int32_t p = 0; p < panel.parts; ++p) {
    m.data[p] = data_of<float>(panel.part[p]->b);
    m.scale[p] = static_cast<float>(panel.part[p]->scale);
  }
  m.row_stride = panel.rank, m.column_stride = 1;
  if (rows * m.width == 0) return;
  launch(ctx_, "low_rank_split", elements(rows * m.width), split_rows, m, rows, out.data,
         out.stride);
}

void FactorSplitter::run() {
  const bool packs = std::all_of(changed_.begin(), changed_.end(), takes_packs);
  for (size_t first = 0; first < changed_.size(); first += kChangedFactors) {
    const size_t count = std::min<size_t>(changed_.size() - first, kChangedFactors);
    const ChangedFactor* list = changed_.data() + first;
    packs ? launch_changes<kChangePack>(ctx_, list, count) : launch_changes<1>(ctx_, list, count);
  }
  changed_.clear();
}

void split_u(Context* ctx, const View& u, const Halves& out) {
  Masters m{};
  m.data[0] = data_of<float>(&u);
  m.scale[0] = 1;
  m.parts = 1, m.rank = u.shape[1], m.width = out.width;
  m.row_stride = u.shape[1], m.column_stride = 1;
  if (u.shape[0] * m.width == 0) return;
  launch(ctx, "low_rank_split", elements(u.shape[0] * m.width), split_rows, m, u.shape[0], out.data,
         out.stride);
}

void join_products(Context* ctx, const Panel& panel, int64_t n, const float* products,
                   int64_t stride, const Joined& out) {
  PartOutputs outputs{};
  for (int32_t p = 0; p < panel.parts; ++p) {
    if (out.write_u) outputs.u[p] = data_of<float>(panel.part[p]->u);
  }
  const int64_t count = n * panel.width;
  if (count == 0) return;
  const Products both{.data = products,
                      .data_stride = stride,
                      .n = n,
                      .width = panel.width,
                      .rank = panel.rank,
                      .out = out.halves.data,
                      .out_stride = out.halves.stride};
  if (panel.change) {
    launch(ctx, "low_rank_join", elements(count), join_change, both, outputs.u[0], out.sum);
  } else {
    launch(ctx, "low_rank_join", elements(count), join_pairs, both, panel.parts, outputs);
  }
}

void add_terms(std::vector<SumTerm>& terms, const Panel& panel, const Halves& a, const bf16* b,
               int64_t b_stride, bool b_inner) {
  const auto add = [&](const bf16* left, const bf16* right, int64_t k) {
    terms.push_back({.a = left,
                     .b = right,
                     .a_stride = a.stride,
                     .b_stride = b_stride,
                     .k = narrowed(k, "an inner extent of"),
                     .b_inner = b_inner});
  };
  const int64_t width = panel.width;
  if (panel.change) return add(a.data, b, 2 * width);
  const bf16* const b_lo = b + width * (b_inner ? 1 : b_stride);
  add(a.second(), b, width);
  add(a.first(), b_lo, width);
  add(a.first(), b, width);
}

}  // namespace balora::cuda
