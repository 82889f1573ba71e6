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

void check_operand(const char* op, const std::string& name, const Tensor& t, const Tensor& weight,
                   std::initializer_list<int64_t> extents, const char* letters) {
  const bool by_group = weight.ndim() == 3;
  Shape shape;
  if (by_group) shape.push_back(weight.dim(0));
  for (const int64_t extent : extents) shape.push_back(extent);
  check_shape(op, name.c_str(), t, shape, concat(by_group ? "(G," : "(", letters, ")").c_str());
}

int32_t checked_form(const char* op, const PartNames& names, const LowRankPart& part,
                     const Tensor& weight) {
  const auto& [a, b, start, scale, form_name] = part;
  const int32_t form = form_of(op, part);
  const int64_t outs = weight.dim(-2), ins = weight.dim(-1);
  check_float(op, names.of("a").c_str(), a);
  check_ndim(op, names.of("a").c_str(), a, weight.ndim());
  const int64_t rank = a.dim(-2);
  check_operand(op, names.of("a"), a, weight, {rank, ins}, "R,I");
  check_operand(op, names.of("b"), b, weight, {outs, rank}, "O,R");
  if (!std::isfinite(scale)) {
    throw ArgumentError(concat(op, ": the scale of a low-rank part must be finite, got ", scale));
  }
  if (!start) return form;
  check_operand(op, names.of("start.a"), start->a, weight, {rank, ins}, "R,I");
  check_operand(op, names.of("start.b"), start->b, weight, {outs, rank}, "O,R");
  for (const auto& [name, factor] : {std::pair{"start.a", start->a}, {"start.b", start->b}}) {
    if (!grad_wanted({factor})) continue;
    throw ArgumentError(concat(op, ": ", names.of(name),
                               " wants a gradient, but the start of a part is never given one; "
                               "detach it, or add it as a part of its own"));
  }
  return form;
}

}  // namespace balora
