// The rows of native/ops/ops.def: their names and those of their parameters, in camelCase.
#include "binding/bind.h"
#include "ops/ops.h"

namespace balora::binding {
namespace {

// "weight_offset" -> "weightOffset"
std::string camel_case(std::string_view name) {
  std::string text;
  bool upper = false;
  for (const char c : name) {
    if (c != '_') text += upper ? static_cast<char>(c - 'a' + 'A') : c;
    upper = c == '_';
  }
  return text;
}

bool is_word(char c) {
  return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

// The names of a parameter list, "(const Tensor& x, bool keep_dims)" -> x, keepDims. An engine is
// filled in (bind.h) and has none.
std::vector<std::string> parameter_names(std::string_view list) {
  std::vector<std::string> names;
  int depth = 0;
  size_t start = 1;  // behind the parenthesis
  for (size_t i = 1; i < list.size(); ++i) {
    if (list[i] == '<') ++depth;
    if (list[i] == '>') --depth;
    if (depth > 0 || (list[i] != ',' && i + 1 < list.size())) continue;
    const std::string_view parameter = list.substr(start, i - start);
    start = i + 1;
    size_t name = parameter.size();
    while (name > 0 && is_word(parameter[name - 1])) --name;
    if (parameter.find("Engine&") == std::string_view::npos) {
      names.push_back(camel_case(parameter.substr(name)));
    }
  }
  return names;
}

}  // namespace

void bind_ops(Module& m) {
#define OP(name, parameters, grad, ...) \
  op(m, camel_case(#name).c_str(), &name, parameter_names(#parameters), Grad::grad);
#include "ops/ops.def"
#undef OP
}

}  // namespace balora::binding
