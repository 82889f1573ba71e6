// Products: matmul, and linears with low-rank parts.
#include "binding/bind.h"
#include "ops/ops.h"

namespace balora::binding {

template <>
struct Arg<LowRankFactors> {
  static std::string ts() { return "{ a: Handle; b: Handle }"; }
  static LowRankFactors from(Env& env, const Napi::Value& v) {
    return {field<Tensor>(env, v, "a"), field<Tensor>(env, v, "b")};
  }
};

template <>
struct Arg<LowRankPart> {
  static std::string ts() {
    return "{ a: Handle; b: Handle; frozen: " + Arg<std::optional<LowRankFactors>>::ts() +
           "; scale: number; isChange: boolean }";
  }
  static LowRankPart from(Env& env, const Napi::Value& v) {
    return {field<Tensor>(env, v, "a"), field<Tensor>(env, v, "b"),
            field<std::optional<LowRankFactors>>(env, v, "frozen"), field<double>(env, v, "scale"),
            field<bool>(env, v, "isChange")};
  }
};

template <>
struct Arg<LinearLayer> {
  static std::string ts() {
    return "{ weight: Handle; bias: Handle | null; outputScale: Handle | null; lowRank: " +
           Arg<std::vector<LowRankPart>>::ts() + " }";
  }
  static LinearLayer from(Env& env, const Napi::Value& v) {
    return {field<Tensor>(env, v, "weight"), field<std::optional<Tensor>>(env, v, "bias"),
            field<std::optional<Tensor>>(env, v, "outputScale"),
            field<std::vector<LowRankPart>>(env, v, "lowRank")};
  }
};

void bind_linear(Module& m) {
  op(m, "matmul", &matmul, {"a", "b", "transposeA", "transposeB"}, Grad::kYes);
  op(m, "linearGroup", &linear_group, {"x", "adapterInput", "linears"}, Grad::kYes);
  op(m, "columnScale", &column_scale, {"x", "scale", "bias"}, Grad::kYes);
  op(m, "rowNorm", &row_norm, {"weight", "lowRank"}, Grad::kNone);
}

}  // namespace balora::binding
