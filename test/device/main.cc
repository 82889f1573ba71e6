// Entry of the tests that hold a device plug-in to the CPU device, row by row. They need no Node:
//
//   BALORA_CUDA_PLUGIN=build/emulator/balora_cuda.so build/release/balora_device_tests
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
