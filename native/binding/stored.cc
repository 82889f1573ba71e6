#include "binding/stored.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/graph.h"
#include "engine/launch.h"
#include "io/dequantize.h"
#include "io/offload.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora::binding {
namespace {

[[noreturn]] void refuse_element(const io::MappedFile& file, const std::string& name,
                                 std::span<const std::byte> bytes, int64_t element) {
  throw FormatError(file.path(), bytes.data() - file.bytes().data(),
                    concat(name, ": element ", element,
                           " is NaN or infinite, so the weights are damaged "
                           "or their training diverged"));
}

// Throws FormatError for the first NaN or infinity among `count` elements that begin with the
// tensor's element `first`.
void refuse_non_finite(const Stored& stored, DType dtype, const void* data, int64_t count,
                       int64_t first) {
  const int64_t at = io::find_non_finite(dtype, data, count);
  if (at >= 0) refuse_element(*stored.file, stored.name, stored.bytes, first + at);
}

// Straight into the tensor where the CPU can write it; else chunk by chunk into the buffers that
// the device copies from, so that the host never holds a second copy of the weights and decoding
// goes on while a chunk is under way.
void decode_into(Launch& l, const Stored& stored, bool check_finite) {
  const View& out = *l.out(0);
  const auto dtype = static_cast<DType>(out.dtype);
  const int64_t unit_bytes = stored.unit_elements * dtype_size(dtype);
  const bool direct = l.engine->host_memory();
  const bool staged = !direct && l.kernels->pin && unit_bytes <= StagingRing::kChunkBytes;
  const int64_t step =
      direct ? stored.units : std::max<int64_t>(1, StagingRing::kChunkBytes / unit_bytes);
  std::unique_ptr<char[]> buffer;
  if (!direct && !staged) {
    const int64_t most = std::min(step, stored.units) * unit_bytes;
    buffer = std::make_unique_for_overwrite<char[]>(static_cast<size_t>(most));
  }
  StagingRing& ring = l.engine->ring();
  for (int64_t begin = 0; begin < stored.units; begin += step) {
    const int64_t count = std::min(step, stored.units - begin), bytes = count * unit_bytes;
    char* target = static_cast<char*>(out.data) + begin * unit_bytes;
    char* decoded = direct ? target : staged ? static_cast<char*>(ring.fill()) : buffer.get();
    parallel_for(l.ctx, count, stored.grain, [&](int64_t from, int64_t to) {
      stored.decode(begin + from, begin + to, decoded + from * unit_bytes);
    });
    if (check_finite) {
      refuse_non_finite(stored, dtype, decoded, count * stored.unit_elements,
                        begin * stored.unit_elements);
    }
    if (direct) continue;
    if (staged) {
      ring.send_filled(l.ctx, target, bytes);
    } else {
      ring.send(l.ctx, target, decoded, bytes);
    }
  }
}

// Before the bytes are used: what was used is then what the digests are of, or it shows.
template <typename S>
void remember(Launch& l, const S& stored) {
  io::PartDigests digests(stored.bytes);
  parallel_for(l.ctx, static_cast<int64_t>(digests.blocks()), 1, [&](int64_t begin, int64_t end) {
    digests.compute(static_cast<size_t>(begin), static_cast<size_t>(end));
  });
  stored.file->remember(std::move(digests));
}

}  // namespace

Tensor read_stored(Engine& engine, const Shape& shape, DType dtype, Stored stored,
                   bool check_finite) {
  refuse_while_recording(engine, "reading a file");
  Tensor t = Tensor::empty(engine, shape, dtype);
  if (t.numel() == 0) return t;
  launch("read", {}, {t}, [stored = std::move(stored), check_finite](Launch& l) {
    l.engine->depend_on(stored.file);
    remember(l, stored);
    decode_into(l, stored, check_finite);
    platform::drop_pages(stored.bytes);  // which are not read again
    return 0;
  });
  return t;
}

Tensor alias_stored(Engine& engine, const Shape& shape, DType dtype, Stored stored,
                    bool check_finite) {
  Tensor t = Tensor::external(engine, shape, dtype, stored.bytes.data(), stored.file);
  launch("read", {t}, {}, [stored = std::move(stored), check_finite](Launch& l) {
    remember(l, stored);
    const View& view = *l.in(0);
    if (check_finite) {
      refuse_non_finite(stored, static_cast<DType>(view.dtype), view.data, view_numel(view), 0);
    }
    return 0;
  });
  return t;
}

