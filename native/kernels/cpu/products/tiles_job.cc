// Terms as a walk reads them: ragged edges copied and filled up with zeros, rows and panels packed.
#include "kernels/cpu/products/tiles_job.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace balora::tiles {
namespace {

// x (rows,k) into `to` (padded_rows, padded_k), zeros around.
void copy_padded(const bf16* x, int64_t lda, int64_t rows, int64_t k, bf16* to, int64_t padded_rows,
                 int64_t padded_k) {
  for (int64_t i = 0; i < padded_rows; ++i) {
    bf16* row = to + i * padded_k;
    const int64_t width = i < rows ? k : 0;
    if (width) std::memcpy(row, x + i * lda, static_cast<size_t>(width) * sizeof(bf16));
    std::memset(row + width, 0, static_cast<size_t>(padded_k - width) * sizeof(bf16));
  }
}

// A tile may read neither past its row nor past the last row, so ragged edges are copied to
// `scratch`; of a term without a tail not the rows, which nobody reads.
Source make_source(const TileTerm& term, int64_t m, bool has_tail, bf16*& scratch) {
  const int64_t padded = round_up(term.k, kTileK), whole = m / kPanelRows * kPanelRows;
  const int64_t used = term.used > 0 ? term.used : term.k;
  Source source = {.a = term.a,
                   .lda = term.lda,
                   .tail_ld = padded,
                   .steps = padded / kTileK,
                   .pairs = (used + 1) / 2,
                   .tiles = term.tiles};
  if (padded != term.k) {
    copy_padded(term.a, term.lda, m, term.k, scratch, m, padded);
    source.a = scratch, source.lda = padded;
    scratch += m * padded;
  }
  if (!has_tail) return source;
  if (term.padded_rows) {
    source.tail = source.a + whole * source.lda, source.tail_ld = source.lda;
  } else if (whole < m) {
    copy_padded(source.a + whole * source.lda, source.lda, m - whole, padded, scratch, kPanelRows,
                padded);
    source.tail = scratch;
    scratch += kPanelRows * padded;
  }
  return source;
}

// Whether B of the last term of a sum of m rows is multiplied where it lies, but for a last panel
// that is not whole.
bool is_in_place(int64_t m, const TileSum& sum) {
  if (m > kInPlaceRows || sum.terms.empty() || !sum.int8.empty()) return false;
  const TileTerm& last = sum.terms.back();
  if (last.tiles || last.matrix.encoded || last.matrix.k_stride != 1 || last.k % kTileK != 0) {
    return false;
  }
  const auto unpacked = [](const TileTerm& term) { return !term.tiles; };
  return std::count_if(sum.terms.begin(), sum.terms.end(), unpacked) == 1;
}

// The rows of A (m,k), k a multiple of kTileK, as columns of a packed B operand of which only the
// first m exist: the products of the others, of whatever is there, are not used.
void pack_columns(const bf16* a, int64_t lda, int64_t m, int64_t k, bf16* to) {
  for (int64_t j = 0; j < m; ++j) {
    for (int64_t pair = 0; pair < k / 2; ++pair) {
      const int64_t step = pair / (kTileK / 2), row = pair % (kTileK / 2);
      std::memcpy(to + step * kStepElements + row * kTileN + 2 * j, a + j * lda + 2 * pair,
                  2 * sizeof(bf16));
    }
  }
}

}  // namespace

int64_t padding_elements(const TileTerm& term, int64_t m) {
  const int64_t padded = round_up(term.k, kTileK);
  const bool has_tail = m % kPanelRows != 0 && (!term.padded_rows || padded != term.k);
  return (has_tail ? kPanelRows * padded : 0) + (padded != term.k ? m * padded : 0);
}

Job make_job(int64_t m, std::span<const TileProjection> projections, std::span<const TileSum> sums,
             bf16* scratch) {
  Job job{m, {}, {}, {}};
  for (const TileProjection& p : projections) {
    job.projections.push_back({make_source(p.x, m, true, scratch), p.factors});
  }
  for (const TileSum& sum : sums) {
    if (sum.out.accumulate && (sum.out.dtype != BALORA_F32 || !sum.int8.empty())) {
      throw std::logic_error("a sum that accumulates is in f32, and has no terms in int8");
    }
    Sum& made = job.sums.emplace_back(Sum{sum.n, {}, {}, sum.out});
    made.in_place = !sum.out.accumulate && is_in_place(m, sum);
    for (const TileTerm& term : sum.terms) {
      const bool read_in_place = made.in_place && &term == &sum.terms.back() && sum.n % kTileN == 0;
      if (!term.tiles) made.unpacked.push_back({made.terms.size(), term.matrix, term.k});
      made.terms.push_back(make_source(term, m, !read_in_place, scratch));
    }
    for (const TileInt8Term& term : sum.int8) made.int8.push_back({term.a, term.b});
  }
  for (size_t s = 0; s < job.sums.size(); ++s) {
    int64_t bytes = 0;
    const int64_t width = job.sums[s].panels_at_once();
    for (const Source& term : job.sums[s].terms) bytes += term.steps * kStepElements * int64_t{2};
    for (const Int8Source& term : job.sums[s].int8) bytes += term.b.steps() * kInt8StepBytes;
    for (int64_t p = 0; p * kTileN < job.sums[s].n; p += width) {
      job.items.push_back({s, p, bytes * width});
    }
  }
  return job;
}

int64_t in_place_elements(const Job& job) {
  int64_t elements = 0;
  if (!tiles_core().packs_rows) return elements;
  for (const Sum& sum : job.sums) {
    if (sum.in_place) elements += tiles_size(sum.unpacked[0].k, kInPlaceRows);
  }
  return elements;
}

void pack_in_place_rows(Job& job, bf16* scratch) {
  for (size_t s = 0; s < job.sums.size(); ++s) {
    Sum& sum = job.sums[s];
    if (!sum.in_place) continue;
    const Source& term = sum.terms.back();
    const int64_t k = sum.unpacked[0].k;
    const Sum* const before = s > 0 ? &job.sums[s - 1] : nullptr;
    if (before && before->rows && before->terms.back().a == term.a) {
      sum.rows = before->rows;  // linears that share their input
      continue;
    }
    pack_columns(term.a, term.lda, job.m, k, scratch);
    sum.rows = scratch;
    scratch += tiles_size(k, kInPlaceRows);
  }
}

void pack_items(const Job& job, size_t first, size_t last, std::vector<Sum>& sums, bf16* to) {
  for (size_t begin = first, end = first; begin < last; begin = end) {
    while (end < last && job.items[end].sum == job.items[begin].sum) ++end;
    Sum& sum = sums[job.items[begin].sum];
    const int64_t from = job.items[begin].panel;
    const int64_t until = job.items[end - 1].panel + sum.panels_at_once();
    for (const Unpacked& operand : sum.unpacked) {
      Source& term = sum.terms[operand.term];
      pack_tile_panels(operand.matrix, operand.k, sum.n, from, until, to);
      term.tiles = to, term.first_panel = from;
      to += (until - from) * term.steps * kStepElements;
    }
    for (Int8Source& term : sum.int8) {
      auto* const packed = reinterpret_cast<int8_t*>(to);
      pack_int8_panels(term.b, from, until, packed);
      term.tiles = packed, term.first_panel = from;
      to += int8_elements(term.b, until - from);
    }
  }
}

}  // namespace balora::tiles
