// Weights in blocks of codes (io/encodings.h): made of their parts on any device, or on the CPU of
// values, and what JS asks of them.
#include <algorithm>
#include <cstddef>
#include <string>
#include <tuple>

#include "binding/bind.h"
#include "binding/stored.h"
#include "engine/graph.h"
#include "engine/launch.h"
#include "io/encodings.h"
#include "io/offload.h"
#include "kernels/cpu/runtime/parallel.h"
#include "ops/ops.h"

namespace balora::binding {
namespace {

// A 4-bit weight by its parts, each (n) and contiguous.
struct FourBitParts {
  std::string type;  // "NF4", "FP4"
  int64_t block_size;
  std::vector<double> code;             // (16)
  Tensor packed;                        // u8
  Tensor absmax;                        // f32; u8 beside the nested parts
  std::optional<Tensor> nested_absmax;  // f32
  std::optional<Tensor> nested_map;     // (256) f32
  int64_t nested_block_size;
  double nested_offset;
};

void check_part(const std::string& name, const char* part, const Tensor& t, DType dtype,
                int64_t count) {
  if (t.dtype() == dtype && t.numel() == count && t.is_contiguous()) return;
  throw FormatError(name, -1,
                    concat(part, " must have ", count, " values in ", dtype_name(dtype), ", got ",
                           t.numel(), " in ", dtype_name(t.dtype())));
}

const char* four_bit_name(const std::string& type) {
  if (type == "NF4") return "NF4";
  if (type == "FP4") return "FP4";
  throw ArgumentError(concat("fourBitWeight: type must be NF4 or FP4, got ", type));
}

struct Section {
  Tensor part;
  int64_t at;
};

// Bytes of memory as a vector of u8.
View bytes_at(void* data, int64_t bytes) {
  View view{};
  view.data = data, view.ndim = 1, view.dtype = BALORA_U8;
  view.shape[0] = bytes, view.stride[0] = 1;
  return view;
}

void require_cpu(const char* op, const Engine& engine) {
  if (engine.host_memory()) return;
  throw UnsupportedError(concat(
      op, ": values are quantised and checked on the CPU, got a tensor on ", engine.device()));
}

// Throws FormatError for the first value of `view`, on the CPU, that is NaN or infinite.
void refuse_non_finite(const Launch& l, const View& view, const std::string& name) {
  const int64_t at = find_non_finite_value(l.ctx, *view.encoding, view.data, view_numel(view));
  if (at >= 0) throw FormatError(name, -1, concat("element ", at, " is NaN or infinite"));
}

// The encoded tensor `to`: the sections, each at its place in it. Errors begin with `name`. Pages
// of files, which are not read again, are dropped.
Tensor assembled(const std::string& name, const std::vector<Section>& sections, const Tensor& to,
                 bool check_finite) {
  if (check_finite) require_cpu(name.c_str(), to.engine());
  std::vector<Tensor> parts;
  std::vector<int64_t> places;
  std::vector<bool> in_file;
  for (const Section& section : sections) {
    parts.push_back(contiguous(section.part.detach())), places.push_back(section.at);
    in_file.push_back(parts.back().impl()->storage->external());
  }
  const Tensor outputs[] = {to.as_encoded()};
  launch("blocks", parts, outputs, [places, in_file, name, check_finite](Launch& l) {
    const View& out = *l.out(0);
    for (size_t i = 0; i < places.size(); ++i) {
      const View& part = *l.in(i);
      const int64_t bytes = view_numel(part) * dtype_size(static_cast<DType>(part.dtype));
      if (bytes == 0) continue;
      const View from = bytes_at(part.data, bytes);
      const View section = bytes_at(static_cast<char*>(out.data) + places[i], bytes);
      const int32_t status =
          call(l.kernels->copy, l.ctx, {.source = &from, .destination = &section});
      if (status != 0) return status;
      if (!in_file[i]) continue;
      platform::drop_pages({static_cast<const std::byte*>(part.data), static_cast<size_t>(bytes)});
    }
    if (check_finite) refuse_non_finite(l, out, name);
    return 0;
  });
  return to;
}

Tensor four_bit_weight(Engine& engine, std::string name, FourBitParts parts, Shape shape,
                       DType dtype, bool check_finite) {
  refuse_while_recording(engine, "a weight in blocks");
  const bool nested = parts.nested_absmax && parts.nested_map;
  if (parts.block_size < 2 || parts.block_size % 2 != 0 || parts.nested_block_size < 1) {
    throw FormatError(name, -1,
                      concat("blocks must have an even number of elements, got ", parts.block_size,
                             " and ", parts.nested_block_size, " of them"));
  }
  const io::FourBitLayout layout{.count = shape.numel(),
                                 .block = parts.block_size,
                                 .nested_block = nested ? parts.nested_block_size : 0};
  check_part(name, "the codes", parts.packed, DType::kU8, layout.packed_bytes());
  check_part(name, "absmax", parts.absmax, nested ? DType::kU8 : DType::kF32, layout.blocks());
  if (nested) {
    check_part(name, "nested_absmax", *parts.nested_absmax, DType::kF32, layout.nested_blocks());
    check_part(name, "nested_quant_map", *parts.nested_map, DType::kF32,
               io::FourBitLayout::kMapSize);
  }
  io::FourBitCode code{};
  if (parts.code.size() != code.size()) {
    throw FormatError(name, -1, concat("quant_map must have 16 values, got ", parts.code.size()));
  }
  std::transform(parts.code.begin(), parts.code.end(), code.begin(),
                 [](double value) { return static_cast<float>(value); });
  auto encoding = io::four_bit_encoding(four_bit_name(parts.type), layout, code,
                                        static_cast<float>(parts.nested_offset));
  const Tensor to = Tensor::encoded(engine, shape, dtype, std::move(encoding), layout.bytes());
  std::vector<Section> sections = {{parts.packed, 0}, {parts.absmax, layout.absmax_at()}};
  if (nested) {
    sections.push_back({*parts.nested_absmax, layout.nested_at()});
    sections.push_back({*parts.nested_map, layout.map_at()});
  }
  return assembled(name, sections, to, check_finite);
}

// weight (O,I) i8 as bytes, scales (O): the largest magnitude of each row.
Tensor int8_weight(Engine& engine, std::string name, Tensor weight, Tensor scales, Shape shape,
                   DType dtype, bool check_finite) {
  refuse_while_recording(engine, "a weight in blocks");
  if (shape.ndim() != 2) {
    throw FormatError(name, -1, concat("int8 weights are matrices, got ", shape.to_string()));
  }
  check_part(name, "the weight", weight, DType::kU8, shape.numel());
  check_part(name, "SCB", scales, DType::kF32, shape[0]);
  const Tensor to = Tensor::encoded(engine, shape, dtype, io::int8_encoding(shape[0], shape[1]),
                                    io::int8_bytes(shape[0], shape[1]));
  return assembled(name, {{weight, 0}, {scales, io::int8_scales_at(shape[0], shape[1])}}, to,
                   check_finite);
}

// x (...) -> its codes ((n + 1) / 2) u8 and absmax (n / block_size, rounded up) f32.
std::tuple<Tensor, Tensor> quantize_nf4(Tensor x, int64_t block_size) {
  constexpr const char* kOp = "quantize_nf4";
  check_float(kOp, "x", x);
  require_cpu(kOp, x.engine());
  if (block_size < 2 || block_size % 2 != 0) {
    throw ArgumentError(concat(kOp, ": blockSize must be even, got ", block_size));
  }
  const Tensor values = cast(contiguous(x.detach()), DType::kF32);
  const io::FourBitLayout layout{.count = x.numel(), .block = block_size};
  const Tensor packed = Tensor::empty(x.engine(), {layout.packed_bytes()}, DType::kU8);
  const Tensor absmax = Tensor::empty(x.engine(), {layout.blocks()}, DType::kF32);
  launch(kOp, {values}, {packed, absmax}, [layout](Launch& l) {
    const auto* const from = static_cast<const float*>(l.in(0)->data);
    auto* const codes = static_cast<uint8_t*>(l.out(0)->data);
    auto* const scales = static_cast<float*>(l.out(1)->data);
    parallel_for(l.ctx, layout.blocks(), 256, [&](int64_t begin, int64_t end) {
      io::encode_nf4(from, layout.count, layout.block, begin, end, codes, scales);
    });
    return 0;
  });
  return {packed, absmax};
}

// absmax (n) f32 -> its codes (n) u8, nested_absmax (n / 256, rounded up) f32, the offset () f32.
std::tuple<Tensor, Tensor, Tensor> quantize_absmax(Tensor absmax) {
  constexpr const char* kOp = "quantize_absmax";
  check_dtype(kOp, "absmax", absmax, DType::kF32);
  check_ndim(kOp, "absmax", absmax, 1);
  require_cpu(kOp, absmax.engine());
  const int64_t n = absmax.numel();
  Engine& engine = absmax.engine();
  const Tensor codes = Tensor::empty(engine, {n}, DType::kU8);
  const Tensor nested =
      Tensor::empty(engine, {(n + io::kNestedBlock - 1) / io::kNestedBlock}, DType::kF32);
  const Tensor offset = Tensor::empty(engine, {}, DType::kF32);
  launch(kOp, {contiguous(absmax.detach())}, {codes, nested, offset}, [n](Launch& l) {
    *static_cast<float*>(l.out(2)->data) = io::encode_absmax(
        static_cast<const float*>(l.in(0)->data), n, static_cast<uint8_t*>(l.out(0)->data),
        static_cast<float*>(l.out(1)->data));
    return 0;
  });
  return {codes, nested, offset};
}

template <typename Values>
std::vector<double> widened(const Values& values) {
  return {values.begin(), values.end()};
}
std::vector<double> four_bit_code(std::string type) {
  return widened(std::string(four_bit_name(type)) == "NF4" ? io::nf4_code() : io::fp4_code());
}
std::vector<double> nested_map(Env&) {
  return widened(io::dynamic_map());
}

// The name of a tensor's encoding; '': its bytes are its values.
std::string encoding_of(Tensor x) {
  return x.encoding() ? x.encoding()->name : "";
}
// Bytes of memory of the storage behind a tensor.
int64_t storage_bytes(Tensor x) {
  return x.impl()->storage->bytes();
}

}  // namespace

template <>
struct Named<FourBitParts> {
  static auto fields() {
    using S = FourBitParts;
    return std::tuple{field("type", &S::type),
                      field("blockSize", &S::block_size),
                      field("code", &S::code),
                      field("packed", &S::packed),
                      field("absmax", &S::absmax),
                      field("nestedAbsmax", &S::nested_absmax),
                      field("nestedMap", &S::nested_map),
                      field("nestedBlockSize", &S::nested_block_size),
                      field("nestedOffset", &S::nested_offset)};
  }
};

void bind_blocks(Module& m) {
  op(m, "fourBitWeight", &four_bit_weight, {"name", "parts", "shape", "dtype", "checkFinite"});
  op(m, "int8Weight", &int8_weight, {"name", "weight", "scales", "shape", "dtype", "checkFinite"});
  op(m, "quantizeNf4", &quantize_nf4, {"x", "blockSize"}, Grad::kNone);
  op(m, "quantizeAbsmax", &quantize_absmax, {"absmax"}, Grad::kNone);
  op(m, "fourBitCode", &four_bit_code, {"type"});
  op(m, "nestedMap", &nested_map, {});
  op(m, "encodingOf", &encoding_of, {"x"});
  op(m, "storageBytes", &storage_bytes, {"x"});
}

}  // namespace balora::binding
