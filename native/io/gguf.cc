#include "io/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>

#include "io/json_cursor.h"
#include "tensor/errors.h"
#include "tensor/shape.h"

namespace balora::io {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read in host order");

constexpr int kMaxDims = 4;           // GGML_MAX_DIMS
constexpr int kMaxArrayDepth = 4;     // arrays of arrays
constexpr uint64_t kMaxName = 65535;  // bytes of a key or tensor name

// Reads forward through the bytes; every step is bounds-checked and errors name
// the field in progress.
class Reader {
 public:
  Reader(const std::string& path, std::span<const std::byte> bytes, uint64_t offset = 0)
      : path_(path), bytes_(bytes), offset_(offset) {}

  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return bytes_.size() - offset_; }

  [[noreturn]] void fail(const std::string& field, const std::string& message) const {
    fail_at(offset_, field, message);
  }
  [[noreturn]] void fail_at(uint64_t offset, const std::string& field,
                            const std::string& message) const {
    throw FormatError(path_, static_cast<int64_t>(offset), field + ": " + message);
  }

  void need(uint64_t count, const std::string& field) const {
    if (count > remaining()) {
      fail(field, concat("needs ", count, " bytes, ", remaining(),
                         " are left: the file is truncated or damaged"));
    }
  }

  template <typename T>
  T scalar(const std::string& field) {
    need(sizeof(T), field);
    T value;
    std::memcpy(&value, bytes_.data() + offset_, sizeof value);
    offset_ += sizeof value;
    return value;
  }

  // A key or a name.
  std::string name(const std::string& field) {
    const uint64_t start = offset_;
    const GgufText found = text(field);
    if (found.bytes > kMaxName) {
      fail_at(start, field + ".length", concat(found.bytes, " bytes, at most ", kMaxName));
    }
    const std::string_view view(reinterpret_cast<const char*>(bytes_.data()) + found.begin,
                                found.bytes);
    if (find_invalid_utf8(view) != std::string_view::npos) {
      fail_at(start, field, "is not valid UTF-8");
    }
    return std::string(view);
  }

  // Vocabularies hold pieces of characters, so texts (unlike names) may be any bytes.
  GgufText text(const std::string& field) {
    const auto length = scalar<uint64_t>(field);
    need(length, field);
    const GgufText found{offset_, length};
    offset_ += length;
    return found;
  }

  // The range of `count` numbers, which the caller has checked to be there.
  std::span<const std::byte> skip(uint64_t count) {
    const auto range = bytes_.subspan(offset_, count);
    offset_ += count;
    return range;
  }

 private:
  const std::string& path_;
  std::span<const std::byte> bytes_;
  uint64_t offset_;
};

GgufType read_type(Reader& in, const std::string& field) {
  const uint64_t at = in.offset();
  const auto type = in.scalar<uint32_t>(field + ".type");
  if (type >= kGgufTypeCount) in.fail_at(at, field + ".type", concat(type, " is not a GGUF type"));
  return static_cast<GgufType>(type);
}

GgufValue read_value(Reader& in, const std::string& field, GgufType type, int depth);

GgufValue read_array(Reader& in, const std::string& field, int depth) {
  if (depth >= kMaxArrayDepth) in.fail(field, concat("arrays nest deeper than ", kMaxArrayDepth));
  const GgufType element = read_type(in, field);
  const uint64_t at = in.offset();
  const auto count = in.scalar<uint64_t>(field + ".length");
  // The smallest encoding of an element bounds the count by what is left.
  const size_t scalar_bytes = gguf_scalar_bytes(element);
  const uint64_t least = scalar_bytes ? scalar_bytes : element == GgufType::kString ? 8 : 12;
  if (count > in.remaining() / least) {
    in.fail_at(
        at, field + ".length",
        concat(count, " elements cannot fit in the ", in.remaining(), " bytes that are left"));
  }
  const GgufArray array{element, count, in.offset()};
  if (scalar_bytes) {
    const auto values = in.skip(count * scalar_bytes);
    if (element == GgufType::kBool) {
      const auto bad = std::ranges::find_if(values, [](std::byte b) { return b > std::byte{1}; });
      if (bad != values.end()) {
        in.fail_at(array.begin + static_cast<uint64_t>(bad - values.begin()), field,
                   concat("a BOOL is 0 or 1, got ", static_cast<int>(*bad)));
      }
    }
    return {GgufType::kArray, array};
  }
  if (count > kMaxGgufItems) {
    in.fail_at(at, field + ".length",
               concat(count, " strings or arrays, at most ", kMaxGgufItems, " are read"));
  }
  for (uint64_t i = 0; i < count; ++i) read_value(in, field, element, depth + 1);
  return {GgufType::kArray, array};
}

