#include "platform/environment.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string_view>

namespace balora {
namespace {

using Values = std::array<std::optional<std::string>, kVariables.size()>;

// Set once and never freed: threads of the engine may ask until the process ends.
std::atomic<const Values*> kept{nullptr};

}  // namespace

void keep_variables(const std::function<std::optional<std::string>(const char* name)>& read) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  if (kept.load(std::memory_order_relaxed)) return;
  auto values = std::make_unique<Values>();
  for (size_t i = 0; i < kVariables.size(); ++i) (*values)[i] = read(kVariables[i]);
  kept.store(values.release(), std::memory_order_release);
}

const char* variable(const char* name) noexcept {
  const auto found = std::find(kVariables.begin(), kVariables.end(), std::string_view(name));
  if (found == kVariables.end()) return nullptr;
  const Values* const values = kept.load(std::memory_order_acquire);
  if (!values) return std::getenv(name);
  const std::optional<std::string>& value =
      (*values)[static_cast<size_t>(found - kVariables.begin())];
  return value ? value->c_str() : nullptr;
}

}  // namespace balora
