#include "io/encodings.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "io/dequantize.h"
#include "io/four_bit_codes.h"
#include "kernels/shared/blocks.h"
#include "platform/cpu.h"

namespace balora::io {
namespace {

// ---- 4 bits -------------------------------------------------------------------------------------

CodesDecoder choose_codes_decoder() {
  BALORA_ON_X86(if (platform::cpu().uses(platform::kAvx512)) return x86::decode_codes;)
  return decode_codes;
}

void decode_four_bit(const balora_encoding* encoding, const void* data, int64_t first,
                     int64_t count, float* out) {
  static const CodesDecoder decode = choose_codes_decoder();
  const auto* const bytes = static_cast<const uint8_t*>(data);
  for (const int64_t end = first + count; first < end;) {
    const int64_t index = first / encoding->block;
    const int64_t nested = encoding->nested_block ? index / encoding->nested_block : 0;
    const int64_t n = std::min(end, (index + 1) * encoding->block) - first;
    decode(bytes, first, n, encoding->code, blocks::four_bit_scale(*encoding, bytes, index, nested),
           out);
    first += n, out += n;
  }
}

// ---- int8 ---------------------------------------------------------------------------------------

// A block is a row.
void decode_int8(const balora_encoding* encoding, const void* data, int64_t first, int64_t count,
                 float* out) {
  const auto* const bytes = static_cast<const uint8_t*>(data);
  for (const int64_t end = first + count; first < end;) {
    const int64_t row = first / encoding->block;
    const int64_t n = std::min(end, (row + 1) * encoding->block) - first;
    const float scale = blocks::factor_at(bytes, encoding->scales_at, row);
    for (int64_t i = 0; i < n; ++i) out[i] = blocks::int8_value(bytes[first + i], scale);
    first += n, out += n;
  }
}

// ---- GGUF ---------------------------------------------------------------------------------------

constexpr int64_t kLargestBlock = 256;

struct GgmlEncoding : balora_encoding {
  int64_t bytes;
  BlockDecoder decode_blocks;
};

void decode_ggml(const balora_encoding* encoding, const void* data, int64_t first, int64_t count,
                 float* out) {
  const auto& self = *static_cast<const GgmlEncoding*>(encoding);
  const auto* const from = static_cast<const std::byte*>(data);
  const auto part = [&](int64_t begin, int64_t end) {  // of one block
    float values[kLargestBlock];
    const int64_t index = begin / self.block;
    self.decode_blocks(from + index * self.bytes, 1, values);
    std::copy(values + (begin - index * self.block), values + (end - index * self.block), out);
    out += end - begin;
  };
  const int64_t end = first + count;
  const int64_t whole = (first + self.block - 1) / self.block, last = end / self.block;
  if (last < whole) return part(first, end);
  if (first < whole * self.block) part(first, whole * self.block);
  self.decode_blocks(from + whole * self.bytes, last - whole, out);
  out += (last - whole) * self.block;
  if (last * self.block < end) part(last * self.block, end);
}

// ---- encoding -----------------------------------------------------------------------------------

// The values between two neighbouring codes; a tie goes to the lower one.
std::array<float, 15> nf4_boundaries() {
  std::array<float, 15> boundaries{};
  for (size_t i = 0; i < boundaries.size(); ++i) {
    boundaries[i] = (nf4_code()[i] + nf4_code()[i + 1]) / 2;
  }
  return boundaries;
}

int nf4_index(float value, const std::array<float, 15>& boundaries) {
  int index = 0;
  for (const float boundary : boundaries) index += value > boundary;
  return index;
}

// linspace(0.1, 1, count) in f32 as torch computes it, from both ends.
float linspace(int64_t i, int64_t count) {
  const double step = (1.0f - 0.1f) / static_cast<float>(count - 1);
  const auto at = static_cast<double>(i < count / 2 ? i : count - 1 - i);
  return i < count / 2 ? static_cast<float>(static_cast<double>(0.1f) + step * at)
                       : static_cast<float>(1.0 - step * at);
}

}  // namespace

std::shared_ptr<const balora_encoding> four_bit_encoding(const char* name,
                                                         const FourBitLayout& layout,
                                                         const FourBitCode& code, float offset) {
  auto encoding = std::make_shared<balora_encoding>();
  encoding->name = name, encoding->block = layout.block, encoding->decode = decode_four_bit;
  encoding->format = BALORA_BLOCKS_FOUR_BIT;
  encoding->scales_at = layout.absmax_at();
  std::copy(code.begin(), code.end(), encoding->code);
  if (layout.nested_block) {
    encoding->nested_block = layout.nested_block, encoding->offset = offset;
    encoding->nested_at = layout.nested_at(), encoding->map_at = layout.map_at();
  }
  return encoding;
}

std::shared_ptr<const balora_encoding> int8_encoding(int64_t rows, int64_t columns) {
  auto encoding = std::make_shared<balora_encoding>();
  encoding->name = "int8", encoding->block = columns, encoding->decode = decode_int8;
  encoding->format = BALORA_BLOCKS_INT8, encoding->scales_at = int8_scales_at(rows, columns);
  return encoding;
}
int64_t int8_scales_at(int64_t rows, int64_t columns) {
  return (rows * columns + 63) / 64 * 64;
}
int64_t int8_bytes(int64_t rows, int64_t columns) {
  return int8_scales_at(rows, columns) + 4 * rows;
}

std::shared_ptr<const balora_encoding> ggml_encoding(const GgmlTypeInfo& type) {
  auto encoding = std::make_shared<GgmlEncoding>();
  encoding->name = type.name, encoding->block = type.block, encoding->decode = decode_ggml;
  encoding->format = static_cast<int32_t>(type.id);
  encoding->bytes = type.bytes;
  encoding->decode_blocks = find_block_decoder(static_cast<GgmlType>(type.id));
  std::copy(std::begin(blocks::kIq4Values), std::end(blocks::kIq4Values), encoding->code);
  return encoding;
}

const FourBitCode& nf4_code() {
  static constexpr FourBitCode kCode = {
      -1.0f,
      -0.6961928009986877f,
      -0.5250730514526367f,
      -0.39491748809814453f,
      -0.28444138169288635f,
      -0.18477343022823334f,
      -0.09105003625154495f,
      0.0f,
      0.07958029955625534f,
      0.16093020141124725f,
      0.24611230194568634f,
      0.33791524171829224f,
      0.44070982933044434f,
      0.5626170039176941f,
      0.7229568362236023f,
      1.0f,
  };
  return kCode;
}

const FourBitCode& fp4_code() {
  static constexpr FourBitCode kCode = [] {
    constexpr float kTwelfths[8] = {0, 0.0625f, 8, 12, 4, 6, 2, 3};
    FourBitCode code{};
    for (size_t i = 0; i < 8; ++i) code[i] = kTwelfths[i] / 12, code[i + 8] = -(kTwelfths[i] / 12);
    return code;
  }();
  return kCode;
}

void encode_nf4(const float* values, int64_t count, int64_t block, int64_t begin, int64_t end,
                uint8_t* packed, float* absmax) {
  constexpr float kZeroTail = 1e-38f;  // what bitsandbytes stores for a short block of zeros
  static const std::array<float, 15> boundaries = nf4_boundaries();
  for (int64_t b = begin; b < end; ++b) {
    const int64_t first = b * block, n = std::min(block, count - first);
    const float* const x = values + first;
    float largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i]));
    const bool is_short = n < block;
    if (is_short && largest == 0) largest = kZeroTail;
    absmax[b] = largest;
    const float inverse = 1 / largest;
    const auto code = [&](int64_t i) {
      if (largest == 0) return 7;
      return nf4_index(is_short ? x[i] / largest : x[i] * inverse, boundaries);
    };
    for (int64_t i = 0; i < n; i += 2) {
      const int low = i + 1 < n ? code(i + 1) : 7;
      packed[(first + i) / 2] = static_cast<uint8_t>(code(i) << 4 | low);
    }
  }
}

