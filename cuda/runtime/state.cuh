// The rows of the table that are no kernels: a device's state, its memory, copies, synchronisation
// and graphs (kernels/kernel_table.h says what each promises).
#pragma once
#include "runtime/common.cuh"

namespace balora::cuda {

void* create_state(int32_t device_index, char* error, uint64_t error_size);
void destroy_state(void* state);
void* allocate(void* state, uint64_t bytes);
void release(void* state, void* data, uint64_t bytes);
int32_t upload(Context* ctx, void* device, const void* host, uint64_t bytes);
int32_t download(Context* ctx, void* host, const void* device, uint64_t bytes);
void* pin(void* state, uint64_t bytes);
void unpin(void* state, void* data);
int32_t copy_in(Context* ctx, void* device, const void* pinned, uint64_t bytes);
int32_t copy_out(Context* ctx, void* pinned, const void* device, uint64_t bytes);
int32_t mark(Context* ctx, void** made);
int32_t reached(void* mark);
int32_t await_mark(void* mark, char* error, uint64_t error_size);
void unmark(void* mark);
int32_t record(Context* ctx, void** made);
int32_t elapsed(void* from, void* to, double* seconds);
int32_t synchronize(Context* ctx);
void describe(void* state, char* text, uint64_t text_size);
int32_t memory(void* state, uint64_t* free_bytes, uint64_t* total_bytes);
int32_t capture_begin(Context* ctx);
int32_t capture_end(Context* ctx, void** graph);
int32_t graph_launch(Context* ctx, void* graph);
void graph_destroy(void* state, void* graph);

const char* row_name(int32_t row);  // of a fault

}  // namespace balora::cuda
