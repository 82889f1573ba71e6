// Weights in blocks on the device: their values are the CPU's bit for bit, in every format, type
// and row, and what is computed with them is what is computed with a dense weight of these values,
// decoded by the product's kernel and by panels, whole and in slices.
#include <memory>
#include <random>

#include "io/encodings.h"
#include "support/device_test.h"
#include "support/head_arrays.h"
#include "support/setting.h"

namespace {

using namespace balora;
using namespace balora::test;

// A weight (rows,columns) in blocks, and its values.
struct Blocks {
  std::string name;
  int64_t rows, columns;
  std::shared_ptr<const balora_encoding> encoding;
  Array bytes;

  std::vector<double> values() const {
    std::vector<float> decoded(static_cast<size_t>(rows * columns));
    encoding->decode(encoding.get(), bytes->host_data(), 0, rows * columns, decoded.data());
    return {decoded.begin(), decoded.end()};
  }
  Array dense(DeviceTest& t, int32_t dtype) const {
    return t.of_values(dtype, {rows, columns}, values());
  }
  View on(const DeviceTest::ViewOf& view, int32_t dtype) const {
    View w = contiguous_view(view(bytes)->data, dtype, {rows, columns});
    w.encoding = encoding.get();
    return w;
  }
};

// Random bytes below `limit`: 0x40 keeps what is read as f16 below 2.
Array random_bytes(DeviceTest& t, int64_t count, int limit) {
  const Array bytes = t.empty<uint8_t>({count});
  for (int64_t i = 0; i < count; ++i) {
    bytes->set(i, static_cast<double>(t.generator()() % static_cast<uint32_t>(limit)));
  }
  return bytes;
}

void set_factors(DeviceTest& t, const Array& bytes, int64_t at, int64_t count) {
  std::uniform_real_distribution<float> factor(0.01f, 0.1f);
  auto* const to = reinterpret_cast<float*>(static_cast<char*>(bytes->host_data()) + at);
  for (int64_t i = 0; i < count; ++i) to[i] = factor(t.generator());
}

Blocks of_gguf(DeviceTest& t, const io::GgmlTypeInfo& type, int64_t rows, int64_t columns,
               int limit = 0x40) {
  const int64_t count = rows * columns / type.block * type.bytes;
  return {type.name, rows, columns, io::ggml_encoding(type), random_bytes(t, count, limit)};
}

Blocks four_bits(DeviceTest& t, int64_t rows, int64_t columns, int64_t block,
                 int64_t nested_block = 0, bool fp4 = false) {
  const io::FourBitLayout layout{
      .count = rows * columns, .block = block, .nested_block = nested_block};
  const Array bytes = random_bytes(t, layout.bytes(), 256);
  if (nested_block) {
    set_factors(t, bytes, layout.nested_at(), layout.nested_blocks());
    set_factors(t, bytes, layout.map_at(), io::FourBitLayout::kMapSize);
  } else {
    set_factors(t, bytes, layout.absmax_at(), layout.blocks());
  }
  const char* name = fp4 ? "FP4" : "NF4";
  return {name, rows, columns,
          io::four_bit_encoding(name, layout, fp4 ? io::fp4_code() : io::nf4_code(), 0.37f), bytes};
}

Blocks int8_rows(DeviceTest& t, int64_t rows, int64_t columns) {
  const Array bytes = random_bytes(t, io::int8_bytes(rows, columns), 256);
  set_factors(t, bytes, io::int8_scales_at(rows, columns), rows);
  return {"int8", rows, columns, io::int8_encoding(rows, columns), bytes};
}

// Each format, where blocks have an odd place in rows and where they have not.
std::vector<Blocks> all_formats(DeviceTest& t, int limit = 0x40) {
  std::vector<Blocks> all;
  for (uint32_t id = 0; id < 64; ++id) {
    const io::GgmlTypeInfo* const type = io::find_ggml_type(id);
    if (!type || !type->decoded) continue;
    const int64_t columns = type->block == 1 ? 45 : type->block == 32 ? 96 : type->block;
    all.push_back(of_gguf(t, *type, 9, columns, limit));
  }
  all.push_back(four_bits(t, 9, 64, 64));
  all.push_back(four_bits(t, 9, 45, 64));
  all.push_back(four_bits(t, 7, 40, 6));
  all.push_back(four_bits(t, 9, 200, 24));
  all.push_back(four_bits(t, 9, 128, 32, 0, true));
  all.push_back(four_bits(t, 11, 96, 32, 8));
  all.push_back(four_bits(t, 11, 35, 10, 6));
  all.push_back(int8_rows(t, 9, 64));
  all.push_back(int8_rows(t, 9, 37));
  return all;
}

TEST_CASE_TEMPLATE("values of weights in blocks are the CPU's bits", T, BALORA_FLOAT_TYPES) {
  DeviceTest t;
  for (const Blocks& w : all_formats(t, 256)) {
    CAPTURE(w.name);
    CAPTURE(w.columns);
    for (const int32_t to : {BALORA_F32, BALORA_BF16, BALORA_F16, BALORA_F64}) {
      const Array y = t.make(to, {w.rows, w.columns});
      t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
        const View source = w.on(view, dtype_of<T>());
        return call(k.copy, ctx, {.source = &source, .destination = view(y)});
      });
      t.check_equal(y);
    }
  }
}

