// launch(): how an op reaches its kernel. It captures storages and views (never tensors, which
// belong to the enqueueing thread), allocates the outputs when the op's turn comes, runs the
// kernel, and names the op in any failure.
//
// An op whose AbortFlag is set does not run, and neither does one that reads what such an op was to
// write: their outputs count as aborted, and the stream goes on. An op without outputs takes values
// out of the engine, so that there the abort is a failure (AbortedError), which the next marker
// reports. See docs/decisions/how-an-abort-reaches-the-engine.md.
#pragma once
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace balora {

// The name of an operand of a launch, given by LaunchOperands. One that was undefined has no view.
struct Slot {
  static constexpr size_t kNone = SIZE_MAX;
  size_t index = kNone;
  bool is_output = false;
};

struct Launch {
  const KernelTable* kernels;
  Context* ctx;
  Engine* engine;
  std::span<const View> views;
  std::span<const bool> present;
  size_t num_inputs;

  // Null for an operand that was undefined.
  const View* in(size_t i) const { return present[i] ? &views[i] : nullptr; }
  const View* out(size_t i) const { return in(num_inputs + i); }
  const View* operator[](Slot slot) const {
    if (slot.index == Slot::kNone) return nullptr;
    return slot.is_output ? out(slot.index) : in(slot.index);
  }
};

using LaunchFn = std::function<int32_t(Launch&)>;

// fn runs on the engine thread and returns the kernel's status; it may capture scalars only.
// Outputs that already hold values are written in place (the op bumps their version).
void launch(const char* op, std::span<const Tensor> inputs, std::span<const Tensor> outputs,
            LaunchFn fn);
inline void launch(const char* op, std::initializer_list<Tensor> inputs,
                   std::initializer_list<Tensor> outputs, LaunchFn fn) {
  launch(op, std::span(inputs.begin(), inputs.size()), std::span(outputs.begin(), outputs.size()),
         std::move(fn));
}

// The same for an op that reads what it writes, or writes a part of it: an output that has no
// value, because the op that was to make it failed, fails this one too.
void launch_in_place(const char* op, std::span<const Tensor> inputs,
                     std::span<const Tensor> outputs, LaunchFn fn);
inline void launch_in_place(const char* op, std::initializer_list<Tensor> inputs,
                            std::initializer_list<Tensor> outputs, LaunchFn fn) {
  launch_in_place(op, std::span(inputs.begin(), inputs.size()),
                  std::span(outputs.begin(), outputs.size()), std::move(fn));
}

// The tensors of a launch whose kernel takes lists of structures. read() and write() give each a
// name, by which the launched function finds its view:
//   LaunchOperands operands;
//   const Slot x = operands.read(tensor), y = operands.write(result);
//   launch("op", operands, [=](Launch& l) {
//     return call(l.kernels->op, l.ctx, {.x = l[x], .y = l[y]});
//   });
class LaunchOperands {
 public:
  Slot read(const Tensor& tensor) { return add(inputs_, tensor, false); }
  Slot write(const Tensor& tensor) { return add(outputs_, tensor, true); }

  std::span<const Tensor> inputs() const { return inputs_; }
  std::span<const Tensor> outputs() const { return outputs_; }

 private:
  static Slot add(std::vector<Tensor>& list, const Tensor& tensor, bool is_output) {
    if (!tensor.defined()) return {};
    list.push_back(tensor);
    return {list.size() - 1, is_output};
  }
  std::vector<Tensor> inputs_, outputs_;
};
inline void launch(const char* op, const LaunchOperands& operands, LaunchFn fn) {
  launch(op, operands.inputs(), operands.outputs(), std::move(fn));
}
inline void launch_in_place(const char* op, const LaunchOperands& operands, LaunchFn fn) {
  launch_in_place(op, operands.inputs(), operands.outputs(), std::move(fn));
}

// An operand of a kernel: the field of the kernel's structure, and the tensor whose view it gets
// (null for an undefined one).
template <typename O>
struct Field {
  const View* O::*field;
  Tensor tensor;
};
template <typename O>
using Fields = std::initializer_list<Field<O>>;

// Calls launch() or launch_in_place() with the tensors of the fields, in order.
template <typename O, typename Launcher>
void launch_fields(const Launcher& launcher, KernelRow<O> kernel, Fields<O> inputs,
                   Fields<O> outputs, const O& scalars) {
  std::vector<Tensor> in, out;
  std::vector<const View * O::*> fields;
  for (const Field<O>& each : inputs) in.push_back(each.tensor), fields.push_back(each.field);
  for (const Field<O>& each : outputs) out.push_back(each.tensor), fields.push_back(each.field);
  launcher(in, out, [kernel, fields = std::move(fields), scalars](Launch& l) {
    O operands = scalars;
    for (size_t i = 0; i < fields.size(); ++i) operands.*fields[i] = l.in(i);
    return (l.kernels->*kernel)(l.ctx, &operands);
  });
}

// Runs a kernel whose operands have names:
//   using O = balora_rms_norm_forward;
//   launch<O>("rms_norm", &KernelTable::rms_norm_forward, {{&O::x, x}, {&O::weight, weight}},
//             {{&O::y, y}, {&O::rstd, rstd}}, {.eps = eps});
// `scalars` has the fields that are no tensors.
template <typename O>
void launch(const char* op, KernelRow<O> kernel, Fields<O> inputs, Fields<O> outputs,
            const O& scalars = {}) {
  const auto launcher = [op](const auto& in, const auto& out, LaunchFn fn) {
    launch(op, in, out, std::move(fn));
  };
  launch_fields<O>(launcher, kernel, inputs, outputs, scalars);
}
template <typename O>
void launch_in_place(const char* op, KernelRow<O> kernel, Fields<O> inputs, Fields<O> outputs,
                     const O& scalars = {}) {
  const auto launcher = [op](const auto& in, const auto& out, LaunchFn fn) {
    launch_in_place(op, in, out, std::move(fn));
  };
  launch_fields<O>(launcher, kernel, inputs, outputs, scalars);
}

// Copies host bytes (taken at the call) into a new tensor.
Tensor upload(Engine& engine, const Shape& shape, DType dtype, const void* data);

// Copies a contiguous tensor to `host`, which must stay valid until the marker after it has run.
void download(const Tensor& source, void* host);

// A contiguous tensor's values in a new one on another device, or its blocks where it stands in
// such, through a buffer on the host. The source is read in its own stream's order, so it may be
// overwritten by later ops.
Tensor transfer(const Tensor& source, Engine& engine);

}  // namespace balora
