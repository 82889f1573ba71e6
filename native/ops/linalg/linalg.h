// Checks that ops on matrices share.
#pragma once
#include <cstdint>

#include "tensor/tensor.h"

namespace balora {

// Throws unless a is a non-empty matrix of floats; `op` names the op in the message.
void check_matrix(const char* op, const Tensor& a);

// Throws unless g is (C,C) f64, as gram() makes it.
void check_gram(const char* op, const char* name, const Tensor& g, int64_t channels);

// Throws where a wants a gradient, for ops that have none.
void refuse_gradient(const char* op, const Tensor& a);

}  // namespace balora
