// The operands of linears that share their input, by name. Each of the forms that an op needs them
// in is a GroupOf: the tensors, their places among the tape's inputs, what backward keeps, the
// slots of a launch, the views of a kernel.
#pragma once
#include <string>
#include <vector>

#include "engine/launch.h"
#include "kernels/operands/linear.h"
#include "ops/ops.h"

namespace balora {

template <typename T>
struct PartOf {
  T a{}, b{}, start_a{}, start_b{};
  T u{}, da{}, db{};
  double scale = 1;
  int32_t form = BALORA_LOW_RANK_EXACT;
};
template <typename T>
struct LinearOf {
  T weight{}, weight_change{}, bias{}, output_scale{}, unscaled{};
  T y{};  // in backward the gradient of the sum
  std::vector<PartOf<T>> parts = {};
};
template <typename T>
struct GroupOf {
  T x{}, x_adapter{}, dx{}, dx_adapter{}, row_offsets{};
  std::vector<LinearOf<T>> linears = {};
};

template <typename To, typename From, typename F>
PartOf<To> map_part(const PartOf<From>& p, const F& f) {
  return {.a = f(p.a),
          .b = f(p.b),
          .start_a = f(p.start_a),
          .start_b = f(p.start_b),
          .u = f(p.u),
          .da = f(p.da),
          .db = f(p.db),
          .scale = p.scale,
          .form = p.form};
}

// The group of f's results, f being called for every operand in the order of the fields.
template <typename To, typename From, typename F>
GroupOf<To> map_group(const GroupOf<From>& from, const F& f) {
  GroupOf<To> to{.x = f(from.x),
                 .x_adapter = f(from.x_adapter),
                 .dx = f(from.dx),
                 .dx_adapter = f(from.dx_adapter),
                 .row_offsets = f(from.row_offsets)};
  for (const LinearOf<From>& linear : from.linears) {
    LinearOf<To> mapped{.weight = f(linear.weight),
                        .weight_change = f(linear.weight_change),
                        .bias = f(linear.bias),
                        .output_scale = f(linear.output_scale),
                        .unscaled = f(linear.unscaled),
                        .y = f(linear.y)};
    for (const PartOf<From>& part : linear.parts) mapped.parts.push_back(map_part<To>(part, f));
    to.linears.push_back(std::move(mapped));
  }
  return to;
}

inline balora_low_rank kernel_part(const Launch& l, const PartOf<Slot>& p) {
  return {.a = l[p.a],
          .b = l[p.b],
          .start_a = l[p.start_a],
          .start_b = l[p.start_b],
          .u = l[p.u],
          .da = l[p.da],
          .db = l[p.db],
          .scale = p.scale,
          .form = p.form};
}

// The linears of a group as kernels take them, for the time of a launch.
class KernelLinears {
 public:
  KernelLinears(const Launch& l, const GroupOf<Slot>& group) {
    for (const LinearOf<Slot>& linear : group.linears) {
      std::vector<balora_low_rank>& parts = parts_.emplace_back();
      for (const PartOf<Slot>& part : linear.parts) parts.push_back(kernel_part(l, part));
      linears_.push_back({.weight = weight_of(*l[linear.weight]),
                          .weight_change = l[linear.weight_change],
                          .bias = l[linear.bias],
                          .output_scale = l[linear.output_scale],
                          .unscaled = l[linear.unscaled],
                          .y = l[linear.y],
                          .parts = parts.data(),
                          .part_count = static_cast<int32_t>(parts.size())});
    }
  }
  const balora_linear* data() const { return linears_.data(); }
  int32_t count() const { return static_cast<int32_t>(linears_.size()); }

 private:
  std::vector<std::vector<balora_low_rank>> parts_;
  std::vector<balora_linear> linears_;
};

// Names of a part's tensors in messages: a, b, start.a and start.b, each followed by `suffix`.
struct PartNames {
  std::string suffix;
  std::string of(const char* tensor) const { return tensor + suffix; }
};

// Throws unless an operand of a linear has these extents, one for each letter: G times, where its
// weight is (G,O,I).
void check_operand(const char* op, const std::string& name, const Tensor& t, const Tensor& weight,
                   std::initializer_list<int64_t> extents, const char* letters);

// The form of a part (BALORA_LOW_RANK_*). Throws unless its shapes fit a weight (O,I) or (G,O,I),
// and it has a start exactly where the form wants one, as large as the pair; the start must
// not want a gradient.
int32_t checked_form(const char* op, const PartNames& names, const LowRankPart& part,
                     const Tensor& weight);

}  // namespace balora
