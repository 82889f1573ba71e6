// copy: the one kernel behind contiguous(), cast() and copy_(): any strides, any pair of types, one
// read and one write of each element.
//
// Elements of one type are moved as bytes: a contiguous view by the driver; rows by the widest
// access (up to 16 bytes) that lengths, strides and addresses allow; a transposed source through
// tiles in shared memory, so that both sides are read and written by whole lines. Elements of two
// types are converted, float rows by groups of eight. A float becomes an integer by truncation
// towards zero, saturating at the ends (NaN gives 0); f64 and integers go through f32 on their way
// to bf16 or f16. A source in blocks is decoded into a contiguous destination.
#include "elementwise/elementwise.cuh"
#include "products/encoded.cuh"

namespace balora::cuda {
namespace {

// ---- Moving bytes -------------------------------------------------------------------------------

template <typename U>
__global__ void move_elements(const U* source, U* destination,
                              const __grid_constant__ Loop<2> loop) {
  for (int64_t i = thread_index(); i < loop.count; i += thread_count()) {
    int64_t at[2];
    offsets(loop, i, 1, at);
    destination[at[1]] = source[at[0]];
  }
}

// A tile has 64 columns of the small types, so that a row of it is a line of 128 or 64 bytes.
template <typename U>
constexpr int kTile = sizeof(U) <= 2 ? 64 : 32;
constexpr int kTileThreads = 256;

// The source is contiguous along dimension `dim`, the destination along the last.
template <typename U>
__global__ void move_tiles(const U* source, U* destination, const __grid_constant__ Loop<2> loop,
                           int dim) {
  constexpr int kSide = kTile<U>, kStep = kTileThreads / kSide;
  BALORA_SHARED(U, tile, kSide * (kSide + 1));
  const int last = loop.ndim - 1;
  const int64_t rows = loop.shape[dim], columns = loop.shape[last];
  const int64_t row_tiles = (rows + kSide - 1) / kSide,
                column_tiles = (columns + kSide - 1) / kSide;
  int64_t rest = blockIdx.x;
  const int64_t first_column = rest % column_tiles * kSide;
  rest /= column_tiles;
  const int64_t first_row = rest % row_tiles * kSide;
  rest /= row_tiles;
  for (int d = last - 1; d >= 0; --d) {
    if (d == dim) continue;
    source += rest % loop.shape[d] * loop.stride[d][0];
    destination += rest % loop.shape[d] * loop.stride[d][1];
    rest /= loop.shape[d];
  }
  const int lane = threadIdx.x % kSide, first = threadIdx.x / kSide;
  for (int c = first; c < kSide; c += kStep) {  // along the source's line
    const int64_t row = first_row + lane, column = first_column + c;
    if (row < rows && column < columns) {
      tile[c * (kSide + 1) + lane] = source[row + column * loop.stride[last][0]];
    }
  }
  __syncthreads();
  for (int r = first; r < kSide; r += kStep) {
    const int64_t row = first_row + r, column = first_column + lane;
    if (row < rows && column < columns) {
      destination[row * loop.stride[dim][1] + column] = tile[lane * (kSide + 1) + r];
    }
  }
}

// The dimension (not the last) along which the source is contiguous while the destination is so
// along the last; -1: none.
int transposed_dim(const Loop<2>& loop) {
  if (loop.step(0) == 1 || loop.step(0) == 0 || loop.step(1) != 1 || loop.length < 8) return -1;
  for (int d = 0; d + 1 < loop.ndim; ++d) {
    if (loop.stride[d][0] == 1 && loop.shape[d] >= 8) return d;
  }
  return -1;
}

template <typename U>
void move_as(Context* ctx, const View* source, const View* destination, const Loop<2>& loop,
             int dim) {
  const U* s = data_of<U>(source);
  U* d = data_of<U>(destination);
  if constexpr (sizeof(U) <= 8) {
    if (dim >= 0) {
      const int64_t rows = loop.shape[dim], columns = loop.length, side = kTile<U>;
      const int64_t tiles =
          loop.count / (rows * columns) * ceil_div(rows, side) * ceil_div(columns, side);
      const Grid grid{dim3(static_cast<unsigned>(tiles)), dim3(kTileThreads)};
      return launch(ctx, "copy", grid, move_tiles<U>, s, d, loop, dim);
    }
  }
  launch(ctx, "copy", elements(loop.count), move_elements<U>, s, d, loop);
}

// Doubles the unit of a row copy where nothing is split by it.
bool widen(Loop<2>& loop, const View* source, const View* destination, int bytes) {
  const int last = loop.ndim - 1;
  const auto odd = [&](const View* v) {
    return reinterpret_cast<uintptr_t>(v->data) % static_cast<uintptr_t>(2 * bytes) != 0;
  };
  if (bytes >= 16 || loop.step(0) != 1 || loop.step(1) != 1 || loop.length % 2 != 0) return false;
  if (odd(source) || odd(destination)) return false;
  for (int d = 0; d < last; ++d) {
    if (loop.stride[d][0] % 2 != 0 || loop.stride[d][1] % 2 != 0) return false;
  }
  for (int d = 0; d < last; ++d) {
    for (int64_t& stride : loop.stride[d]) stride /= 2;
  }
  loop.shape[last] /= 2;
  loop.length /= 2;
  loop.count /= 2;
  return true;
}

int element_bytes(int32_t dtype) {
  int bytes = 0;
  dispatch_any(dtype, [&]<typename T>() { bytes = sizeof(T); });
  return bytes;
}

void move(Context* ctx, const View* source, const View* destination, Loop<2> loop) {
  int bytes = element_bytes(source->dtype);
  if (loop.ndim == 1 && loop.step(0) == 1 && loop.step(1) == 1) {
    const size_t size = static_cast<size_t>(loop.count) * static_cast<size_t>(bytes);
    check_stream(ctx,
                 cudaMemcpyAsync(destination->data, source->data, size, cudaMemcpyDeviceToDevice,
                                 stream_of(ctx)),
                 "copy");
    return;
  }
  while (widen(loop, source, destination, bytes)) bytes *= 2;
  const int dim = transposed_dim(loop);
  switch (bytes) {
    case 1:
      return move_as<uint8_t>(ctx, source, destination, loop, dim);
    case 2:
      return move_as<uint16_t>(ctx, source, destination, loop, dim);
    case 4:
      return move_as<uint32_t>(ctx, source, destination, loop, dim);
    case 8:
      return move_as<uint64_t>(ctx, source, destination, loop, dim);
    default:
      return move_as<Pack<uint32_t, 4>>(ctx, source, destination, loop, dim);
  }
}

// ---- Converting ---------------------------------------------------------------------------------

template <typename A>
__global__ void convert_floats(Operand source, Operand destination,
                               const __grid_constant__ Loop<2> loop) {
  for (int64_t g = thread_index(); g < loop.count; g += thread_count()) {
    int64_t at[2];
    const int count = group_offsets(loop, g, at);
    A value[kGroup];
    read_group(source, at[0], loop.step(0), count, value);
    write_group(destination, at[1], loop.step(1), count, value);
  }
}

__device__ int64_t truncated(double value, int32_t dtype) {
  const int64_t low = dtype == BALORA_I32 ? INT32_MIN : dtype == BALORA_I64 ? INT64_MIN : 0;
  const int64_t high = dtype == BALORA_I32 ? INT32_MAX : dtype == BALORA_I64 ? INT64_MAX : 255;
  if (!(value == value)) return 0;
  if (value <= static_cast<double>(low)) return low;
  if (value >= static_cast<double>(high)) return high;  // 2^63 - 1 is no double, 2^63 is
  return static_cast<int64_t>(value);
}

__host__ __device__ inline bool is_integer(int32_t dtype) {
  return dtype == BALORA_I32 || dtype == BALORA_I64 || dtype == BALORA_U8;
}

// At least one of the two is an integer type.
__global__ void convert_integers(Operand source, Operand destination,
                                 const __grid_constant__ Loop<2> loop) {
  for (int64_t i = thread_index(); i < loop.count; i += thread_count()) {
    int64_t at[2];
    offsets(loop, i, 1, at);
    if (!is_integer(source.dtype)) {
      write(destination, at[1], truncated(read<double>(source, at[0]), destination.dtype));
      continue;
    }
    const int64_t value = read<int64_t>(source, at[0]);
    if (is_integer(destination.dtype)) {
      write(destination, at[1], value);
    } else if (destination.dtype == BALORA_F64) {
      write(destination, at[1], static_cast<double>(value));
    } else {
      write(destination, at[1], static_cast<float>(value));
    }
  }
}

void convert(Context* ctx, const View* source, const View* destination, const Loop<2>& loop) {
  const Operand s = operand(source, loop, 0), d = operand(destination, loop, 1);
  if (is_integer(source->dtype) || is_integer(destination->dtype)) {
    return launch(ctx, "copy", elements(loop.count), convert_integers, s, d, loop);
  }
  const bool wide = source->dtype == BALORA_F64 || destination->dtype == BALORA_F64;
  const Loop<2> by_eight = by_groups(loop);
  launch(ctx, "copy", elements(by_eight.count),
         wide ? convert_floats<double> : convert_floats<float>, s, d, by_eight);
}

}  // namespace

int32_t copy_kernel(Context* ctx, const balora_copy& o) {
  if (const View& from = *o.source; from.encoding) {
    const int64_t columns = from.ndim > 0 ? from.shape[from.ndim - 1] : 1;
    const int64_t rows = columns > 0 ? view_numel(from) / columns : 0;
    decode_panel(ctx, from, {0, rows, 0, columns},
                 {o.destination->data, o.destination->dtype, columns});
    return 0;
  }
  const Loop<2> loop = plan_loop<2>({o.source, o.destination});
  if (loop.count == 0) return 0;
  if (o.source->dtype == o.destination->dtype) {
    move(ctx, o.source, o.destination, loop);
  } else {
    convert(ctx, o.source, o.destination, loop);
  }
  return 0;
}

}  // namespace balora::cuda
