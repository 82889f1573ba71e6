// The language-model head fused with its losses (kernels/cpu/head/head_losses.cc): no (M,V) tensor
// exists. The gradients are made in the forward pass, beside the logits, and scaled by the upstream
// scalar in the backward. Also the SVD regularizer on the same rows, in the form that svd_ratio's
// caller may use (losses/fused.ts has the predicate).
#include "engine/launch.h"
#include "ops/head/losses.h"
#include "ops/ops.h"
#include "tape/tape.h"

namespace balora {
namespace {

void check_head(const char* op, const char* name, const Tensor& hidden, const Tensor& head) {
  check_float(op, name, head);
  check_ndim(op, name, head, 2);
  check_shape(op, name, head, {head.dim(0), hidden.dim(1)}, "(V,C)");
  if (head.dim(0) == 0) throw ArgumentError(concat(op, ": ", name, " has no rows: no vocabulary"));
}

void check_hidden(const char* op, const Tensor& hidden) {
  check_float(op, "hidden", hidden);
  check_ndim(op, "hidden", hidden, 2);
  if (hidden.numel() == 0) {
    throw ArgumentError(
        concat(op, ": no rows are selected, hidden is ", hidden.shape().to_string()));
  }
}

void check_head_inputs(const char* op, const HeadInputs& x, const HeadOptions& options) {
  check_hidden(op, x.hidden);
  const int64_t rows = x.hidden.dim(0);
  check_head(op, "head", x.hidden, x.head);
  if (x.teacher) check_shape(op, "teacher", *x.teacher, x.hidden.shape(), "(M,C)");
  if (x.teacher_head) {
    if (!x.teacher) throw ArgumentError(concat(op, ": teacherHead without teacher"));
    check_shape(op, "teacherHead", *x.teacher_head, x.head.shape(), "(V,C)");
    check_float(op, "teacherHead", *x.teacher_head);
  }
  if (x.targets) {
    check_shape(op, "targets", *x.targets, {rows}, "(M)");
    check_dtype(op, "targets", *x.targets, DType::kI32);
  }
  if (x.regularized) {
    check_shape(op, "regularized", *x.regularized, {rows}, "(M)");
    check_dtype(op, "regularized", *x.regularized, DType::kU8);
  }
  if (x.scales) {
    check_shape(op, "scales", *x.scales, {3}, "(3)");
    check_dtype(op, "scales", *x.scales, DType::kF64);
  }
  if (!(options.temperature > 0) || !(options.entropy_temperature > 0)) {
    throw ArgumentError(concat(op, ": temperatures must be > 0, got ", options.temperature, " and ",
                               options.entropy_temperature));
  }
  if (!(options.softcap >= 0)) {
    throw ArgumentError(concat(op, ": softcap must be >= 0, got ", options.softcap));
  }
}

Tensor flat(const std::optional<Tensor>& t) {
  return t ? contiguous(t->detach()) : Tensor();
}

void launch_head(const char* op, const HeadInputs& x, const Tensor& sums, const Tensor& rows,
                 const Tensor& dh, const Tensor& dw, const HeadOptions& options) {
  using O = balora_head_losses;
  launch<O>(op, &KernelTable::head_losses,
            {{&O::h, contiguous(x.hidden.detach())},
             {&O::ht, flat(x.teacher)},
             {&O::w, contiguous(x.head.detach())},
             {&O::wt, flat(x.teacher_head)},
             {&O::targets, flat(x.targets)},
             {&O::regularized, flat(x.regularized)},
             {&O::scales, flat(x.scales)}},
            {{&O::sums, sums}, {&O::rows, rows}, {&O::dh, dh}, {&O::dw, dw}}, {.options = options});
}

Tensor scaled(const Tensor& x, const Tensor& factor) {
  const Tensor y = empty_like(x);
  using O = balora_scale_by;
  launch<O>("scale_by", &KernelTable::scale_by, {{&O::x, x}, {&O::factor, factor}}, {{&O::y, y}});
  return y;
}

// Gradients computed beside the values, for a scalar output: backward multiplies them by dy.
void record_ready(const char* op, const Tensor& hidden, const Tensor& head, const Tensor& value,
                  const Tensor& dh, const Tensor& dw) {
  record(op, {hidden, head}, {value},
         [dh = Saved(dh), dw = Saved(dw)](std::span<const Tensor> dy, GradSink& sink) {
           const Tensor factor = contiguous(dy[0]);
           if (sink.wants(0)) sink.add(0, scaled(dh.get(), factor));
           if (sink.wants(1)) sink.add(1, scaled(dw.get(), factor));
         });
}

Tensor gradient_of(const Tensor& x, DType dtype) {
  return grad_wanted({x}) ? Tensor::empty(x.engine(), x.shape(), dtype) : Tensor();
}

void check_ratio(const char* op, int64_t k, const std::string& norm) {
  if (k < 1) throw ArgumentError(concat(op, ": k must be >= 1, got ", k));
  if (norm != "frobenius" && norm != "nuclear") {
    throw ArgumentError(concat(op, ": norm must be frobenius or nuclear, got ", norm));
  }
}

}  // namespace

std::tuple<Tensor, Tensor> head_losses(const HeadInputs& x, const HeadOptions& options) {
  check_head_inputs("head_losses", x, options);
  const Tensor sums = Tensor::empty(x.hidden.engine(), {4}, DType::kF64);
  const Tensor dh = gradient_of(x.hidden, x.hidden.dtype());
  const Tensor dw = gradient_of(x.head, accumulator_dtype(x.head.dtype()));
  launch_head("head_losses", x, sums, Tensor(), dh, dw, options);
  const Tensor loss = sums.view({}, {}, 3);
  record_ready("head_losses", x.hidden, x.head, loss, dh, dw);
  return {loss, sums};
}

// The consistency term from a summary holds for logits that are linear in the hidden states, by a
// head that stays as it is.
void check_cacheable(const char* op, const Tensor& head, const HeadOptions& options) {
  if (options.softcap > 0) {
    throw UnsupportedError(
        concat(op, ": logits are soft-capped, a teacher's summary needs them linear"));
  }
  if (head.requires_grad()) {
    throw UnsupportedError(
        concat(op, ": the head is trained, a teacher's summary needs it frozen"));
  }
}

std::tuple<Tensor, Tensor> teacher_summary(const Tensor& teacher,
                                           const std::optional<Tensor>& teacher_head,
                                           const Tensor& head, const HeadOptions& options) {
  constexpr const char* kName = "teacher_summary";
  const std::optional<Tensor> none;
  check_head_inputs(kName, {teacher, none, head, none, none, none, none}, options);
  check_cacheable(kName, head, options);
  if (teacher_head) check_shape(kName, "teacherHead", *teacher_head, head.shape(), "(V,C)");
  const Tensor w = contiguous(head.detach());
  const Tensor mean =
      Tensor::empty(teacher.engine(), teacher.shape(), accumulator_dtype(teacher.dtype()));
  const Tensor entropy = Tensor::empty(teacher.engine(), {teacher.dim(0)}, DType::kF64);
  using O = balora_teacher_summary;
  launch<O>(kName, &KernelTable::teacher_summary,
            {{&O::ht, contiguous(teacher.detach())},
             {&O::wt, teacher_head ? contiguous(teacher_head->detach()) : w},
             {&O::w, w}},
            {{&O::mean, mean}, {&O::entropy, entropy}}, {.options = options});
  return {mean, entropy};
}

std::tuple<Tensor, Tensor> head_losses_cached(const CachedHeadInputs& x,
                                              const HeadOptions& options) {
  constexpr const char* kName = "head_losses_cached";
  const std::optional<Tensor> none;
  check_head_inputs(kName, {x.hidden, none, x.head, none, x.targets, x.regularized, x.scales},
                    options);
  check_cacheable(kName, x.head, options);
  check_shape(kName, "mean", x.mean, x.hidden.shape(), "(M,C)");
  check_dtype(kName, "mean", x.mean, accumulator_dtype(x.hidden.dtype()));
  check_shape(kName, "entropy", x.entropy, {x.hidden.dim(0)}, "(M)");
  check_dtype(kName, "entropy", x.entropy, DType::kF64);
  const Tensor sums = Tensor::empty(x.hidden.engine(), {4}, DType::kF64);
  const Tensor dh = gradient_of(x.hidden, x.hidden.dtype());
  using O = balora_head_losses_cached;
  launch<O>(kName, &KernelTable::head_losses_cached,
            {{&O::h, contiguous(x.hidden.detach())},
             {&O::mean, contiguous(x.mean.detach())},
             {&O::entropy, contiguous(x.entropy.detach())},
             {&O::w, contiguous(x.head.detach())},
             {&O::targets, flat(x.targets)},
             {&O::regularized, flat(x.regularized)},
             {&O::scales, flat(x.scales)}},
            {{&O::sums, sums}, {&O::dh, dh}}, {.options = options});
  const Tensor loss = sums.view({}, {}, 3);
  record_ready(kName, x.hidden, Tensor(), loss, dh, Tensor());
  return {loss, sums};
}

Tensor head_rows(const HeadInputs& x, const HeadOptions& options) {
  check_head_inputs("head_rows", x, options);
  const Tensor sums = Tensor::empty(x.hidden.engine(), {4}, DType::kF64);
  const Tensor rows = Tensor::empty(x.hidden.engine(), {x.hidden.dim(0), 3}, DType::kF64);
  launch_head("head_rows", x, sums, rows, Tensor(), Tensor(), options);
  return rows;
}

Tensor svd_ratio_gram(const Tensor& hidden, const Tensor& gram, int64_t k,
                      const std::string& norm) {
  check_hidden("svd_ratio_gram", hidden);
  check_ratio("svd_ratio_gram", k, norm);
  check_dtype("svd_ratio_gram", "gram", gram, DType::kF64);
  check_shape("svd_ratio_gram", "gram", gram, {hidden.dim(1), hidden.dim(1)}, "(C,C)");
  const Tensor value = Tensor::empty(hidden.engine(), {}, DType::kF64);
  const Tensor dh = gradient_of(hidden, hidden.dtype());
  const int32_t nuclear = norm == "nuclear";
  using O = balora_svd_ratio_gram;
  launch<O>("svd_ratio_gram", &KernelTable::svd_ratio_gram,
            {{&O::h, contiguous(hidden.detach())}, {&O::g, contiguous(gram.detach())}},
            {{&O::value, value}, {&O::dh, dh}}, {.k = k, .nuclear = nuclear});
  record_ready("svd_ratio_gram", hidden, Tensor(), value, dh, Tensor());
  return value;
}

Tensor svd_ratio(const Tensor& hidden, const Tensor& head, int64_t k, const std::string& norm,
                 double softcap, int64_t chunk_bytes) {
  check_hidden("svd_ratio", hidden);
  check_head("svd_ratio", "head", hidden, head);
  check_ratio("svd_ratio", k, norm);
  if (!(softcap >= 0))
    throw ArgumentError(concat("svd_ratio: softcap must be >= 0, got ", softcap));
  const Tensor value = Tensor::empty(hidden.engine(), {}, DType::kF64);
  const Tensor dh = gradient_of(hidden, hidden.dtype());
  const Tensor dw = gradient_of(head, accumulator_dtype(head.dtype()));
  const int32_t nuclear = norm == "nuclear";
  using O = balora_svd_ratio_tiles;
  launch<O>("svd_ratio", &KernelTable::svd_ratio_tiles,
            {{&O::h, contiguous(hidden.detach())}, {&O::w, contiguous(head.detach())}},
            {{&O::value, value}, {&O::dh, dh}, {&O::dw, dw}},
            {.k = k, .nuclear = nuclear, .softcap = softcap, .chunk_bytes = chunk_bytes});
  record_ready("svd_ratio", hidden, head, value, dh, dw);
  return value;
}

}  // namespace balora
