// Messages about values that only a kernel sees: the same on every device.
#pragma once
#include <cstdint>
#include <string>

#include "kernels/shared/int8_rows.h"
#include "kernels/shared/op_codes.h"
#include "tensor/errors.h"

namespace balora::messages {

inline std::string index_out_of_range(int64_t index, int64_t position, int64_t limit) {
  return concat("index ", index, " at position ", position, " is outside [0,", limit, ")");
}
inline std::string target_out_of_range(int64_t target, int64_t row, int64_t classes) {
  return concat("target ", target, " of row ", row, " is not a class id below ", classes, " (",
                int{BALORA_IGNORED_TARGET}, " marks a row to ignore)");
}
inline std::string singular_matrix() {
  return "the matrix is singular";
}
inline std::string matrix_not_finite() {
  return "the matrix holds NaN or infinity";
}
inline std::string not_converged() {
  return "the iteration did not converge";
}

// ---- int8 ---------------------------------------------------------------------------------------

inline std::string rows_of_f64() {
  return "rows of f64 are not quantised to int8";
}
inline std::string values_in_f64() {
  return "rows in int8 have no values in f64";
}
inline std::string int8_terms(int64_t outs, int64_t ins) {
  return concat("sums in int8 have up to ", kInt8MostTerms, " terms, the weight is (", outs, ",",
                ins, ")");
}

// ---- Groups of rows of linears ------------------------------------------------------------------

inline std::string row_group_ends(int64_t rows, int64_t first, int64_t last) {
  return concat("rowOffsets must rise from 0 to the ", rows, " rows, got ", first, " to ", last);
}
inline std::string row_group_falls(int64_t from, int64_t to, int64_t index) {
  return concat("rowOffsets falls from ", from, " to ", to, " at index ", index);
}

// ---- Attention's segments -----------------------------------------------------------------------

inline std::string segment_ends(int64_t rows, int64_t first, int64_t last) {
  return concat("cu_seqlens must rise from 0 to the ", rows, " rows, got ", first, " to ", last);
}
inline std::string query_ends(int64_t rows, int64_t first, int64_t last) {
  return concat("cu_queries must rise from 0 to the ", rows, " rows of q, got ", first, " to ",
                last);
}
inline std::string segment_queries(int64_t segment, int64_t queries, int64_t rows) {
  return concat("segment ", segment, " has ", queries, " queries, but ", rows, " rows");
}
inline std::string segment_falls(int64_t from, int64_t to, int64_t index) {
  return concat("cu_seqlens falls from ", from, " to ", to, " at index ", index);
}
inline std::string segment_length(int64_t length, int64_t segment, int64_t rows) {
  return concat("length ", length, " of segment ", segment, " is not within its ", rows, " rows");
}
inline std::string segment_reach(int64_t segment, int64_t rows, int64_t positions) {
  return concat("segment ", segment, " has ", rows, " rows, more than the ", positions,
                " relative positions reach");
}
inline std::string position_index(int64_t place, int64_t index, int64_t positions) {
  return concat("index[", place, "] = ", index, " is not a row of the ", positions, " positions");
}
inline std::string outside_tables(int64_t position, int64_t row, int64_t rows) {
  return concat("position ", position, " of row ", row, " is outside the tables, which have ", rows,
                " rows");
}

// ---- The cache of keys and values ---------------------------------------------------------------

inline std::string cache_rows(int64_t rows, int64_t sequence, int64_t length) {
  return concat(rows, " rows of sequence ", sequence, " are more than its ", length, " positions");
}
inline std::string cache_blocks(int64_t sequence, int64_t length, int64_t blocks) {
  return concat("sequence ", sequence, " of ", length, " positions needs more than its ", blocks,
                " blocks");
}
inline std::string cache_block(int64_t block, int64_t sequence, int64_t blocks) {
  return concat("block ", block, " of sequence ", sequence, " is not one of the cache's ", blocks);
}
inline std::string cache_window(int64_t sequence, int64_t position) {
  return concat("position ", position, " of sequence ", sequence, " is seen, but no longer kept");
}
inline std::string cache_bias(int64_t sequence, int64_t length, int64_t distances) {
  return concat("sequence ", sequence, " has ", length, " positions, the bias only ", distances);
}

}  // namespace balora::messages
