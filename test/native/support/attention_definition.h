// Attention by its definition, forward and backward in f64 and one row at a time, for the tests of
// its kernels on the CPU and on devices.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace balora::test {

inline double dot(const double* x, const double* y, int64_t size) {
  double sum = 0;
  for (int64_t d = 0; d < size; ++d) sum += x[d] * y[d];
  return sum;
}
// y += factor x
inline void add_scaled(double* y, double factor, const double* x, int64_t size) {
  for (int64_t d = 0; d < size; ++d) y[d] += factor * x[d];
}

// Segments whose q, k and v lie side by side in the rows of one fused product.
struct AttentionCase {
  std::vector<int32_t> cu;
  std::vector<int32_t> lengths;  // empty: all rows take part
  int64_t heads, kv_heads, size;
  bool causal = true;
  int64_t window = 0;
  double softcap = 0;
  std::vector<int32_t> skips = {};  // first rows of each segment that are no queries; empty: none
  int64_t pad = 0;                  // elements between the rows of the fused product
  double factor = 1;                // of the scale
  std::vector<double> sinks = {};   // by head; empty: none

  int64_t rows() const { return cu.back(); }
  int32_t skip(size_t segment) const { return skips.empty() ? 0 : skips[segment]; }
  std::vector<int32_t> cu_queries() const {
    std::vector<int32_t> bounds = {0};
    for (size_t b = 0; b + 1 < cu.size(); ++b) {
      bounds.push_back(bounds.back() + cu[b + 1] - cu[b] - skip(b));
    }
    return bounds;
  }
  int64_t group() const { return heads / kv_heads; }
  int64_t width() const { return (heads + 2 * kv_heads) * size + pad; }
  double scale() const { return factor / std::sqrt(static_cast<double>(size)); }
  bool sees(int64_t t, int64_t j) const {
    return (!causal || j <= t) && (window == 0 || std::abs(t - j) < window);
  }
};

struct AttentionResults {
  std::vector<double> out, lse, dq, dk, dv, dsinks;
};

// The part in a query's sums of a key that it does not see: none, or it is multiplied by zero, as
// in tiles, which makes a difference where it is not finite.
enum class Unseen { kLeftOut, kTimesZero };

class AttentionDefinition {
 public:
  // fused (N,width) and dout (M,H,D): the values that the kernels read.
  AttentionDefinition(const AttentionCase& c, const std::vector<double>& fused,
                      const std::vector<double>& dout, Unseen unseen = Unseen::kLeftOut)
      : c_(c), fused_(fused), dout_(dout), unseen_(unseen) {
    const auto n = static_cast<size_t>(c.rows());
    const std::vector<int32_t> cu_queries = c.cu_queries();
    const auto m = static_cast<size_t>(cu_queries.back());
    results_.out.assign(m * static_cast<size_t>(c.heads * c.size), 0);
    results_.dk.assign(n * static_cast<size_t>(c.kv_heads * c.size), 0);
    results_.lse.assign(m * static_cast<size_t>(c.heads), 0);
    results_.dq = results_.out, results_.dv = results_.dk;
    results_.dsinks.assign(c.sinks.size(), 0);
    for (size_t b = 0; b + 1 < c.cu.size(); ++b) {
      const int64_t rows = c.lengths.empty() ? c.cu[b + 1] - c.cu[b] : c.lengths[b];
      for (int64_t h = 0; h < c.heads; ++h) {
        for (int64_t t = c.skip(b); t < rows; ++t) {
          query({c.cu[b], rows, cu_queries[b] - c.skip(b)}, h, t);
        }
      }
    }
  }
  const AttentionResults& results() const { return results_; }

 private:
  struct Segment {
    int64_t begin, rows, queries;  // row t is row queries + t of q
  };

  // One row of a head: probabilities, slopes of the soft-cap, gradients of the scores.
  void query(const Segment& segment, int64_t h, int64_t t) {
    const auto [begin, rows, queries] = segment;
    const int64_t kv = h / c_.group(), row = (queries + t) * c_.heads + h, size = c_.size;
    const auto in = [this](int64_t r, int64_t head) {
      return fused_.data() + r * c_.width() + head * c_.size;
    };
    const double *q = in(queries + t, h), *g = dout_.data() + row * size;
    std::vector<double> p(static_cast<size_t>(rows), 0), slope(p.size(), 1), dp(p.size(), 0);
    const bool has_sink = !c_.sinks.empty();
    const double sink = has_sink ? c_.sinks[static_cast<size_t>(h)] : -INFINITY;
    double sum = 0, highest = sink;
    for (int64_t j = 0; j < rows; ++j) {
      if (!c_.sees(t, j)) continue;
      double& score = p[static_cast<size_t>(j)];
      score = c_.scale() * dot(q, in(begin + j, c_.heads + kv), size);
      if (c_.softcap > 0) {
        const double ratio = std::tanh(score / c_.softcap);
        score = c_.softcap * ratio, slope[static_cast<size_t>(j)] = 1 - ratio * ratio;
      }
      highest = std::max(highest, score);
    }
    if (highest == -INFINITY) highest = 0;  // the sum is then 0, and probabilities are NaN
    for (int64_t j = 0; j < rows; ++j) {
      double& score = p[static_cast<size_t>(j)];
      score = c_.sees(t, j) ? std::exp(score - highest) : 0;
      sum += score;
    }
    sum += std::exp(sink - highest);
    results_.lse[static_cast<size_t>(row)] = highest + std::log(sum);
    for (int64_t j = 0; j < rows; ++j) {
      if (left_out(t, j)) continue;
      const auto at = static_cast<size_t>(j);
      const double* v = in(begin + j, c_.heads + c_.kv_heads + kv);
      p[at] /= sum, dp[at] = dot(g, v, size);
      add_scaled(results_.out.data() + row * size, p[at], v, size);
    }
    const double delta = dot(g, results_.out.data() + row * size, size);
    if (has_sink) {
      results_.dsinks[static_cast<size_t>(h)] -= std::exp(sink - highest) / sum * delta;
    }
    for (int64_t j = 0; j < rows; ++j) {
      if (left_out(t, j)) continue;
      const auto at = static_cast<size_t>(j);
      const double ds = p[at] * (dp[at] - delta) * slope[at] * c_.scale();
      const int64_t key = ((begin + j) * c_.kv_heads + kv) * size;
      add_scaled(results_.dq.data() + row * size, ds, in(begin + j, c_.heads + kv), size);
      add_scaled(results_.dk.data() + key, ds, q, size);
      add_scaled(results_.dv.data() + key, p[at], g, size);
    }
  }

  bool left_out(int64_t t, int64_t j) const {
    return unseen_ == Unseen::kLeftOut && !c_.sees(t, j);
  }

  const AttentionCase& c_;
  const std::vector<double>&fused_, &dout_;
  Unseen unseen_;
  AttentionResults results_;
};

}  // namespace balora::test
