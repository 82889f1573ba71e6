// Linears by groups of rows (row_offsets of kernels/operands/linear.h): one group after another as
// a call of its own, so that its rows have the bits that they have alone. But for frozen weights of
// f32, which a call alone packs unless rows must not depend on each other.
#pragma once
#include <algorithm>
#include <deque>
#include <span>
#include <vector>

#include "kernels/cpu/linear/thin.h"
#include "kernels/cpu/linear/tiles.h"
#include "kernels/kernel_table.h"
#include "kernels/shared/messages.h"
#include "kernels/shared/rows.h"

namespace balora {

// The blocks of a weight (G,O,I) from the first value of one of its matrices on.
struct MatrixOfBlocks : balora_encoding {
  const balora_encoding* all;
  int64_t first_value;

  MatrixOfBlocks(const balora_encoding& of, int64_t first)
      : balora_encoding(of), all(&of), first_value(first) {
    decode = [](const balora_encoding* encoding, const void* data, int64_t from, int64_t count,
                float* values) {
      const auto& own = *static_cast<const MatrixOfBlocks*>(encoding);
      own.all->decode(own.all, data, own.first_value + from, count, values);
    };
  }
};

// The operands of one group, which keeps the views of them.
class RowGroup {
 public:
  RowGroup(int64_t group, int64_t first, int64_t count)
      : group_(group), first_(first), count_(count) {}

  int64_t count() const { return count_; }

  // Its rows of an operand (N,...), and its part of one (G,...). Null stays null.
  const View* rows(const View* all) {
    return all ? &views_.emplace_back(rows_of(*all, first_, count_)) : nullptr;
  }
  const View* own(const View* all) {
    if (!all) return nullptr;
    View& part = views_.emplace_back(*all);
    --part.ndim;
    std::copy_n(all->shape + 1, part.ndim, part.shape);
    std::copy_n(all->stride + 1, part.ndim, part.stride);
    // Matrices that are kept beside an operand were made of all of its values.
    part.slots = part.versioned = nullptr;
    const int64_t first = group_ * view_numel(part);
    if (all->encoding) {
      part.encoding = &blocks_.emplace_back(*all->encoding, first);
    } else {
      part.data = offset_by(all->data, first, all->dtype);
    }
    return &part;
  }

  // The operands of linear_forward or linear_backward.
  template <typename O>
  O operands(const O& all) {
    O one = all;
    one.row_offsets = nullptr;
    one.x = rows(all.x), one.x_adapter = rows(all.x_adapter);
    for (const balora_linear& linear : linears_of(all)) linears_.push_back(own(linear));
    one.linears = linears_.data();
    return one;
  }

 private:
  balora_linear own(const balora_linear& all) {
    balora_linear one = all;
    one.weight = weight_of(*own(&dense_or_encoded(all.weight)));
    one.weight_change = own(all.weight_change), one.bias = own(all.bias);
    // Without rows there is no output, so that backward gives zeros.
    one.y = count_ > 0 ? rows(all.y) : nullptr;
    std::vector<balora_low_rank>& parts = parts_.emplace_back();
    for (balora_low_rank part : parts_of(all)) {
      for (const View** factor :
           {&part.a, &part.b, &part.start_a, &part.start_b, &part.da, &part.db}) {
        *factor = own(*factor);
      }
      part.u = rows(part.u);
      parts.push_back(part);
    }
    one.parts = parts.data();
    return one;
  }

  int64_t group_, first_, count_;
  std::deque<View> views_;
  std::deque<MatrixOfBlocks> blocks_;
  std::deque<std::vector<balora_low_rank>> parts_;
  std::vector<balora_linear> linears_;
};

// Calls run(RowGroup&) for each group of `rows` rows, in order.
template <typename F>
void for_row_groups(const View& row_offsets, int64_t rows, const F& run) {
  const auto* const offsets = static_cast<const int32_t*>(row_offsets.data);
  const int64_t count = row_offsets.shape[0] - 1;
  if (offsets[0] != 0 || offsets[count] != rows) {
    throw ArgumentError(messages::row_group_ends(rows, offsets[0], offsets[count]));
  }
  for (int64_t g = 0; g < count; ++g) {
    if (offsets[g + 1] >= offsets[g]) continue;
    throw ArgumentError(messages::row_group_falls(offsets[g], offsets[g + 1], g + 1));
  }
  for (int64_t g = 0; g < count; ++g) {
    RowGroup group(g, offsets[g], offsets[g + 1] - offsets[g]);
    run(group);
  }
}

}  // namespace balora