GgufValue read_value(Reader& in, const std::string& field, GgufType type, int depth) {
  const auto u = [&]<typename T>() { return static_cast<uint64_t>(in.scalar<T>(field)); };
  const auto i = [&]<typename T>() { return static_cast<int64_t>(in.scalar<T>(field)); };
  switch (type) {
    case GgufType::kU8:
      return { type, u.template operator()<uint8_t>() };
    case GgufType::kU16:
      return { type, u.template operator()<uint16_t>() };
    case GgufType::kU32:
      return { type, u.template operator()<uint32_t>() };
    case GgufType::kU64:
      return { type, u.template operator()<uint64_t>() };
    case GgufType::kI8:
      return { type, i.template operator()<int8_t>() };
    case GgufType::kI16:
      return { type, i.template operator()<int16_t>() };
    case GgufType::kI32:
      return { type, i.template operator()<int32_t>() };
    case GgufType::kI64:
      return { type, i.template operator()<int64_t>() };
    case GgufType::kF32:
      return {type, static_cast<double>(in.scalar<float>(field))};
    case GgufType::kF64:
      return {type, in.scalar<double>(field)};
    case GgufType::kBool: {
      const uint64_t at = in.offset();
      const auto value = in.scalar<uint8_t>(field);
      if (value > 1) in.fail_at(at, field, concat("a BOOL is 0 or 1, got ", int{value}));
      return {type, value == 1};
    }
    case GgufType::kString:
      return {type, in.text(field)};
    case GgufType::kArray:
      return read_array(in, field, depth);
  }
  in.fail(field, "unknown type");
}

void read_prologue(Reader& in, const std::string& path, GgufHeader& header) {
  char magic[4];
  for (char& c : magic) c = in.scalar<char>("magic");
  if (std::memcmp(magic, "GGUF", 4) != 0) in.fail_at(0, "magic", "is not \"GGUF\"");
  header.version = in.scalar<uint32_t>("version");
  if (header.version == 1 || __builtin_bswap32(header.version) <= 3) {
    throw UnsupportedError(concat(path, ": ",
                                  header.version == 1 ? "GGUF version 1" : "big-endian GGUF",
                                  " is not supported; convert it with llama.cpp's gguf tools"));
  }
  if (header.version != 2 && header.version != 3) {
    in.fail_at(4, "version", concat(header.version, ", this reader knows 2 and 3"));
  }
}

void read_metadata(Reader& in, uint64_t count, GgufHeader& header) {
  std::set<std::string> keys;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t at = in.offset();
    const std::string key = in.name(concat("metadata[", i, "].key"));
    if (!keys.insert(key).second) in.fail_at(at, key, "occurs twice in the metadata");
    const uint64_t value_at = in.offset();
    const GgufType type = read_type(in, key);
    GgufValue value = read_value(in, key, type, 0);
    if (key == "general.alignment") {
      const auto* alignment = std::get_if<uint64_t>(&value.value);
      if (type != GgufType::kU32 || !std::has_single_bit(*alignment)) {
        in.fail_at(value_at, key, "must be a UINT32 and a power of two");
      }
      header.alignment = *alignment;
    }
    header.metadata.emplace_back(key, value);
    header.entries.push_back({at, in.offset() - at});
  }
}

GgufTensor read_tensor_info(Reader& in, uint64_t index) {
  GgufTensor tensor;
  tensor.name = in.name(concat("tensor[", index, "].name"));
  const uint64_t at = in.offset();
  const auto ndim = in.scalar<uint32_t>(tensor.name + ".n_dims");
  if (ndim > kMaxDims) {
    in.fail_at(at, tensor.name + ".n_dims", concat(ndim, ", at most ", kMaxDims));
  }
  for (uint32_t d = 0; d < ndim; ++d) {
    const uint64_t extent = in.scalar<uint64_t>(concat(tensor.name, ".ne[", d, "]"));
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(extent));  // or below 0
  }
  const std::optional<int64_t> elements = checked_numel(tensor.shape);
  if (!elements) in.fail_at(at, tensor.name + ".ne", "the number of elements overflows");
  const uint64_t type_at = in.offset();
  const auto type = in.scalar<uint32_t>(tensor.name + ".type");
  tensor.type = find_ggml_type(type);
  if (!tensor.type) {
    in.fail_at(
        type_at, tensor.name + ".type",
        concat(type, " is not a known ggml type; types that are read: ", decoded_ggml_types()));
  }
  const auto block = static_cast<uint64_t>(tensor.type->block);
  const uint64_t row = tensor.shape.empty() ? 1 : static_cast<uint64_t>(tensor.shape.back());
  if (row % block != 0) {
    in.fail_at(at, tensor.name + ".ne[0]",
               concat(row, " is not a multiple of the ", block, " elements of a ",
                      tensor.type->name, " block"));
  }
  tensor.bytes =
      static_cast<uint64_t>(*elements) / block * static_cast<uint64_t>(tensor.type->bytes);
  tensor.begin = in.scalar<uint64_t>(tensor.name + ".offset");
  return tensor;
}

