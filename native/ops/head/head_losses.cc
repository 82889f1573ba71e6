// The language-model head fused with its losses (kernels/cpu/head/head_losses.cc): no (M,V) tensor
// exists. The gradients are made in the forward pass, beside the logits, and scaled by the upstream
// scalar in the backward. Also the SVD regularizer on the same rows, in the form that svd_ratio's
// caller may use (losses/fused.ts has the predicate).
#include <cmath>
#include <cstring>

#include "engine/launch.h"
#include "ops/head/losses.h"
#include "ops/linalg/linalg.h"
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

// The greatest temperature, as in losses/plain.ts.
constexpr double kGreatestTemperature = 1e4;
// The greatest for a teacher's summary, whose numbers hold a divergence only as the difference of
// an entropy and a cross-entropy, each near ln V: up to here it is right to about 4e-6.
constexpr double kGreatestSummaryTemperature = 32;

// The consistency term from a summary holds for logits that are linear in the hidden states, by a
// head that stays as it is.
void check_summarizable(const char* op, const Tensor& head, const HeadOptions& options) {
  if (options.temperature > kGreatestSummaryTemperature) {
    throw UnsupportedError(concat(op, ": a teacher's summary needs a temperature of at most ",
                                  kGreatestSummaryTemperature, ", got ", options.temperature));
  }
  if (options.softcap > 0) {
    throw UnsupportedError(
        concat(op, ": logits are soft-capped, a teacher's summary needs them linear"));
  }
  if (head.requires_grad()) {
    throw UnsupportedError(
        concat(op, ": the head is trained, a teacher's summary needs it frozen"));
  }
}

// The form of a teacher, whose tensors have the student's sizes.
balora_teacher_kind checked_teacher(const char* op, const HeadInputs& x,
                                    const HeadOptions& options) {
  const Teacher& t = x.teacher;
  if (t.mean.has_value() != t.entropy.has_value() || (t.log_probability && !t.mean)) {
    throw ArgumentError(concat(op, ": a teacher's summary is its mean and entropy"));
  }
  if (t.hidden && t.mean) {
    throw ArgumentError(concat(op, ": teacher, and a summary in its place; give one of them"));
  }
  if (t.head && !t.hidden) {
    throw ArgumentError(t.mean ? concat(op,
                                        ": teacherHead is for a teacher's hidden states; leave it "
                                        "out beside a summary, which was made with that head")
                               : concat(op, ": teacherHead without teacher"));
  }
  if (t.hidden) {
    check_shape(op, "teacher", *t.hidden, x.hidden.shape(), "(M,C)");
    check_float(op, "teacher", *t.hidden);
    if (!t.head) return BALORA_TEACHER_LIVE;
    check_shape(op, "teacherHead", *t.head, x.head.shape(), "(V,C)");
    check_float(op, "teacherHead", *t.head);
    return BALORA_TEACHER_LIVE;
  }
  if (!t.mean) return BALORA_TEACHER_NONE;
  check_summarizable(op, x.head, options);
  check_shape(op, "mean", *t.mean, x.hidden.shape(), "(M,C)");
  check_dtype(op, "mean", *t.mean, accumulator_dtype(x.hidden.dtype()));
  for (const auto& [name, values] :
       {std::pair{"entropy", t.entropy}, {"logProbability", t.log_probability}}) {
    if (!values) continue;
    check_shape(op, name, *values, {x.hidden.dim(0)}, "(M)");
    check_dtype(op, name, *values, DType::kF64);
  }
  return BALORA_TEACHER_SUMMARY;
}

void check_temperature(const char* op, const char* name, double temperature, double greatest) {
  if (temperature > 0 && temperature <= greatest) return;
  throw ArgumentError(
      concat(op, ": ", name, " must be > 0 and <= ", greatest, ", got ", temperature));
}

void check_options(const char* op, const HeadOptions& options) {
  check_temperature(op, "temperature", options.temperature, kGreatestTemperature);
  check_temperature(op, "entropyTemperature", options.entropy_temperature, kGreatestTemperature);
  if (!(options.softcap >= 0)) {
    throw ArgumentError(concat(op, ": softcap must be >= 0, got ", options.softcap));
  }
  if (!(options.logit_scale > 0 && std::isfinite(options.logit_scale))) {
    throw ArgumentError(concat(op, ": logitScale must be > 0, got ", options.logit_scale));
  }
}

