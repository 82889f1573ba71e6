#include "support/device_test.h"

#include <dlfcn.h>

#include <stdexcept>

#include "platform/environment.h"

namespace balora::test {

const KernelTable& device_table() {
  static const KernelTable* table = [] {
    const char* path = std::getenv("BALORA_CUDA_PLUGIN");
    if (!path) throw std::runtime_error("set BALORA_CUDA_PLUGIN to the plug-in's path");
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) throw std::runtime_error(dlerror());
    using Get = const KernelTable* (*)();
    const auto get = reinterpret_cast<Get>(dlsym(library, "balora_device_table"));
    if (!get) throw std::runtime_error(dlerror());
    const KernelTable* found = get();
    if (found->abi != BALORA_ABI || found->size != sizeof(KernelTable)) {
      throw std::runtime_error("the plug-in has another ABI");
    }
    return found;
  }();
  return *table;
}

double element(int32_t dtype, const void* data, int64_t i) {
  switch (dtype) {
    case BALORA_F32:
      return static_cast<const float*>(data)[i];
    case BALORA_BF16:
      return to_float(static_cast<const bf16*>(data)[i]);
    case BALORA_F16:
      return to_float(static_cast<const f16*>(data)[i]);
    case BALORA_F64:
      return static_cast<const double*>(data)[i];
    case BALORA_I32:
      return static_cast<const int32_t*>(data)[i];
    case BALORA_I64:
      return static_cast<double>(static_cast<const int64_t*>(data)[i]);
    default:
      return static_cast<const uint8_t*>(data)[i];
  }
}

void set_element(int32_t dtype, void* data, int64_t i, double value) {
  switch (dtype) {
    case BALORA_F32:
      static_cast<float*>(data)[i] = static_cast<float>(value);
      break;
    case BALORA_BF16:
      static_cast<bf16*>(data)[i] = to_bf16(static_cast<float>(value));
      break;
    case BALORA_F16:
      static_cast<f16*>(data)[i] = to_f16(static_cast<float>(value));
      break;
    case BALORA_F64:
      static_cast<double*>(data)[i] = value;
      break;
    case BALORA_I32:
      static_cast<int32_t*>(data)[i] = static_cast<int32_t>(value);
      break;
    case BALORA_I64:
      static_cast<int64_t*>(data)[i] = static_cast<int64_t>(value);
      break;
    default:
      static_cast<uint8_t*>(data)[i] = static_cast<uint8_t>(value);
  }
}

TableContext::TableContext(const KernelTable& table) : table_(table) {
  ctx_.workspace = [](Context* ctx, uint64_t bytes) -> void* {
    auto* self = reinterpret_cast<TableContext*>(ctx);
    void* data = self->allocate(bytes);
    if (data) self->scratch_.emplace_back(data, bytes);
    return data;
  };
  ctx_.account = [](Context*, int64_t) {};
  ctx_.variable = &variable;
  ctx_.num_threads = 2;
  ctx_.deterministic = 1;
  ctx_.device_state = table.create_state(0, ctx_.error, sizeof ctx_.error);
  if (!ctx_.device_state && ctx_.error[0]) throw std::runtime_error(ctx_.error);
  char text[256] = "";
  if (table.describe) table.describe(ctx_.device_state, text, sizeof text);
  emulated_ = std::strstr(text, "emulated") != nullptr;
}

TableContext::~TableContext() {
  release_scratch();
  table_.destroy_state(ctx_.device_state);
}

uint64_t TableContext::size_of_request(uint64_t bytes) const {
  return emulated_ ? std::max<uint64_t>(bytes, 1) : (bytes + 511) / 256 * 256;
}

void* TableContext::allocate(uint64_t bytes) {
  const uint64_t rounded = size_of_request(bytes);
  void* data = table_.allocate(ctx_.device_state, rounded);
  if (data) {
    const std::vector<char> pattern(rounded, static_cast<char>(0xff));
    upload(data, pattern.data(), rounded);
  }
  return data;
}

void TableContext::release(void* data, uint64_t bytes) {
  table_.release(ctx_.device_state, data, size_of_request(bytes));
}

void TableContext::upload(void* device, const void* host, uint64_t bytes) {
  if (table_.upload(&ctx_, device, host, bytes) != 0) throw std::runtime_error(ctx_.error);
}

void TableContext::download(void* host, const void* device, uint64_t bytes) {
  if (table_.download(&ctx_, host, device, bytes) != 0) throw std::runtime_error(ctx_.error);
}

void TableContext::release_scratch() {
  for (const auto& [data, bytes] : scratch_) release(data, bytes);
  scratch_.clear();
}

Operand::Operand(TableContext& device, int32_t dtype, std::vector<int64_t> shape)
    : device_(device),
      guard_(device.emulated() ? 0 : 256),
      dtype_(dtype),
      shape_(std::move(shape)) {
  for (const int64_t dim : shape_) size_ *= dim;
  const auto bytes = static_cast<size_t>(size_ * dtype_size(static_cast<DType>(dtype)));
  host_.assign(bytes, static_cast<char>(0xff));
  device_data_ = device.allocate(bytes + 2 * guard_);
}

