// Attention with relative positions by its definition, forward and backward in f64 and one row at a
// time, for the tests of its kernels on the CPU and on devices.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "support/attention_definition.h"

namespace balora::test {

enum RelativeTerm { kBias = 1, kPositionK = 2, kPositionQ = 4, kAll = 7 };

// How rows of the position tables go with the relative position: anyhow, or as buckets of the
// distance in the middle of the table, a row for each short one.
enum class PositionOrder { kToAndFro, kRising, kFalling };

// Terms, positions and segments of a call.
struct RelativeCase {
  std::vector<int32_t> cu, cu_keys;  // cu_keys empty: as cu
  std::vector<int32_t> lengths, key_lengths;
  int64_t heads, size;
  int terms = 0;
  int64_t positions = 0;
  bool causal = false;
  double scale = 0.3;
  PositionOrder order = PositionOrder::kToAndFro;
  int64_t near = 20;  // distances that have a row of their own
  int64_t reach = 0;  // rows of a segment that the bias and the index have room for, at least

  const std::vector<int32_t>& keys() const { return cu_keys.empty() ? cu : cu_keys; }
  int64_t longest() const {
    int64_t most = std::max<int64_t>(reach, 1);
    for (const auto* side : {&cu, &keys()}) {
      for (size_t b = 0; b + 1 < side->size(); ++b) {
        most = std::max<int64_t>(most, (*side)[b + 1] - (*side)[b]);
      }
    }
    return most;
  }
  int64_t relative() const { return 2 * longest() - 1; }
  bool placed() const { return terms & (kPositionK | kPositionQ); }
  int32_t position(int64_t place) const {
    if (order == PositionOrder::kToAndFro) return static_cast<int32_t>(place * 7 % positions);
    const int64_t relative = place - (longest() - 1), distance = std::abs(relative);
    const auto first = static_cast<double>(near);
    const double far = 0.55 * first * std::log2(static_cast<double>(distance) / first);
    int64_t bucket = distance <= near ? distance : near + static_cast<int64_t>(far);
    if ((relative < 0) == (order == PositionOrder::kRising)) bucket = -bucket;
    return static_cast<int32_t>(positions / 2 + bucket);
  }
};

// Rows of heads in f64.
struct HeadRows {
  std::vector<double> at;
  int64_t heads = 0, size = 0;
  HeadRows(std::vector<double> values, int64_t h, int64_t d)
      : at(std::move(values)), heads(h), size(d) {}
  double* row(int64_t r, int64_t h) { return at.data() + (r * heads + h) * size; }
};

class RelativeDefinition {
 public:
  RelativeDefinition(const RelativeCase& c, HeadRows q, HeadRows k, HeadRows v, HeadRows position_k,
                     HeadRows position_q, std::vector<double> bias, HeadRows dout)
      : c_(c),
        q_(std::move(q)),
        k_(std::move(k)),
        v_(std::move(v)),
        pk_(std::move(position_k)),
        pq_(std::move(position_q)),
        bias_(std::move(bias)),
        dout_(std::move(dout)) {
    for (HeadRows* rows : {&out, &dq}) rows->at.assign(q_.at.size(), 0);
    for (HeadRows* rows : {&dk, &dv}) rows->at.assign(k_.at.size(), 0);
    for (HeadRows* rows : {&dpk, &dpq}) rows->at.assign(pk_.at.size(), 0);
    for (HeadRows* rows : {&out, &dq, &dk, &dv, &dpk, &dpq}) {
      rows->heads = c.heads, rows->size = c.size;
    }
    dbias.assign(static_cast<size_t>(c.relative() * c.heads), 0);
    lse.assign(static_cast<size_t>(c.cu.back() * c.heads), 0);
    for (size_t b = 0; b + 1 < c.cu.size(); ++b) {
      const auto count = [&](const std::vector<int32_t>& cu, const std::vector<int32_t>& lengths) {
        return lengths.empty() ? cu[b + 1] - cu[b] : lengths[b];
      };
      keys_ = count(c.keys(), c.key_lengths);
      first_key_ = c.keys()[b];
      const int64_t queries = count(c.cu, c.lengths);
      for (int64_t h = 0; h < c.heads; ++h) {
        for (int64_t t = 0; t < queries; ++t) query(c.cu[b] + t, t, h);
      }
    }
  }
  HeadRows out{{}, 0, 0}, dq = out, dk = out, dv = out, dpk = out, dpq = out;
  std::vector<double> lse, dbias;

 private:
  double dot(const double* x, const double* y) const { return test::dot(x, y, c_.size); }
  void add(double* y, double factor, const double* x) const { add_scaled(y, factor, x, c_.size); }
  double score(int64_t row, int64_t t, int64_t j, int64_t h) {
    const int64_t place = j - t + c_.longest() - 1;
    double sum = dot(q_.row(row, h), k_.row(first_key_ + j, h));
    if (c_.terms & kPositionK) sum += dot(q_.row(row, h), pk_.row(c_.position(place), h));
    if (c_.terms & kPositionQ) {
      sum += dot(k_.row(first_key_ + j, h), pq_.row(c_.position(place), h));
    }
    const double bias = c_.terms & kBias ? bias_[static_cast<size_t>(place * c_.heads + h)] : 0;
    return c_.scale * sum + bias;
  }

  void query(int64_t row, int64_t t, int64_t h) {
    const int64_t seen = c_.causal ? std::min(keys_, t + 1) : keys_;
    if (seen == 0) return;
    std::vector<double> p, dp;
    double highest = -INFINITY, sum = 0, delta = 0;
    for (int64_t j = 0; j < seen; ++j) p.push_back(score(row, t, j, h));
    for (const double s : p) highest = std::max(highest, s);
    for (double& s : p) s = std::exp(s - highest), sum += s;
    lse[static_cast<size_t>(row * c_.heads + h)] = highest + std::log(sum);
    for (int64_t j = 0; j < seen; ++j) {
      double& weight = p[static_cast<size_t>(j)];
      weight /= sum;
      dp.push_back(dot(dout_.row(row, h), v_.row(first_key_ + j, h)));
      delta += weight * dp.back();
      add(out.row(row, h), weight, v_.row(first_key_ + j, h));
    }
    for (int64_t j = 0; j < seen; ++j) {
      const double weight = p[static_cast<size_t>(j)];
      gradient(row, t, j, h, weight * (dp[static_cast<size_t>(j)] - delta));
      add(dv.row(first_key_ + j, h), weight, dout_.row(row, h));
    }
  }

  void gradient(int64_t row, int64_t t, int64_t j, int64_t h, double ds) {
    const int64_t place = j - t + c_.longest() - 1, key = first_key_ + j;
    dbias[static_cast<size_t>(place * c_.heads + h)] += ds;
    ds *= c_.scale;
    add(dq.row(row, h), ds, k_.row(key, h));
    add(dk.row(key, h), ds, q_.row(row, h));
    if (c_.terms & kPositionK) {
      add(dq.row(row, h), ds, pk_.row(c_.position(place), h));
      add(dpk.row(c_.position(place), h), ds, q_.row(row, h));
    }
    if (c_.terms & kPositionQ) {
      add(dk.row(key, h), ds, pq_.row(c_.position(place), h));
      add(dpq.row(c_.position(place), h), ds, k_.row(key, h));
    }
  }

  const RelativeCase& c_;
  HeadRows q_, k_, v_, pk_, pq_;
  std::vector<double> bias_;
  HeadRows dout_;
  int64_t keys_ = 0, first_key_ = 0;
};

}  // namespace balora::test
