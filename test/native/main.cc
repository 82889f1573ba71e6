// Entry of the C++ tests. They link the core without Node, which keeps the core free of it.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