// Tensor offsets are relative to the data section until here.
void place_tensors(const Reader& in, GgufHeader& header, uint64_t file_size) {
  const uint64_t mask = header.alignment - 1;
  header.data_begin = (in.offset() + mask) & ~mask;
  std::vector<GgufTensor*> order;
  for (GgufTensor& tensor : header.tensors) {
    const std::string field = tensor.name + ".offset";
    if (tensor.begin & mask) {
      in.fail(field,
              concat(tensor.begin, " is not a multiple of the alignment ", header.alignment));
    }
    uint64_t end = 0;
    if (__builtin_add_overflow(tensor.begin, header.data_begin, &tensor.begin) ||
        __builtin_add_overflow(tensor.begin, tensor.bytes, &end) || end > file_size) {
      in.fail(field, concat("its ", tensor.bytes, " bytes of data end beyond the file's ",
                            file_size, ": the file is truncated or damaged"));
    }
    if (tensor.bytes > 0) order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(),
            [](const GgufTensor* a, const GgufTensor* b) { return a->begin < b->begin; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i]->begin < order[i - 1]->begin + order[i - 1]->bytes) {
      in.fail_at(order[i]->begin, order[i]->name + ".offset",
                 concat("its data overlap those of ", order[i - 1]->name));
    }
  }
}

}  // namespace

size_t gguf_scalar_bytes(GgufType type) {
  static constexpr size_t kBytes[kGgufTypeCount] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kBytes[static_cast<size_t>(type)];
}

const char* gguf_type_name(GgufType type) {
  static constexpr const char* kNames[kGgufTypeCount] = {
      "UINT8", "INT8",   "UINT16", "INT16",  "UINT32", "INT32",  "FLOAT32",
      "BOOL",  "STRING", "ARRAY",  "UINT64", "INT64",  "FLOAT64"};
  return kNames[static_cast<size_t>(type)];
}

GgufHeader parse_gguf(const std::string& path, std::span<const std::byte> bytes) {
  Reader in(path, bytes);
  GgufHeader header;
  read_prologue(in, path, header);
  const uint64_t counts_at = in.offset();
  const auto tensor_count = in.scalar<uint64_t>("tensor_count");
  const auto metadata_count = in.scalar<uint64_t>("metadata_kv_count");
  // A tensor info takes at least 24 bytes, a metadata entry at least 13.
  if (tensor_count > in.remaining() / 24 || metadata_count > in.remaining() / 13) {
    in.fail_at(
        counts_at, "tensor_count, metadata_kv_count",
        concat(tensor_count, " tensors and ", metadata_count, " entries cannot fit in ",
               in.remaining(), " bytes; fetch the file again, since it is cut off or damaged"));
  }
  if (tensor_count > kMaxGgufTensors || metadata_count > kMaxGgufEntries) {
    in.fail_at(counts_at, "tensor_count, metadata_kv_count",
               concat(tensor_count, " tensors and ", metadata_count, " entries, at most ",
                      kMaxGgufTensors, " and ", kMaxGgufEntries, " are read"));
  }
  read_metadata(in, metadata_count, header);
  std::set<std::string> names;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    const uint64_t at = in.offset();
    header.tensors.push_back(read_tensor_info(in, i));
    if (!names.insert(header.tensors.back().name).second) {
      in.fail_at(at, header.tensors.back().name, "occurs twice among the tensors");
    }
  }
  place_tensors(in, header, bytes.size());
  return header;
}

std::shared_ptr<const GgufFile> GgufFile::open(const std::string& path) {
  auto result = std::make_shared<GgufFile>();
  result->file_ = MappedFile::open(path);
  auto [header, digests] = result->file_->parsed([&path](std::span<const std::byte> bytes) {
    GgufHeader parsed = parse_gguf(path, bytes);
    const size_t end = std::min<size_t>(parsed.data_begin, bytes.size());
    PartDigests digests(bytes.first(end));
    digests.compute(0, digests.blocks());
    return std::pair(std::move(parsed), std::move(digests));
  });
  result->header_ = std::move(header);
  // Values of the metadata are read from the pages when they are asked for.
  result->file_->remember(std::move(digests));
  for (size_t i = 0; i < result->header_.tensors.size(); ++i) {
    result->index_.emplace(result->header_.tensors[i].name, i);
  }
  return result;
}

std::string_view GgufFile::text(const GgufText& text) const {
  const auto range = file_->bytes().subspan(text.begin, text.bytes);
  return {reinterpret_cast<const char*>(range.data()), range.size()};
}

std::span<const std::byte> GgufFile::numbers(const GgufArray& array) const {
  return file_->bytes().subspan(array.begin, array.count * gguf_scalar_bytes(array.element));
}

std::vector<GgufValue> GgufFile::items(const std::string& key, const GgufArray& array) const {
  Reader in(path(), file_->bytes(), array.begin);
  std::vector<GgufValue> values;
  values.reserve(array.count);
  for (uint64_t i = 0; i < array.count; ++i) {
    values.push_back(read_value(in, key, array.element, 1));
  }
  return values;
}

const GgufTensor* GgufFile::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &header_.tensors[found->second];
}

}  // namespace balora::io