// Returns the teacher's form.
balora_teacher_kind check_head_inputs(const char* op, const HeadInputs& x,
                                      const HeadOptions& options) {
  check_hidden(op, x.hidden);
  const int64_t rows = x.hidden.dim(0);
  check_head(op, "head", x.hidden, x.head);
  if (x.targets) {
    check_shape(op, "targets", *x.targets, {rows}, "(M)");
    check_dtype(op, "targets", *x.targets, DType::kI32);
  }
  if (x.regularized) {
    check_shape(op, "regularized", *x.regularized, {rows}, "(M)");
    check_dtype(op, "regularized", *x.regularized, DType::kU8);
  }
  if (x.scales) {
    check_shape(op, "scales", *x.scales, {BALORA_HEAD_TERMS}, "(3)");
    check_dtype(op, "scales", *x.scales, DType::kF64);
  }
  if (x.factors) {
    check_shape(op, "factors", *x.factors, {rows}, "(M)");
    check_dtype(op, "factors", *x.factors, DType::kF64);
    if (grad_wanted({*x.factors})) {
      throw UnsupportedError(concat(op, ": factors get no gradient; give them detached"));
    }
  }
  check_options(op, options);
  return checked_teacher(op, x, options);
}

Tensor plain(const std::optional<Tensor>& t) {
  return t ? contiguous(t->detach()) : Tensor();
}
// A head, which may be in blocks.
Tensor plain_head(const std::optional<Tensor>& head) {
  return head ? plain(head).as_encoded() : Tensor();
}

TeacherOf<Slot> read_teacher(LaunchOperands& all, const Teacher& t) {
  return {.hidden = all.read(plain(t.hidden)),
          .head = all.read(plain_head(t.head)),
          .mean = all.read(plain(t.mean)),
          .entropy = all.read(plain(t.entropy)),
          .log_probability = all.read(plain(t.log_probability))};
}

balora_teacher teacher_of(const Launch& l, balora_teacher_kind kind, const TeacherOf<Slot>& t) {
  return {.kind = kind,
          .hidden = l[t.hidden],
          .head = l[t.head],
          .mean = l[t.mean],
          .entropy = l[t.entropy],
          .log_probability = l[t.log_probability]};
}

// Those that are undefined are not wanted.
struct HeadOutputs {
  Tensor sums = {}, rows = {}, dh = {}, dw = {};
};

void launch_head(const char* op, const HeadInputs& x, balora_teacher_kind kind,
                 const HeadOutputs& out, const HeadOptions& options) {
  LaunchOperands all;
  const Slot h = all.read(plain(x.hidden)), w = all.read(plain_head(x.head));
  const TeacherOf<Slot> teacher = read_teacher(all, x.teacher);
  const Slot targets = all.read(plain(x.targets)), regularized = all.read(plain(x.regularized));
  const Slot scales = all.read(plain(x.scales)), factors = all.read(plain(x.factors));
  const Slot sums = all.write(out.sums), rows = all.write(out.rows);
  const Slot dh = all.write(out.dh), dw = all.write(out.dw);
  launch(op, all, [=](Launch& l) {
    return call(l.kernels->head_losses, l.ctx,
                {.h = l[h],
                 .w = l[w],
                 .teacher = teacher_of(l, kind, teacher),
                 .targets = l[targets],
                 .regularized = l[regularized],
                 .scales = l[scales],
                 .factors = l[factors],
                 .sums = l[sums],
                 .rows = l[rows],
                 .dh = l[dh],
                 .dw = l[dw],
                 .options = options});
  });
}

Tensor new_sums(const Tensor& hidden) {
  return Tensor::empty(hidden.engine(), {BALORA_HEAD_SUMS}, DType::kF64);
}

Tensor new_rows(const Tensor& hidden) {
  return Tensor::empty(hidden.engine(), {hidden.dim(0), BALORA_HEAD_TERMS}, DType::kF64);
}

Tensor scaled(const Tensor& x, const Tensor& factor) {
  Tensor y = empty_like(x);
  using O = balora_scale_by;
  launch<O>("scale_by", &KernelTable::scale_by, {{&O::x, x}, {&O::factor, factor}}, {{&O::y, y}});
  return y;
}