Operand::~Operand() {
  const uint64_t bytes = host_.size() + 2 * guard_;
  std::vector<char> all(bytes);
  device_.download(all.data(), device_data_, bytes);
  const auto guard = static_cast<ptrdiff_t>(guard_);
  const auto touched = [](char byte) { return byte != static_cast<char>(0xff); };
  const bool clean = std::none_of(all.begin(), all.begin() + guard, touched) &&
                     std::none_of(all.end() - guard, all.end(), touched);
  CHECK_MESSAGE(clean, "a kernel wrote outside its array");
  device_.release(device_data_, bytes);
}

void Operand::to_device() {
  device_.upload(static_cast<char*>(device_data_) + guard_, host_.data(), host_.size());
}

std::vector<double> Operand::from_device() {
  std::vector<char> bytes(host_.size());
  device_.download(bytes.data(), static_cast<char*>(device_data_) + guard_, bytes.size());
  std::vector<double> out;
  for (int64_t i = 0; i < size_; ++i) out.push_back(element(dtype_, bytes.data(), i));
  return out;
}

std::vector<double> Operand::host_values() const {
  std::vector<double> out;
  for (int64_t i = 0; i < size_; ++i) out.push_back(host(i));
  return out;
}

DeviceTest::DeviceTest(uint32_t seed)
    : random_(seed), device_(device_table()), cpu_(*cpu_kernel_table()) {}

Array DeviceTest::make(int32_t dtype, std::vector<int64_t> shape) {
  auto array = std::make_shared<Operand>(device_, dtype, std::move(shape));
  arrays_.push_back(array);
  return array;
}

Array DeviceTest::random(int32_t dtype, std::vector<int64_t> shape, double scale) {
  auto array = make(dtype, std::move(shape));
  std::uniform_real_distribution<double> uniform(-scale, scale);
  for (int64_t i = 0; i < array->size(); ++i) array->set(i, uniform(random_));
  return array;
}

Array DeviceTest::of_values(int32_t dtype, std::vector<int64_t> shape,
                            const std::vector<double>& values) {
  auto array = make(dtype, std::move(shape));
  for (int64_t i = 0; i < array->size(); ++i) array->set(i, values[static_cast<size_t>(i)]);
  return array;
}

int32_t DeviceTest::run(TableContext& side, bool device, const Row& row) {
  std::vector<std::unique_ptr<View>> views;
  const ViewOf view = [&](const Array& array) -> const View* {
    if (!array) return nullptr;
    views.push_back(std::make_unique<View>(device ? array->device_view() : array->host_view()));
    return views.back().get();
  };
  side.get()->error[0] = '\0';
  const int32_t status = row(side.table(), side.get(), view);
  side.release_scratch();
  return status;
}

int32_t DeviceTest::on_device(const Row& row) {
  for (const auto& array : arrays_) {
    if (const Array live = array.lock()) live->to_device();
  }
  return run(device_, true, row);
}

int32_t DeviceTest::on_cpu(const Row& row) {
  return run(cpu_, false, row);
}

void DeviceTest::both(const Row& row) {
  const int32_t status = on_device(row);
  REQUIRE_MESSAGE(status == 0, device_.get()->error);
  const int32_t waited = synchronize();
  REQUIRE_MESSAGE(waited == 0, device_.get()->error);
  const int32_t expected = on_cpu(row);
  REQUIRE_MESSAGE(expected == 0, cpu_.get()->error);
}

int32_t DeviceTest::synchronize() {
  return device_.table().synchronize(device_.get());
}

void DeviceTest::check_close(const Array& array, double tolerance) {
  const std::vector<double> got = array->from_device();
  for (int64_t i = 0; i < array->size(); ++i) {
    const double have = got[static_cast<size_t>(i)], want = array->host(i);
    const bool close = std::abs(have - want) <= tolerance * (1 + std::abs(want)) ||
                       (std::isnan(have) && std::isnan(want)) || have == want;
    if (!close) {
      CHECK_MESSAGE(close, "index ", i, ": the device gives ", have, ", the CPU ", want);
      return;
    }
  }
}

void DeviceTest::check_equal(const Array& array) {
  check_close(array, 0);
}

void DeviceTest::check_truth(const Array& array, const std::vector<double>& truth, double tolerance,
                             double factor) {
  REQUIRE(array->size() == static_cast<int64_t>(truth.size()));
  double plain = 0;
  for (int64_t i = 0; i < array->size(); ++i) {
    plain = std::max(plain, std::abs(array->host(i) - truth[static_cast<size_t>(i)]));
  }
  const std::vector<double> got = array->from_device();
  for (int64_t i = 0; i < array->size(); ++i) {
    const double have = got[static_cast<size_t>(i)], want = truth[static_cast<size_t>(i)];
    const bool close = std::abs(have - want) <= factor * plain + tolerance * (1 + std::abs(want));
    if (!close) {
      CHECK_MESSAGE(close, "index ", i, ": the device gives ", have, ", the truth is ", want,
                    ", the CPU is off by at most ", plain);
      return;
    }
  }
}

}  // namespace balora::test
