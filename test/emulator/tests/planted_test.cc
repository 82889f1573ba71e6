// Every planted fault is found, with words that name it, and its correct twin passes.
#include <doctest/doctest.h>

#include <regex>

#include "../planted/support.h"

namespace {

using namespace planted;

struct Case {
  const char* name;
  Planted fault;
  const char* words;  // a regular expression that the error holds
};

const Case kCases[] = {
#define CASE(name, words) Case(#name, name, words)
    CASE(
        global_past_the_end,
        R"(kernel planted, block \(0,0,0\), thread \(99,0,0\) reads 4 bytes 0 bytes past the end of )"
        R"(an allocation of 400 bytes of device memory \(device 0\) \[global\.cu:\d+\])"),
    CASE(
        global_before_the_start,
        R"(thread \(0,0,0\) reads 4 bytes 4 bytes before the start of an allocation of 400 bytes)"),
    CASE(use_after_free, R"(reads 4 bytes at byte \d+ of an allocation of 400 bytes of device )"
                         R"(memory that has been freed)"),
    CASE(memory_of_another_device, R"(at byte \d+ of an allocation of 400 bytes .*\(device 1\))"),
    CASE(host_pointer, R"(reads 4 bytes of the host's memory)"),
    CASE(local_of_another_thread,
         R"(thread \(\d+,0,0\) reads 4 bytes of a local variable of thread \(\d+,0,0\))"),
    CASE(misaligned_load,
         R"(accesses 0x[0-9a-f]+ as if it were a multiple of 16 bytes \[global\.cu:\d+\])"),
    CASE(copy_past_the_end,
         R"(thread \(7,0,0\) reads 16 bytes at byte 112 of an allocation of 126 bytes)"),
    CASE(
        two_blocks_write,
        R"(block \(\d,0,0\), thread \(0,0,0\) writes 4 bytes at byte 0 of .* that thread \(0,0,0\) )"
        R"(of block \(\d,0,0\) writes in the same launch)"),
    CASE(block_reads_what_another_writes,
         R"(block \(\d,0,0\), thread \(0,0,0\) (reads|writes) .* that thread \(0,0,0\) of block )"
         R"(\(\d,0,0\) (reads|writes) in the same launch)"),
    CASE(plain_beside_atomic,
         R"(thread \(40,0,0\) reads 4 bytes .* that thread \(\d+,0,0\) changes )"
         R"(atomically too, with no barrier between)"),
    CASE(halves_of_a_word, R"(thread \([67],0,0\) writes 2 bytes at byte 12 .* that thread )"
                           R"(\([67],0,0\) writes too, with no barrier between)"),

    CASE(shared_past_the_end,
         R"(thread \(63,0,0\) reads 4 bytes 0 bytes past the end of the static )"
         R"(array of 256 bytes declared at \[shared\.cu:\d+\])"),
    CASE(dynamic_past_the_end,
         R"(thread \(63,0,0\) reads 4 bytes 0 bytes past the end of region 1 of )"
         R"(the dynamic part, 256 bytes)"),
    CASE(more_shared_than_launched,
         R"(asks for 512 bytes of dynamic shared memory, the launch gave 256)"),
    CASE(unwritten_shared,
         R"(thread \(63,0,0\) reads 4 bytes at byte 252 of the static array of 256 )"
         R"(bytes .* of shared memory that no thread of the block has written)"),
    CASE(missing_syncthreads,
         R"(of shared memory that no thread of the block has written|with no barrier between)"),
    CASE(missing_syncthreads_in_loop,
         R"((reads|writes) 4 bytes at byte \d+ of the static array of 256 bytes .* that thread )"
         R"(\(\d+,0,0\) (reads|writes) too, with no barrier)"),
    CASE(missing_syncwarp, R"(no thread of the block has written|with no barrier between)"),
    CASE(bytes_of_a_word,
         R"(thread \([56],0,0\) writes 1 byte at byte 5 .* that thread \([56],0,0\) writes too)"),

    CASE(
        barrier_not_for_all,
        R"(the threads wait for each other in different places: thread \(0,0,0\) waits in )"
        R"(__syncthreads \[warp\.cu:\d+\], thread \(\d+,0,0\) waits in __syncthreads \[warp\.cu:\d+\])"),
    CASE(barrier_and_shuffle, R"(different places: thread \(0,0,0\) waits in a shuffle .*, thread )"
                              R"(\(\d+,0,0\) waits in)"),
    CASE(shuffle_lanes_missing, R"(thread \(\d+,0,0\) reads the value of lane \d+, which takes no )"
                                R"(part in a shuffle \[warp\.cu:\d+\])"),
    CASE(shuffle_mask_without_self,
         R"(thread \(15,0,0\) calls a shuffle with a mask that leaves itself out)"),
    CASE(shuffle_in_a_small_block, R"(reads the value of lane \d+, which takes no part)"),

    CASE(missing_copy_wait, R"(reads 4 bytes .* while a cp_async of thread \(\d+,0,0\) to it is )"
                            R"(under way)"),
    CASE(copy_over_what_is_read,
         R"(reads 4 bytes .* while a cp_async of thread \(\d+,0,0\) to it is under way)"
         R"(|lets cp_async copy to 16 bytes .* that thread \(\d+,0,0\) reads too)"),
    CASE(misaligned_copy, R"(as if it were a multiple of 16 bytes)"),
    CASE(matrix_from_global, R"(gives ldmatrix an address that is not in shared memory)"),
#undef CASE
};

TEST_CASE("a planted fault is found and named, its correct twin passes, in any order of threads") {
  for (const char* order : {"", "reverse", "shuffle", "shuffle:3"}) {
    setenv("BALORA_EMULATOR_ORDER", order, 1);
    CAPTURE(order);
    for (const Case& one : kCases) {
      const std::string name = one.name;
      CAPTURE(name);
      CHECK(one.fault(false) == "");
      const std::string error = one.fault(true);
      CAPTURE(error);
      CHECK(std::regex_search(error, std::regex(one.words)));
    }
  }
  unsetenv("BALORA_EMULATOR_ORDER");
}

}  // namespace
