// pca_updates: incremental principal component analyses, one after the other. The stack of rows
// (kernels/operands/linalg.h) is written in f32, and its leading right singular vectors are those
// that randomized_svds finds (low_rank_svds.cuh): the device does not begin at the components
// before, as the CPU does, and leaves the rows behind the components 0. A stack of M rows takes 8 M
// C bytes here, which is nothing beside the decomposition.
#include <cmath>

#include "linalg/low_rank_svds.cuh"

namespace balora::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kOversample = 10;
constexpr double kBelowAll = -2;  // elements of a unit vector

template <typename T>
__global__ void column_means(const T* x, int64_t n, int64_t c, float* means) {
  for (int64_t j = thread_index(); j < c; j += thread_count()) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(load(x[i * c + j]));
    means[j] = static_cast<float>(sum / static_cast<double>(n));
  }
}

// Components and mean of the rows before; rank 0: there are none.
struct Known {
  const float *vectors, *singular, *mean;
  int64_t rank;
  float factor;  // of the mean's correction as a row
  float share;   // of the new rows in all
};

// a: the components times their singular values, the rows less their mean, the mean's correction.
template <typename T>
__global__ void stack_rows(const T* x, int64_t n, int64_t c, const float* means, Known known,
                           int64_t rows, float* a) {
  for (int64_t at = thread_index(); at < rows * c; at += thread_count()) {
    const int64_t row = at / c, column = at % c;
    if (row < known.rank) {
      a[at] = known.singular[row] * known.vectors[at];
    } else if (row < known.rank + n) {
      a[at] = static_cast<float>(load(x[at - known.rank * c])) - means[column];
    } else {
      a[at] = (means[column] - known.mean[column]) * known.factor;
    }
  }
}

__global__ void mean_of_all(const float* means, int64_t c, Known known, float* mean) {
  for (int64_t j = thread_index(); j < c; j += thread_count()) {
    mean[j] = known.rank == 0 ? means[j] : known.mean[j] + (means[j] - known.mean[j]) * known.share;
  }
}

// One block: total = before + the sum of squares of the values.
__global__ void add_squares(const float* values, int64_t n, const float* before, double* total,
                            float* rounded) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  double sum = 0;
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  }
  const double all = block_reduce(sum, 0.0, scratch);
  if (threadIdx.x != 0) return;
  *total = all + (before ? static_cast<double>(*before) : 0.0);
  *rounded = static_cast<float>(*total);
}

// A block for each component, whose largest element becomes positive.
__global__ void finish_components(const double* vt, const double* s, int64_t c, Known known,
                                  const double* scatter, float* vectors, float* singular,
                                  float* ratios, float* cosines) {
  BALORA_SHARED(double, scratch, kWarp + 1);
  const int64_t row = blockIdx.x;
  double highest = kBelowAll, lowest = kBelowAll;
  for (int64_t j = threadIdx.x; j < c; j += blockDim.x) {
    highest = Max()(vt[row * c + j], highest);
    lowest = Max()(-vt[row * c + j], lowest);
  }
  highest = block_reduce(highest, kBelowAll, scratch, Max());
  lowest = block_reduce(lowest, kBelowAll, scratch, Max());
  const double sign = lowest > highest ? -1 : 1;
  double cosine = 0;
  for (int64_t j = threadIdx.x; j < c; j += blockDim.x) {
    const auto value = static_cast<float>(sign * vt[row * c + j]);
    vectors[row * c + j] = value;
    if (known.rank > 0) {
      cosine += static_cast<double>(value) * static_cast<double>(known.vectors[row * c + j]);
    }
  }
  cosine = block_reduce(cosine, 0.0, scratch);
  if (threadIdx.x != 0) return;
  singular[row] = static_cast<float>(s[row]);
  // Rows that are all alike vary in no direction.
  ratios[row] = *scatter == 0 ? 0.0f : static_cast<float>(s[row] * s[row] / *scatter);
  cosines[row] = static_cast<float>(cosine);
}

Known known_of(const PcaOperands& task, int64_t rank) {
  if (!task.vectors) return {};
  const auto before = static_cast<double>(task.count), rows = static_cast<double>(task.x->shape[0]);
  return {data_of<float>(task.vectors),
          data_of<float>(task.singular),
          data_of<float>(task.mean),
          rank,
          static_cast<float>(std::sqrt(before / (before + rows) * rows)),
          static_cast<float>(rows / (before + rows))};
}

void update(Scratch& scratch, const PcaOperands& task) {
  constexpr const char* kRow = "pca_updates";
  Context* ctx = scratch.ctx();
  const int64_t n = task.x->shape[0], c = task.x->shape[1], rank = task.new_singular->shape[0];
  const Known known = known_of(task, rank);
  const int64_t rows = n + (known.rank > 0 ? rank + 1 : 0);
  const Buffer<float> means(scratch, c), a(scratch, rows * c);
  dispatch_float(task.x->dtype, [&]<typename T>() {
    launch(ctx, kRow, elements(c), column_means<T>, data_of<T>(task.x), n, c, means.data());
    launch(ctx, kRow, elements(rows * c), stack_rows<T>, data_of<T>(task.x), n, c, means.data(),
           known, rows, a.data());
  });
  launch(ctx, kRow, elements(c), mean_of_all, means.data(), c, known,
         data_of<float>(task.new_mean));
  const Buffer<double> scatter(scratch, 1);
  launch(ctx, kRow, Grid{dim3(1), dim3(kThreads)}, add_squares, a.data() + known.rank * c,
         (rows - known.rank) * c, task.scatter ? data_of<float>(task.scatter) : nullptr,
         scatter.data(), data_of<float>(task.new_scatter));
  const View stacked{
      .data = a.data(), .shape = {rows, c}, .stride = {c, 1}, .ndim = 2, .dtype = BALORA_F32};
  const SvdFactors found = leading_triplets(scratch, stacked, {rank, -1, kOversample, task.seed});
  float* vectors = data_of<float>(task.new_vectors);
  const int64_t more = task.new_vectors->shape[0] - rank;
  check_stream(ctx,
               cudaMemsetAsync(vectors + rank * c, 0, static_cast<size_t>(more * c) * sizeof(float),
                               stream_of(ctx)),
               kRow);
  launch(ctx, kRow, Grid{dim3(static_cast<unsigned>(rank)), dim3(kThreads)}, finish_components,
         found.vt.data(), found.s.data(), c, known, scatter.data(), vectors,
         data_of<float>(task.new_singular), data_of<float>(task.ratios),
         data_of<float>(task.cosines));
}

}  // namespace

int32_t pca_updates_kernel(Context* ctx, const balora_pca_updates& o) {
  Scratch scratch(ctx);
  for (int32_t i = 0; i < o.count; ++i) update(scratch, o.tasks[i]);
  return 0;
}

}  // namespace balora::cuda
