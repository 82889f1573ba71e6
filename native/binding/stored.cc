#include "binding/stored.h"

#include <algorithm>
#include <utility>

#include "engine/graph.h"
#include "engine/launch.h"
#include "io/dequantize.h"
#include "kernels/cpu/runtime/parallel.h"

namespace balora::binding {
namespace {

// Throws FormatError for the first NaN or infinity among `count` elements that begin with the
// tensor's element `first`.
void refuse_non_finite(const Stored& stored, DType dtype, const void* data, int64_t count,
                       int64_t first) {
  const int64_t at = io::find_non_finite(dtype, data, count);
  if (at >= 0) {
    throw FormatError(stored.file->path(), stored.bytes.data() - stored.file->bytes().data(),
                      concat(stored.name, ": element ", first + at,
                             " is NaN or infinite, so the weights are damaged "
                             "or their training diverged"));
  }
}

// Straight into the tensor where the CPU can write it; else chunk by chunk into the buffers that
// the device copies from, so that the host never holds a second copy of the weights and decoding
// goes on while a chunk is under way.
int32_t decode_into(Launch& l, const Stored& stored, bool check_finite) {
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
  return 0;
}

// Before the bytes are used: what was used is then what the digests are of, or it shows.
void remember(Launch& l, const Stored& stored) {
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
  const Tensor t = Tensor::empty(engine, shape, dtype);
  if (t.numel() == 0) return t;
  launch("read", {}, {t}, [stored = std::move(stored), check_finite](Launch& l) {
    l.engine->depend_on(stored.file);
    remember(l, stored);
    return decode_into(l, stored, check_finite);
  });
  return t;
}

Tensor alias_stored(Engine& engine, const Shape& shape, DType dtype, Stored stored,
                    bool check_finite) {
  const Tensor t = Tensor::external(engine, shape, dtype, stored.bytes.data(), stored.file);
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

}  // namespace balora::binding