TEST_CASE_TEMPLATE("rows of a table in blocks", T, BALORA_FLOAT_TYPES) {
  DeviceTest t;
  for (const Blocks& w : all_formats(t)) {
    CAPTURE(w.name);
    const Array ids = t.values<int32_t>({5}, {6, 0, 3, 3, 1}), y = t.empty<T>({5, w.columns});
    t.both([&](const KernelTable& k, Context* ctx, const auto& view) {
      const View table = w.on(view, dtype_of<T>());
      return call(k.select_rows, ctx, {.table = &table, .ids = view(ids), .y = view(y)});
    });
    t.check_equal(y);
  }
}

TEST_CASE("a row outside a table in blocks is reported") {
  DeviceTest t;
  const Blocks w = four_bits(t, 9, 64, 64);
  const Array ids = t.values<int32_t>({2}, {3, 9}), y = t.empty<float>({2, 64});
  CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    const View table = w.on(view, BALORA_F32);
    return call(k.select_rows, ctx, {.table = &table, .ids = view(ids), .y = view(y)});
  }) == 0);
  CHECK(t.synchronize() != 0);
  CHECK(t.error().find("9") != std::string::npos);
}

// ---- linears ------------------------------------------------------------------------------------

// Linears on one input, whose weights are in blocks or dense.
struct Layer {
  DeviceTest& t;
  int32_t dtype;
  std::vector<Blocks> blocks;
  std::vector<Array> dense, y, dy, bias;
  Array x, dx, a, b, u, da, db;

  Layer(DeviceTest& test, int32_t type, int64_t rows, std::vector<Blocks> weights)
      : t(test), dtype(type), blocks(std::move(weights)) {
    const int64_t in = blocks[0].columns, out = blocks[0].rows;
    const int32_t wide = type == BALORA_F64 ? BALORA_F64 : BALORA_F32;
    x = t.random(type, {rows, in}), dx = t.make(type, {rows, in});
    a = t.random(wide, {4, in}), b = t.random(wide, {out, 4}), u = t.make(wide, {rows, 4});
    da = t.make(wide, {4, in}), db = t.make(wide, {out, 4});
    for (const Blocks& w : blocks) {
      dense.push_back(w.dense(t, type));
      y.push_back(t.make(type, {rows, w.rows}));
      dy.push_back(t.random(type, {rows, w.rows}));
      bias.push_back(t.random(type, {w.rows}));
    }
  }

  using Values = std::vector<std::vector<double>>;

  // y of each linear, then dx, da, db. `invariant`: forward alone, for rows on their own.
  Values run(bool in_blocks, bool invariant = false) {
    Values found;
    const auto with = [&](const auto& view, const std::vector<Array>& results, const auto& body) {
      std::vector<View> weights;
      for (const Blocks& w : blocks) weights.push_back(w.on(view, dtype));
      const LowRankOperands part = {
          .a = view(a), .b = view(b), .u = view(u), .da = view(da), .db = view(db), .scale = 0.5};
      std::vector<LinearOperands> linears;
      for (size_t i = 0; i < blocks.size(); ++i) {
        linears.push_back(
            {.weight = in_blocks ? weight_of(weights[i]) : balora_weight{.dense = view(dense[i])},
             .bias = view(bias[i]),
             .y = view(results[i]),
             .parts = &part,
             .part_count = i == 0 ? 1 : 0});
      }
      return body(linears.data(), static_cast<int32_t>(linears.size()));
    };
    const auto on_device = [&](const DeviceTest::Row& row) {
      REQUIRE_MESSAGE(t.on_device(row) == 0, t.error());
      REQUIRE_MESSAGE(t.synchronize() == 0, t.error());
    };
    on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
      return with(view, y, [&](const LinearOperands* linears, int32_t count) {
        return call(
            k.linear_forward, ctx,
            {.x = view(x), .linears = linears, .count = count, .batch_invariant = invariant});
      });
    });
    for (const Array& each : y) found.push_back(each->from_device());
    if (invariant) return found;
    for (int64_t i = 0; i < u->size(); ++i) u->set(i, 0.25 * static_cast<double>(i % 7));
    on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
      return with(view, dy, [&](const LinearOperands* linears, int32_t count) {
        return call(k.linear_backward, ctx,
                    {.x = view(x), .dx = view(dx), .linears = linears, .count = count});
      });
    });
    for (const Array& each : {dx, da, db}) found.push_back(each->from_device());
    return found;
  }
};

