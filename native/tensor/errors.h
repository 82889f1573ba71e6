// The kinds of failure a caller can tell apart by code; the list with what each means is ErrorCode
// of lib/errors.ts. The binding maps each to a JS class with the same code.
#pragma once
#include <cstdint>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>

namespace balora {

// The text with zero bytes as escapes, of which a name in a file may have some: what() ends at one.
[[gnu::noinline]] inline std::string without_zeros(const std::string& text) {
  std::string shown;
  for (const char c : text) c == '\0' ? shown += "\\u0000" : shown += c;
  return shown;
}

class Error : public std::runtime_error {
 public:
  Error(const char* code, const std::string& message)
      : std::runtime_error(without_zeros(message)), code_(code) {}
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

// A damaged or foreign file; offset is in bytes from its start, -1 where no
// single place is at fault.
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

// Everything else: the operating system, a device, a library, a kernel. A cause that a program can
// act on has a code of its own.
class NativeError : public Error {
 public:
  explicit NativeError(const std::string& message, const char* code = "ERR_NATIVE")
      : Error(code, message) {}
};

class OutOfMemoryError : public NativeError {
 public:
  explicit OutOfMemoryError(const std::string& message)
      : NativeError("out of memory: " + message, "ERR_OUT_OF_MEMORY") {}
};

// A value that must be finite is NaN or infinite.
class NotFiniteError : public NativeError {
 public:
  explicit NotFiniteError(const std::string& message) : NativeError(message, "ERR_NOT_FINITE") {}
};

// The contents of a file changed while results depended on them. `what` says how it is known.
class FileChangedError : public NativeError {
 public:
  static constexpr const char* kCode = "ERR_FILE_CHANGED";
  FileChangedError(const std::string& path, const std::string& what)
      : NativeError(path + ": was changed while its contents were in use: " + what, kCode) {}
};

// The code of any exception; the standard library's own count as native failures.
inline const char* code_of(const std::exception& error) {
  if (const auto* own = dynamic_cast<const Error*>(&error)) return own->code();
  return dynamic_cast<const std::bad_alloc*>(&error) ? "ERR_OUT_OF_MEMORY" : "ERR_NATIVE";
}

// The message of any exception; the standard library's names for a lack of memory say nothing.
inline const char* message_of(const std::exception& error) {
  return dynamic_cast<const std::bad_alloc*>(&error) ? "out of memory" : error.what();
}

// Joins the parts with operator<<:
//   throw ArgumentError(concat("rms_norm: eps must be >= 0, got ", eps));
template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace balora