const std::array<float, FourBitLayout::kMapSize>& dynamic_map() {
  static const auto map = [] {
    std::array<float, FourBitLayout::kMapSize> values{};
    size_t next = 0;
    for (int exponent = 0; exponent < 7; ++exponent) {
      const int64_t count = (int64_t{1} << exponent) + 1;
      const auto power = static_cast<float>(std::pow(10.0, exponent - 6));
      for (int64_t i = 0; i + 1 < count; ++i) {
        const float value = power * ((linspace(i, count) + linspace(i + 1, count)) / 2);
        values[next++] = value, values[next++] = -value;
      }
    }
    values[next++] = 0, values[next++] = 1;
    std::sort(values.begin(), values.end());
    return values;
  }();
  return map;
}

float encode_absmax(const float* absmax, int64_t count, uint8_t* codes, float* nested_absmax) {
  const auto& map = dynamic_map();
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(absmax[i]);
  const auto offset = static_cast<float>(sum / static_cast<double>(std::max<int64_t>(count, 1)));
  for (int64_t first = 0; first < count; first += kNestedBlock) {
    const int64_t n = std::min(kNestedBlock, count - first);
    float largest = 0;
    for (int64_t i = 0; i < n; ++i)
      largest = std::max(largest, std::abs(absmax[first + i] - offset));
    nested_absmax[first / kNestedBlock] = largest;
    for (int64_t i = 0; i < n; ++i) {
      if (largest == 0) {  // any code stands for the offset; the library has 0
        codes[first + i] = 0;
        continue;
      }
      const float x = (absmax[first + i] - offset) / largest;
      // 65,536 levels, then the entry nearest to the level, the lower one of two.
      const float level = std::trunc((x + 1) * 0.5f * 65535.0f + 0.5f);
      const float value = level / 65535.0f * 2 - 1;
      const auto above = std::lower_bound(map.begin(), map.end(), value);
      auto nearest = above == map.end() ? above - 1 : above;
      if (nearest != map.begin() && value - *(nearest - 1) <= *nearest - value) --nearest;
      codes[first + i] = static_cast<uint8_t>(nearest - map.begin());
    }
  }
  return offset;
}

}  // namespace balora::io