void check_layer(int32_t dtype, int64_t rows, const std::vector<Blocks>& weights, DeviceTest& t) {
  CAPTURE(rows);
  Layer layer(t, dtype, rows, weights);
  for (const bool invariant : {false, true}) {
    const Layer::Values found = layer.run(true, invariant), wanted = layer.run(false, invariant);
    // On a GPU cuBLAS may sum a slice in another order than the whole.
    const double tolerance = t.emulated() ? 0 : dtype == BALORA_BF16 ? 0x1p-7 : 1e-3;
    for (size_t i = 0; i < found.size(); ++i) check_near(found[i], wanted[i], tolerance, "linear");
  }
}

TEST_CASE("linears with a weight in blocks equal those with its values") {
  for (const int32_t dtype : {BALORA_BF16, BALORA_F32, BALORA_F16, BALORA_F64}) {
    CAPTURE(dtype);
    DeviceTest t;
    // bf16: decoded as the product loads it.
    for (const Blocks& w : all_formats(t)) {
      CAPTURE(w.name);
      CAPTURE(w.columns);
      check_layer(dtype, 5, {w}, t);
    }
  }
}

TEST_CASE("linears with a weight in blocks and many rows, by panels") {
  DeviceTest t;
  for (const Blocks& w : all_formats(t)) {
    CAPTURE(w.name);
    check_layer(BALORA_BF16, 131, {w}, t);
  }
}

TEST_CASE("linears that share an input, in blocks of several formats") {
  for (const char* way : {"", "own", "cublas"}) {
    CAPTURE(way);
    const Setting choice("BALORA_CUDA_LINEAR", way);
    DeviceTest t;
    const io::GgmlTypeInfo &q4 = *io::find_ggml_type("Q4_K"), &q6 = *io::find_ggml_type("Q6_K");
    const io::GgmlTypeInfo& iq4 = *io::find_ggml_type("IQ4_XS");
    std::vector<Blocks> weights = {of_gguf(t, q4, 70, 256), of_gguf(t, iq4, 33, 256),
                                   of_gguf(t, q6, 9, 256)};
    check_layer(BALORA_BF16, 3, weights, t);
    check_layer(BALORA_F32, 3, weights, t);
    check_layer(BALORA_BF16, 0, weights, t);
    // More than a launch decodes.
    weights.push_back(four_bits(t, 17, 256, 64));
    weights.push_back(int8_rows(t, 5, 256));
    check_layer(BALORA_BF16, 67, weights, t);
  }
}

// Panels of 256 columns, the least.
TEST_CASE("linears with a weight in blocks, in slices") {
  const Setting panel("BALORA_CUDA_PANEL_BYTES", "1");
  for (const char* way : {"", "cublas"}) {
    CAPTURE(way);
    const Setting choice("BALORA_CUDA_LINEAR", way);
    DeviceTest t;
    for (const auto& [out, in] : {std::pair{600, 40}, {33, 523}}) {
      const std::vector<Blocks> weights = {four_bits(t, out, in, 64), int8_rows(t, out, in)};
      check_layer(BALORA_BF16, 130, weights, t);
      check_layer(BALORA_F32, 3, weights, t);
      check_layer(BALORA_F16, 3, weights, t);
    }
  }
}

TEST_CASE("a size of panels that is none is refused") {
  const Setting panel("BALORA_CUDA_PANEL_BYTES", "many");
  DeviceTest t;
  Layer layer(t, BALORA_F32, 3, {four_bits(t, 9, 64, 64)});
  CHECK(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
    const View w = layer.blocks[0].on(view, BALORA_F32);
    const LinearOperands linear = {.weight = weight_of(w), .y = view(layer.y[0])};
    return call(k.linear_forward, ctx, {.x = view(layer.x), .linears = &linear, .count = 1});
  }) != 0);
  CHECK(t.error() == "BALORA_CUDA_PANEL_BYTES must be a number, got many");
}

