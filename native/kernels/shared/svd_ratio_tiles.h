// The tiles in which the SVD regularizer computes the logits Z = cap(H W^T): all rows of some
// tokens of the vocabulary or, where rows outnumber it, the whole vocabulary of some rows. The Gram
// matrix that the tiles are summed to is then the smaller one.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/operands/head.h"

namespace balora {

struct LogitsTile {
  int64_t row, rows, token, tokens;
};

class LogitsTiles {
 public:
  // `element_bytes` are those of a logit with its f64 image, `default_bytes` those of a tile where
  // the operands do not say it.
  LogitsTiles(const balora_svd_ratio_tiles& o, int64_t element_bytes, int64_t default_bytes)
      : rows_(o.h->shape[0]), tokens_(o.w->shape[0]) {
    const int64_t bytes = o.chunk_bytes > 0 ? o.chunk_bytes : default_bytes;
    step_ = std::clamp<int64_t>(bytes / (order() * element_bytes), 1, extent());
  }

  bool by_rows() const { return rows_ > tokens_; }
  // Rows and columns of the Gram matrix.
  int64_t order() const { return std::min(rows_, tokens_); }
  // Logits of the largest tile.
  int64_t tile_size() const { return order() * step_; }

  // Calls body(tile) for each tile in order.
  template <typename Body>
  void each(const Body& body) const {
    for (int64_t first = 0; first < extent(); first += step_) {
      const int64_t count = std::min(step_, extent() - first);
      body(by_rows() ? LogitsTile{.row = first, .rows = count, .token = 0, .tokens = tokens_}
                     : LogitsTile{.row = 0, .rows = rows_, .token = first, .tokens = count});
    }
  }

 private:
  int64_t extent() const { return std::max(rows_, tokens_); }

  int64_t rows_, tokens_, step_;
};

}  // namespace balora
