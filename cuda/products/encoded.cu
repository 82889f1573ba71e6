// Panels of weights in blocks, decoded into scratch. A warp has a row, its lanes eight neighbours
// each. An element of NF4 is 0.56 bytes read and two written in bf16: a weight of (4096,4096) is
// 43 MB, 13 us at 3.2 TB/s, beside 98 us of its product with 2,048 rows at 700 TFLOP/s. Some 15
// operations an element are 9 us of the plain cores. Not measured on a GPU.
#include "products/encoded.cuh"

#include <cstdlib>

namespace balora::cuda {
namespace {

constexpr int kThreads = 256, kRows = kThreads / kWarp;
constexpr int64_t kColumnsOfWarp = 4 * kWarp * kEight;
constexpr int64_t kPanelBytes = int64_t{96} << 20;
constexpr int64_t kSliceUnit = 256;  // columns: whole tiles of the products

int64_t panel_bytes(Context* ctx) {
  const char* bytes = variable_of(ctx, "BALORA_CUDA_PANEL_BYTES");
  if (!bytes || !*bytes) return kPanelBytes;
  char* end = nullptr;
  const int64_t value = std::strtoll(bytes, &end, 10);
  if (*end == '\0' && value > 0) return value;
  throw std::runtime_error(std::string("BALORA_CUDA_PANEL_BYTES must be a number, got ") + bytes);
}

// log2, or -1.
int32_t shift_of(int64_t value) {
  if (value < 1 || (value & (value - 1)) != 0) return -1;
  int32_t shift = 0;
  while (int64_t{1} << shift < value) ++shift;
  return shift;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    decode_matrix(const __grid_constant__ Encoded w, PanelPlace place, T* to, int64_t stride,
                  bool packed) {
  BALORA_SHARED(float, code, 16);
  load_code(w, code);
  const int64_t step = int64_t{gridDim.x} * kRows;
  for (int64_t r = int64_t{blockIdx.x} * kRows + threadIdx.x / kWarp; r < place.rows; r += step) {
    decode_row(w, code, place.first_row + r, place.first_column, place.columns, to + r * stride,
               packed, blockIdx.y, gridDim.y);
  }
}

}  // namespace

Encoded encoded_of(const View& view) {
  const balora_encoding& how = *view.encoding;
  Encoded w{};
  w.data = static_cast<const uint8_t*>(view.data);
  w.columns = view.ndim > 0 ? view.shape[view.ndim - 1] : 1;
  w.dtype = view.dtype;
  w.how = how;
  w.block_shift = shift_of(how.block), w.nested_shift = shift_of(how.nested_block);
  w.by_eights = how.format != BALORA_BLOCKS_FOUR_BIT || how.block % kEight == 0;
  return w;
}

void decode_panel(Context* ctx, const View& weight, const PanelPlace& place, const ResultRows& to) {
  if (place.rows == 0 || place.columns == 0) return;
  const int64_t rows = std::min<int64_t>(ceil_div(place.rows, kRows), kMaxBlocks);
  const int64_t parts = std::clamp<int64_t>(place.columns / kColumnsOfWarp, 1, 65535);
  const Grid grid{dim3(static_cast<unsigned>(rows), static_cast<unsigned>(parts)), dim3(kThreads)};
  dispatch_float(to.dtype, [&]<typename T>() {
    launch(ctx, "decode", grid, decode_matrix<T>, encoded_of(weight), place,
           static_cast<T*>(to.data), to.stride, writes_packs<T>(to.data, to.stride));
  });
}

int64_t slice_of(Context* ctx, int64_t count, int64_t bytes) {
  const int64_t fitting = panel_bytes(ctx) / std::max<int64_t>(bytes, 1) / kSliceUnit;
  const int64_t slices = ceil_div(count, std::max<int64_t>(fitting, 1) * kSliceUnit);
  if (slices <= 1) return count;
  return ceil_div(ceil_div(count, slices), kSliceUnit) * kSliceUnit;
}

}  // namespace balora::cuda
