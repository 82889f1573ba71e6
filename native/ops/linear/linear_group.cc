#include "ops/linear/linear_group.h"

#include <cmath>

#include "tape/tape.h"

namespace balora {

namespace {

int32_t form_of(const char* op, const LowRankPart& part) {
  const auto refuse = [op](auto&&... why) {
    throw ArgumentError(concat(op, ": the form of a low-rank part ", why...));
  };
  const bool since_start = part.form == "sinceStart";
  if (since_start && !part.start) refuse("is sinceStart, but it has no start");
  if (part.start && !since_start) refuse("with a start must be sinceStart, got ", part.form);
  if (since_start) return BALORA_LOW_RANK_SINCE_START;
  if (part.form == "change") return BALORA_LOW_RANK_CHANGE;
  if (part.form != "exact") refuse("must be exact, change or sinceStart, got ", part.form);
  return BALORA_LOW_RANK_EXACT;
}

}  // namespace

int32_t checked_form(const char* op, const PartNames& names, const LowRankPart& part,
                     const Tensor& weight) {
  const auto& [a, b, start, scale, form_name] = part;
  const int32_t form = form_of(op, part);
  const int64_t outs = weight.dim(0), ins = weight.dim(1);
  check_float(op, names.of("a").c_str(), a);
  check_ndim(op, names.of("a").c_str(), a, 2);
  const int64_t rank = a.dim(0);
  check_shape(op, names.of("a").c_str(), a, {rank, ins}, "(R,I)");
  check_shape(op, names.of("b").c_str(), b, {outs, rank}, "(O,R)");
  if (!std::isfinite(scale)) {
    throw ArgumentError(concat(op, ": the scale of a low-rank part must be finite, got ", scale));
  }
  if (!start) return form;
  check_shape(op, names.of("start.a").c_str(), start->a, {rank, ins}, "(R,I)");
  check_shape(op, names.of("start.b").c_str(), start->b, {outs, rank}, "(O,R)");
  for (const auto& [name, factor] : {std::pair{"start.a", start->a}, {"start.b", start->b}}) {
    if (!grad_wanted({factor})) continue;
    throw ArgumentError(concat(op, ": ", names.of(name),
                               " wants a gradient, but the start of a part is never given one; "
                               "detach it, or add it as a part of its own"));
  }
  return form;
}

}  // namespace balora
