// Updates of principal components against the complete decomposition of the rows: spectra of
// several widths, those that f32 does not do, and any number of threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "support/kernel_test.h"
#include "support/matrices.h"

using namespace balora;
using namespace balora::test;

namespace {

// An analysis of one matrix: its rows, and what an update makes of them.
struct Analysis {
  Analysis(const Matrix& rows, int64_t rank, int64_t kept)
      : x({rows.rows, rows.cols}, rows.values),
        vectors({kept, rows.cols}),
        singular({rank}),
        mean({rows.cols}),
        scatter({1}),
        ratios({rank}),
        cosines({rank}) {
    views = {x.view(),       vectors.view(), singular.view(), mean.view(),
             scatter.view(), ratios.view(),  cosines.view()};
  }
  PcaOperands first() const {
    PcaOperands task{.x = views.data(), .seed = 3};
    task.new_vectors = &views[1], task.new_singular = &views[2], task.new_mean = &views[3];
    task.new_scatter = &views[4], task.ratios = &views[5], task.cosines = &views[6];
    return task;
  }
  PcaOperands after(const Analysis& before) const {
    PcaOperands task = first();
    task.vectors = &before.views[1], task.singular = &before.views[2];
    task.mean = &before.views[3], task.scatter = &before.views[4];
    task.count = before.views[0].shape[0];
    return task;
  }
  Matrix components(int64_t rank) const {
    Matrix out(rank, views[1].shape[1]);
    for (size_t i = 0; i < out.values.size(); ++i) {
      out.values[i] = vectors[static_cast<int64_t>(i)];
    }
    return out;
  }

  Array<float> x, vectors, singular, mean, scatter, ratios, cosines;
  std::vector<View> views;
};

void update(Context* ctx, const std::vector<PcaOperands>& tasks) {
  REQUIRE(pca_updates_kernel(
              ctx, {.tasks = tasks.data(), .count = static_cast<int32_t>(tasks.size())}) == 0);
}

template <typename Sigma>
Matrix rows_of(int64_t rows, int64_t cols, uint64_t seed, const Sigma& sigma) {
  std::vector<double> values;
  for (int64_t i = 0; i < std::min(rows, cols); ++i) values.push_back(sigma(i));
  return with_values(rows, cols, values, seed);
}

// Errors of the first analysis of the rows: of the singular values, relative, and of the subspace.
struct Errors {
  double values, subspace;
};
Errors errors_of(const Matrix& rows, int64_t rank, int64_t kept) {
  TestContext ctx;
  const Analysis found(rows, rank, kept);
  update(ctx, {found.first()});
  Matrix centred(rows.rows, rows.cols);
  for (int64_t j = 0; j < rows.cols; ++j) {
    double sum = 0;
    for (int64_t i = 0; i < rows.rows; ++i) sum += found.x[i * rows.cols + j];
    const double mean = sum / static_cast<double>(rows.rows);
    for (int64_t i = 0; i < rows.rows; ++i) {
      centred(i, j) = found.x[i * rows.cols + j] - mean;
    }
  }
  const SvdResult exact = thin_svd(ctx, centred);
  Errors errors{};
  for (int64_t i = 0; i < rank; ++i) {
    const double error = found.singular[i] / exact.s[static_cast<size_t>(i)] - 1;
    errors.values = std::max(errors.values, std::abs(error));
  }
  const Matrix components = found.components(rank);
  CHECK(orthonormality(transposed(components)) < 1e-5);
  Matrix first(rank, rows.cols);
  std::copy_n(exact.vt.values.begin(), first.values.size(), first.values.begin());
  double inside = 0;
  for (const double value : multiply(components, transposed(first)).values) {
    inside += value * value;
  }
  errors.subspace = std::sqrt(std::max(0.0, static_cast<double>(rank) - inside));
  return errors;
}

}  // namespace

TEST_CASE("pca_updates: the first rows, for spectra narrow and wide") {
  const auto check = [](const Matrix& rows) {
    const Errors found = errors_of(rows, 12, 32);
    // A component is off by its residual of 1e-2 over the gap to the 33rd, 0.6 here; a value
    // by half the square of that.
    CHECK(found.values < 2e-4);
    CHECK(found.subspace < 6e-2);
  };
  const auto slow = [](int64_t i) { return 1 / std::sqrt(1.0 + static_cast<double>(i)); };
  check(rows_of(200, 300, 1, slow));
  check(rows_of(333, 197, 2, slow));
  check(rows_of(131, 259, 3, slow));
  // A direction like the massive ones of activations.
  check(rows_of(300, 160, 4, [&](int64_t i) { return i ? slow(i) : 300.0; }));
  // Below what f32's squares keep, and fewer directions than the search does.
  check(rows_of(200, 160, 5, [](int64_t i) { return std::pow(0.5, i); }));
  check(rows_of(200, 160, 6, [](int64_t i) { return i < 20 ? 1.0 + static_cast<double>(i) : 0; }));
  // Too small for a search.
  check(rows_of(100, 400, 7, slow));
}

TEST_CASE("pca_updates: the same bits with any number of threads, and beside others") {
  const auto slow = [](int64_t i) { return 1 / (1.0 + 0.1 * static_cast<double>(i)); };
  const Analysis a(rows_of(150, 140, 1, slow), 8, 32), b(rows_of(170, 290, 2, slow), 20, 32),
      c(rows_of(40, 60, 3, slow), 5, 5);
  const Analysis more(rows_of(180, 140, 4, slow), 8, 32);
  std::vector<std::vector<double>> bits;
  for (const int threads : {1, 2, 3}) {
    TestContext ctx(threads);
    update(ctx, {a.first(), b.first(), c.first()});
    update(ctx, {more.after(a)});
    std::vector<double> all;
    for (const Analysis* each : {&a, &b, &c, &more}) {
      for (const auto& values : {each->vectors.values(), each->singular.values(),
                                 each->scatter.values(), each->cosines.values()}) {
        all.insert(all.end(), values.begin(), values.end());
      }
    }
    bits.push_back(all);
  }
  CHECK(bits[0] == bits[1]);
  CHECK(bits[0] == bits[2]);
  for (int64_t i = 0; i < 8; ++i) CHECK(std::abs(more.cosines[i]) <= 1 + 1e-5);
  CHECK(a.cosines.values() == std::vector<double>(8, 0.0));
}

TEST_CASE("pca_updates: rows that are not finite are an error") {
  Matrix rows = rows_of(150, 140, 1, [](int64_t) { return 1.0; });
  rows(7, 7) = std::nan("");
  const Analysis bad(rows, 8, 32);
  TestContext ctx;
  const PcaOperands task = bad.first();
  CHECK_THROWS_AS(pca_updates_kernel(ctx, {.tasks = &task, .count = 1}), NativeError);
}
