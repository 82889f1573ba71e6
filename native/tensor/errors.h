// The four kinds of failure a caller can tell apart. The binding maps each to a JS class with the
// same code.
#pragma once
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace balora {

class Error : public std::runtime_error {
 public:
  Error(const char* code, const std::string& message) : std::runtime_error(message), code_(code) {}
  const char* code() const { return code_; }

 private:
  const char* code_;
};

// The caller passed something wrong.
class ArgumentError : public Error {
 public:
  explicit ArgumentError(const std::string& message) : Error("ERR_ARGUMENT", message) {}
};

// The request is sensible, but not available here (device, dtype, platform).
class UnsupportedError : public Error {
 public:
  explicit UnsupportedError(const std::string& message) : Error("ERR_UNSUPPORTED", message) {}
};

// A damaged or foreign file; offset is in bytes from its start, -1 where no single place is at
// fault.
class FormatError : public Error {
 public:
  FormatError(const std::string& path, int64_t offset, const std::string& message)
      : Error("ERR_FORMAT",
              path + (offset >= 0 ? " at byte " + std::to_string(offset) : "") + ": " + message),
        path_(path),
        offset_(offset) {}
  const std::string& path() const { return path_; }
  int64_t offset() const { return offset_; }

 private:
  std::string path_;
  int64_t offset_;
};

// Everything else: allocation, operating system, a library, a kernel.
class NativeError : public Error {
 public:
  explicit NativeError(const std::string& message) : Error("ERR_NATIVE", message) {}
};

// Joins the parts with operator<<: `throw ArgumentError(concat("rms_norm: eps must be >= 0, got ",
// eps))`.
template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace balora
