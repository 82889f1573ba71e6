// For sources in AVX-512 that do not stand in an x86 folder.
#pragma once
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define BALORA_TILES 1
#include "kernels/cpu/products/x86/amx.h"
#endif
