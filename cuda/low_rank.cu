#include "low_rank.cuh"

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

__global__ void join_halves(const float* products, int64_t product_stride, int64_t n, int64_t width,
                            int64_t rank, int32_t parts, bf16* out, int64_t stride,
                            PartOutputs outputs) {
  for (int64_t at = thread_index(); at < n * width; at += thread_count()) {
    const int64_t i = at / width, column = at % width;
    const float* from = products + i * product_stride + column;
    const float sum = from[0] + from[width];
    const HiLo pair = split(sum);
    out[i * stride + column] = pair.hi;
    out[i * stride + width + column] = pair.lo;
    const int64_t part = column % parts, j = column / parts;
    if (j < rank && outputs.u[part]) outputs.u[part][i * rank + j] = sum;
  }
}

Masters masters_of(const Panel& panel) {
  Masters m{};
  m.parts = panel.parts, m.rank = panel.rank, m.width = panel.width;
  return m;
}

}  // namespace

std::vector<Panel> panels_of(const LowRankOperands* parts, int32_t count, int32_t linear,
                             bool interleave) {
  std::vector<Panel> panels;
  for (int32_t p = 0; p < count; ++p) {
    if (parts[p].linear != linear) continue;
    const int64_t rank = parts[p].b->shape[1];
    Panel* last = panels.empty() ? nullptr : &panels.back();
    if (!interleave || !last || last->rank != rank || last->parts == kPanelParts) {
      panels.push_back({0, rank, 0, {}});
      last = &panels.back();
    }
    last->part[last->parts++] = &parts[p];
    last->width = ceil_div(last->parts * rank, 8) * 8;
  }
  return panels;
}

void split_a(Context* ctx, const Panel& panel, bf16* out) {
  Masters m = masters_of(panel);
  const int64_t in = panel.part[0]->a->shape[1];
  for (int32_t p = 0; p < panel.parts; ++p) {
    m.data[p] = data_of<float>(panel.part[p]->a);
    m.scale[p] = 1;
  }
  m.row_stride = 1, m.column_stride = in;
  if (in * m.width == 0) return;
  launch(ctx, "low_rank_split", elements(in * m.width), split_columns, m, in, out);
}

void split_b(Context* ctx, const Panel& panel, const Pairs& out) {
  Masters m = masters_of(panel);
  const int64_t rows = panel.part[0]->b->shape[0];
  for (int32_t p = 0; p < panel.parts; ++p) {
    m.data[p] = data_of<float>(panel.part[p]->b);
    m.scale[p] = static_cast<float>(panel.part[p]->scale);
  }
  m.row_stride = panel.rank, m.column_stride = 1;
  if (rows * m.width == 0) return;
  launch(ctx, "low_rank_split", elements(rows * m.width), split_rows, m, rows, out.data,
         out.stride);
}

void split_u(Context* ctx, const View& u, const Pairs& out) {
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
                   int64_t stride, const Pairs& out, bool write_u) {
  PartOutputs outputs{};
  for (int32_t p = 0; p < panel.parts; ++p) {
    if (write_u) outputs.u[p] = data_of<float>(panel.part[p]->u);
  }
  if (n * panel.width == 0) return;
  launch(ctx, "low_rank_join", elements(n * panel.width), join_halves, products, stride, n,
         panel.width, panel.rank, panel.parts, out.data, out.stride, outputs);
}

void add_pair_terms(std::vector<SumTerm>& terms, const Pairs& a, const bf16* b_hi, const bf16* b_lo,
                    int64_t b_stride, bool b_inner) {
  const auto k = static_cast<int32_t>(a.width);
  terms.push_back({a.lo(), b_hi, a.stride, b_stride, k, b_inner});
  terms.push_back({a.hi(), b_lo, a.stride, b_stride, k, b_inner});
  terms.push_back({a.hi(), b_hi, a.stride, b_stride, k, b_inner});
}

}  // namespace balora::cuda