namespace {

// Rows of the file in the order of the tensor, by chunks of whole rows. A chunk is a tensor in
// blocks itself, since no block belongs to two rows.
void copy_blocks(Launch& l, const StoredBlocks& stored, bool check_finite) {
  const View& out = *l.out(0);
  const int64_t rows = stored.rows ? out.shape[0] : 1;
  const auto row_bytes = static_cast<int64_t>(stored.bytes.size()) / rows;
  const int64_t columns = view_numel(out) / rows;
  const bool direct = l.engine->host_memory();
  const int64_t step =
      stored.rows && !direct ? std::max<int64_t>(1, StagingRing::kChunkBytes / row_bytes) : rows;
  std::vector<std::byte> buffer;
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t count = std::min(step, rows - first);
    char* const to = static_cast<char*>(out.data) + first * row_bytes;
    const void* chunk = stored.bytes.data();
    if (stored.rows) {
      if (!direct) buffer.resize(static_cast<size_t>(count * row_bytes));
      auto* const in_order = direct ? reinterpret_cast<std::byte*>(to) : buffer.data();
      for (int64_t row = 0; row < count; ++row) {
        std::memcpy(in_order + row * row_bytes,
                    stored.bytes.data() + stored.rows(first + row) * row_bytes,
                    static_cast<size_t>(row_bytes));
      }
      chunk = in_order;
    }
    const int64_t at =
        check_finite ? find_non_finite_value(l.ctx, *out.encoding, chunk, count * columns) : -1;
    if (at >= 0) refuse_element(*stored.file, stored.name, stored.bytes, first * columns + at);
    if (!direct) l.engine->ring().send(l.ctx, to, chunk, count * row_bytes);
  }
}

}  // namespace

Tensor blocks_stored(Engine& engine, const Shape& shape, DType dtype, StoredBlocks stored,
                     bool check_finite) {
  refuse_while_recording(engine, "reading a file");
  const std::span<const std::byte> bytes = stored.bytes;
  if (stored.rows || !engine.host_memory()) {
    Tensor t =
        Tensor::encoded(engine, shape, dtype, stored.encoding, static_cast<int64_t>(bytes.size()));
    if (t.numel() == 0) return t;
    launch("read", {}, {t.as_encoded()}, [stored = std::move(stored), check_finite](Launch& l) {
      l.engine->depend_on(stored.file);
      remember(l, stored);
      copy_blocks(l, stored, check_finite);
      platform::drop_pages(stored.bytes);
      return 0;
    });
    return t;
  }
  Tensor t = Tensor::encoded_external(engine, shape, dtype, stored.encoding, bytes, stored.file);
  if (t.numel() == 0) return t;
  launch("read", {t.as_encoded()}, {}, [stored = std::move(stored), check_finite](Launch& l) {
    l.engine->depend_on(stored.file);
    remember(l, stored);
    const View& view = *l.in(0);
    const int64_t at =
        check_finite ? find_non_finite_value(l.ctx, *view.encoding, view.data, view_numel(view))
                     : -1;
    if (at >= 0) refuse_element(*stored.file, stored.name, stored.bytes, at);
    return 0;
  });
  return t;
}

int64_t find_non_finite_value(const Context* ctx, const balora_encoding& encoding, const void* data,
                              int64_t count) {
  constexpr int64_t kUnit = 4096;
  const int64_t units = (count + kUnit - 1) / kUnit;
  std::vector<int64_t> found(static_cast<size_t>(units), -1);
  parallel_for(ctx, units, 8, [&](int64_t begin, int64_t end) {
    float values[kUnit];
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit * kUnit, n = std::min(kUnit, count - first);
      encoding.decode(&encoding, data, first, n, values);
      const int64_t at = io::find_non_finite(DType::kF32, values, n);
      if (at >= 0) found[static_cast<size_t>(unit)] = first + at;
    }
  });
  const auto bad = std::find_if(found.begin(), found.end(), [](int64_t at) { return at >= 0; });
  return bad == found.end() ? -1 : *bad;
}

}  // namespace balora::binding