void add_scaled(const Saved& dh, const Saved& dw, const Tensor& dy, GradSink& sink) {
  const Tensor factor = contiguous(dy);
  if (sink.wants(0)) sink.add(0, scaled(dh.get(), factor));
  if (sink.wants(1)) sink.add(1, scaled(dw.get(), factor));
}

// Gradients computed beside the values, for a scalar output: backward multiplies them by dy.
void record_ready(const char* op, const Tensor& hidden, const Tensor& head, const Tensor& value,
                  const Tensor& dh, const Tensor& dw) {
  record(op, {hidden, head}, {value},
         [dh = Saved(dh), dw = Saved(dw)](std::span<const Tensor> dy, GradSink& sink) {
           add_scaled(dh, dw, dy[0], sink);
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

// The gradient of log-probabilities, by their inputs as forward had them. Rows of the loss's
// gradient serve where that is a multiple of theirs; else, and for trained heads, the pass runs
// again in backward.
struct LogProbabilities {
  Saved hidden, head, targets;  // undefined where it need not run again
  HeadOptions options;
  double of_loss;  // the loss = this times their sum; 0: it is no multiple of that

  void backward(const Saved& dh, const Tensor& dy, GradSink& sink) const {
    if (!hidden.defined()) {
      const Tensor rows = dh.get();
      const DType wide = accumulator_dtype(rows.dtype());
      const Tensor by = cast(affine(dy, 1 / of_loss, 0), wide).view({dy.dim(0), 1});
      return sink.add(0, cast(binary(cast(rows, wide), by, "mul"), rows.dtype()));
    }
    const HeadInputs x = {
        .hidden = hidden.get(), .head = head.get(), .targets = targets.get(), .factors = dy};
    const auto gradient = [&](size_t input, const Tensor& of, DType dtype) {
      return sink.wants(input) ? Tensor::empty(of.engine(), of.shape(), dtype) : Tensor();
    };
    const HeadOutputs out = {.sums = new_sums(x.hidden),
                             .dh = gradient(0, x.hidden, x.hidden.dtype()),
                             .dw = gradient(1, x.head, accumulator_dtype(x.head.dtype()))};
    HeadOptions again = options;
    again.task_scale = -1, again.consistency_scale = again.diversity_scale = 0;
    again.entropy_top_k = -1;
    launch_head("head_losses_backward", x, BALORA_TEACHER_NONE, out, again);
    for (const auto& [input, made] : {std::pair<size_t, Tensor>{0, out.dh}, {1, out.dw}}) {
      if (made.defined()) sink.add(input, made);
    }
  }
};

LogProbabilities log_probabilities_of(const HeadInputs& x, const HeadOptions& options) {
  const bool consistent = options.consistency_scale != 0 && (x.teacher.hidden || x.teacher.mean);
  const bool diverse = options.diversity_scale != 0 && options.entropy_top_k >= 0;
  const bool task_alone =
      !consistent && !diverse && options.task_scale != 0 && !x.scales && !x.factors;
  LogProbabilities kept = {.options = options, .of_loss = task_alone ? -options.task_scale : 0};
  if (task_alone && !x.head.requires_grad()) return kept;
  kept.hidden = Saved(plain(x.hidden)), kept.head = Saved(plain_head(x.head));
  kept.targets = Saved(plain(x.targets));
  return kept;
}

}  // namespace

std::vector<Tensor> head_losses(const HeadInputs& x, const HeadOptions& options,
                                bool log_probabilities) {
  constexpr const char* kName = "head_losses";
  const balora_teacher_kind teacher = check_head_inputs(kName, x, options);
  if (log_probabilities && !x.targets) {
    throw ArgumentError(concat(kName, ": logProbabilities without targets"));
  }
  if (log_probabilities && std::strcmp(x.hidden.engine().device(), "cpu") != 0) {
    throw UnsupportedError(concat(kName, ": log-probabilities are taken on the CPU alone"));
  }
  const int64_t rows = x.hidden.dim(0);
  HeadOutputs out = {.sums = new_sums(x.hidden),
                     .dh = gradient_of(x.hidden, x.hidden.dtype()),
                     .dw = gradient_of(x.head, accumulator_dtype(x.head.dtype()))};
  if (log_probabilities) out.rows = new_rows(x.hidden);
  launch_head(kName, x, teacher, out, options);
  const Tensor loss = out.sums.view({}, {}, BALORA_HEAD_LOSS);
  if (!log_probabilities) {
    record_ready(kName, x.hidden, x.head, loss, out.dh, out.dw);
    return {loss, out.sums};
  }
  const Tensor task = out.rows.view({rows}, {BALORA_HEAD_TERMS}, BALORA_HEAD_TASK);
  const Tensor values = affine(task, -1, 0);
  record(kName, {x.hidden, x.head}, {loss, values},
         [dh = Saved(out.dh), dw = Saved(out.dw), kept = log_probabilities_of(x, options)](
             std::span<const Tensor> dy, GradSink& sink) {
           if (dy[0].defined()) add_scaled(dh, dw, dy[0], sink);
           if (dy[1].defined()) kept.backward(dh, contiguous(dy[1]), sink);
         });
  return {loss, out.sums, values};
}

std::vector<Tensor> teacher_summary(const Tensor& teacher,
                                    const std::optional<Tensor>& teacher_head, const Tensor& head,
                                    const std::optional<Tensor>& targets,
                                    const HeadOptions& options) {
  constexpr const char* kName = "teacher_summary";
  const HeadInputs inputs = {.hidden = teacher,
                             .teacher = {.hidden = teacher, .head = teacher_head},
                             .head = head,
                             .targets = targets};
  const balora_teacher_kind kind = check_head_inputs(kName, inputs, options);
  check_summarizable(kName, head, options);
  const Shape rows = {teacher.dim(0)};
  std::vector<Tensor> summary = {
      Tensor::empty(teacher.engine(), teacher.shape(), accumulator_dtype(teacher.dtype())),
      Tensor::empty(teacher.engine(), rows, DType::kF64)};
  if (targets) summary.push_back(Tensor::empty(teacher.engine(), rows, DType::kF64));
  LaunchOperands all;
  const TeacherOf<Slot> from = read_teacher(all, inputs.teacher);
  const Slot w = all.read(plain_head(head)), ids = all.read(plain(targets));
  const TeacherOf<Slot> to = {.mean = all.write(summary[0]),
                              .entropy = all.write(summary[1]),
                              .log_probability = all.write(targets ? summary[2] : Tensor())};
  launch(kName, all, [=](Launch& l) {
    return call(l.kernels->teacher_summary, l.ctx,
                {.teacher = teacher_of(l, kind, from),
                 .w = l[w],
                 .targets = l[ids],
                 .summary = teacher_of(l, BALORA_TEACHER_SUMMARY, to),
                 .options = options});
  });
  return summary;
}

Tensor head_rows(const HeadInputs& x, const HeadOptions& options) {
  constexpr const char* kName = "head_rows";
  const balora_teacher_kind teacher = check_head_inputs(kName, x, options);
  const HeadOutputs out = {.sums = new_sums(x.hidden), .rows = new_rows(x.hidden)};
  launch_head(kName, x, teacher, out, options);
  return out.rows;
}

Tensor svd_ratio_gram(const Tensor& hidden, const Tensor& gram, int64_t k,
                      const std::string& norm) {
  check_hidden("svd_ratio_gram", hidden);
  check_ratio("svd_ratio_gram", k, norm);
  check_gram("svd_ratio_gram", "gram", gram, hidden.dim(1));
  Tensor value = Tensor::empty(hidden.engine(), {}, DType::kF64);
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
  Tensor value = Tensor::empty(hidden.engine(), {}, DType::kF64);
  const Tensor dh = gradient_of(hidden, hidden.dtype());
  const Tensor dw = gradient_of(head, accumulator_dtype(head.dtype()));
  const int32_t nuclear = norm == "nuclear";
  using O = balora_svd_ratio_tiles;
  launch<O>("svd_ratio", &KernelTable::svd_ratio_tiles,
            {{&O::h, contiguous(hidden.detach())}, {&O::w, contiguous(decoded(head))}},
            {{&O::value, value}, {&O::dh, dh}, {&O::dw, dw}},
            {.k = k, .nuclear = nuclear, .softcap = softcap, .chunk_bytes = chunk_bytes});
  record_ready("svd_ratio", hidden, head, value, dh, dw);
  return value;
}

}  // namespace balora