TEST_CASE_TEMPLATE("row_norm of a weight in blocks", T, BALORA_FLOAT_TYPES) {
  for (const char* bytes : {"", "1"}) {
    const Setting panel("BALORA_CUDA_PANEL_BYTES", bytes);
    DeviceTest t;
    const Blocks w = four_bits(t, 300, 45, 64);
    const Array dense = w.dense(t, dtype_of<T>()), norm = t.empty<Acc<T>>({300});
    const Array a = t.random<Acc<T>>({5, 45}), b = t.random<Acc<T>>({300, 5});
    const auto norms = [&](bool in_blocks) {
      REQUIRE(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
        const View blocks = w.on(view, dtype_of<T>());
        const LowRankOperands part = {.a = view(a), .b = view(b), .scale = 0.5};
        return call(k.row_norm, ctx,
                    {.weight = weight_of(in_blocks ? blocks : *view(dense)),
                     .parts = &part,
                     .part_count = 1,
                     .norm = view(norm)});
      }) == 0);
      REQUIRE(t.synchronize() == 0);
      return norm->from_device();
    };
    CHECK(norms(true) == norms(false));
  }
}

// ---- heads --------------------------------------------------------------------------------------

TEST_CASE_TEMPLATE("head losses of a head in blocks", T, BALORA_FLOAT_TYPES) {
  for (const char* bytes : {"", "1"}) {
    CAPTURE(bytes);
    const Setting panel("BALORA_CUDA_PANEL_BYTES", bytes);
    for (const bool other : {false, true}) {
      DeviceTest t;
      const HeadSetting s{.m = 9, .c = 64, .v = 600, .other_head = other};
      HeadArrays arrays = make_head_arrays<T>(t, s);
      const Blocks w = four_bits(t, s.v, s.c, 64);
      const Blocks wt = of_gguf(t, *io::find_ggml_type("Q8_0"), s.v, s.c);
      arrays.w = w.dense(t, dtype_of<T>()), arrays.wt = wt.dense(t, dtype_of<T>());
      arrays.dw = nullptr;
      const DeviceTest::Row with_values = head_losses_of(arrays, s);
      const auto run = [&](bool in_blocks) {
        REQUIRE(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
          if (!in_blocks) return with_values(k, ctx, view);
          std::vector<View> heads = {w.on(view, dtype_of<T>()), wt.on(view, dtype_of<T>())};
          return with_values(k, ctx, [&](const Array& array) {
            return array && array == arrays.w    ? &heads[0]
                   : array && array == arrays.wt ? &heads[1]
                                                 : view(array);
          });
        }) == 0);
        REQUIRE(t.synchronize() == 0);
        std::vector<std::vector<double>> found;
        for (const Array& each : {arrays.sums, arrays.rows, arrays.dh}) {
          found.push_back(each->from_device());
        }
        return found;
      };
      const auto found = run(true), wanted = run(false);
      const double rounding = *bytes ? epsilon_of<T>() + kHeadTolerance<T> : 0;
      for (size_t i = 0; i < found.size(); ++i) check_near(found[i], wanted[i], rounding, "head");
    }
  }
}

TEST_CASE_TEMPLATE("the summary of a teacher whose head is in blocks", T, BALORA_FLOAT_TYPES) {
  for (const char* bytes : {"", "1"}) {
    CAPTURE(bytes);
    const Setting panel("BALORA_CUDA_PANEL_BYTES", bytes);
    DeviceTest t;
    const HeadSetting s{.m = 5, .c = 64, .v = 600};
    const HeadArrays arrays = make_head_arrays<T>(t, s);
    const Blocks w = four_bits(t, s.v, s.c, 64);
    const Array dense = w.dense(t, dtype_of<T>());
    const auto run = [&](bool in_blocks) {
      REQUIRE(t.on_device([&](const KernelTable& k, Context* ctx, const auto& view) {
        const View head = in_blocks ? w.on(view, dtype_of<T>()) : *view(dense);
        return call(k.teacher_summary, ctx,
                    {.teacher = {.kind = BALORA_TEACHER_LIVE, .hidden = view(arrays.h)},
                     .w = &head,
                     .summary = kept_teacher(arrays, view),
                     .options = s.options});
      }) == 0);
      REQUIRE(t.synchronize() == 0);
      return std::pair{arrays.mean->from_device(), arrays.entropy->from_device()};
    };
    const auto found = run(true), wanted = run(false);
    const double rounding = *bytes ? kHeadTolerance<T> : 0;
    check_near(found.first, wanted.first, rounding, "mean");
    check_near(found.second, wanted.second, rounding, "entropy");
  }
}

}  // namespace
