#include "io/offload.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <list>
#include <mutex>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "platform/files.h"
#include "platform/guarded_pages.h"
#include "tensor/errors.h"

namespace balora::io {
namespace {

using Lock = std::unique_lock<std::mutex>;

}  // namespace

// ---- the cache file -----------------------------------------------------------------------------

class Offload::Cache : public std::enable_shared_from_this<Offload::Cache> {
 public:
  explicit Cache(std::string folder) : folder_(std::move(folder)) {}
  ~Cache() {
    if (file_ != platform::kNoFile) platform::close_file(file_);
  }

  std::shared_ptr<const CachedPart> reserve(size_t bytes) {
    if (file_ == platform::kNoFile) {
      if (const int error = platform::create_nameless(folder_, &file_); error != 0) {
        fail("takes no cache of an offloaded base", error);
      }
    }
    const size_t page = platform::page_bytes(), room = (bytes + page - 1) / page * page;
    if (const int error = platform::extend_file(file_, size_, room); error != 0) {
      fail(concat("has no room for ", bytes, " bytes more of the cache of an offloaded base"),
           error);
    }
    int error = 0;
    const std::byte* const data =
        platform::map_file(file_, size_, room, platform::Sharing::kShared, &error);
    if (!data) fail("cannot be mapped", error);
    return std::make_shared<Part>(shared_from_this(), std::span(data, room), bytes,
                                  std::exchange(size_, size_ + room));
  }

 private:
  class Part : public CachedPart {
   public:
    Part(std::shared_ptr<Cache> cache, std::span<const std::byte> map, size_t bytes,
         uint64_t offset)
        : cache_(std::move(cache)), map_(map), bytes_(bytes), offset_(offset), guarded_(map) {}
    ~Part() override {
      guarded_.reset();
      platform::unmap(map_);
    }

    std::span<const std::byte> bytes() const override { return map_.first(bytes_); }

    // Each part is on the disk before the next is written: pages that wait for that would stay.
    void write(const void* data) const override {
      constexpr size_t kAtOnce = size_t{16} << 20;
      std::span<const std::byte> left(static_cast<const std::byte*>(data), bytes_);
      for (uint64_t place = offset_; !left.empty();) {
        const size_t count = std::min(kAtOnce, left.size());
        const int64_t written = platform::write_at(cache_->file_, left.first(count), place);
        if (written < 0) cache_->fail("cannot be written", static_cast<int>(-written));
        const auto done = static_cast<size_t>(written);
        if (const int error = platform::sync_part(cache_->file_, place, done); error != 0) {
          cache_->fail("cannot be written", error);
        }
        place += done;
        left = left.subspan(done);
      }
    }

    void refuse_changed() const override {
      if (!guarded_->lost()) return;
      throw NativeError(concat(cache_->folder_,
                               ": the cache of an offloaded base cannot be read: its disk failed"),
                        "ERR_IO");
    }
    void refuse_rewritten() const override { refuse_changed(); }

   private:
    std::shared_ptr<Cache> cache_;
    std::span<const std::byte> map_;
    size_t bytes_;
    uint64_t offset_;
    std::optional<platform::GuardedPages> guarded_;  // until just before the map goes
  };

  [[noreturn]] void fail(const std::string& what, int error) const {
    throw NativeError(concat(folder_, ": ", what, ": ", platform::error_text(error)),
                      platform::is_full(error) ? "ERR_DISK_FULL" : "ERR_IO");
  }

  std::string folder_;
  platform::File file_ = platform::kNoFile;
  uint64_t size_ = 0;
};

// ---- what is there and what is to come ----------------------------------------------------------

struct Offload::State {
  std::mutex mutex;
  std::condition_variable wanted;  // for the reader: something is to be read
  std::condition_variable there;   // for the engine: something has been read
  std::list<Use*> uses;            // those that were announced and have not ended, in order
  std::vector<Range*> ranges;      // in the order in which they were added
  uint64_t resident_limit = 0, ahead_limit = 0;
  uint64_t pass = 0;  // number of the last search of what comes next
  bool stopping = false;
  OffloadStats stats;

  // Marks the ranges that the next ops read, as many as fit, with the number of this search.
  // Returns the first that is to be read, or null.
  std::shared_ptr<Range> next();
  // Drops what is neither in the share nor read soon.
  void settle();
  void drop(Range& range);
  void choose_share();
};

struct Offload::Range : public OffloadedMemory, std::enable_shared_from_this<Offload::Range> {
  enum class Where { kOut, kComing, kHere };

  Range(std::shared_ptr<State> state_of, std::span<const std::byte> part,
        std::shared_ptr<const ExternalMemory> of, bool is_gathered)
      : state(std::move(state_of)), bytes(part), owner(std::move(of)), gathered(is_gathered) {}
  ~Range() override {
    const Lock lock(state->mutex);
    if (where == Where::kHere && !resident) state->stats.present -= bytes.size();
    std::erase(state->ranges, this);
    if (!gathered) state->stats.total -= bytes.size();
    if (resident) state->stats.resident -= bytes.size();
  }

  std::unique_ptr<MemoryUse> announce() override;

  const std::shared_ptr<State> state;
  const std::span<const std::byte> bytes;
  const std::shared_ptr<const ExternalMemory> owner;
  const bool gathered;
  // Under the state's mutex.
  bool resident = false;
  Where where = Where::kOut;
  int begun = 0;      // uses whose ops run
  uint64_t pass = 0;  // of the last search that came by
};

struct Offload::Use : public MemoryUse {
  explicit Use(std::shared_ptr<Range> of) : range(std::move(of)) {}

  ~Use() override {
    State& state = *range->state;
    {
      const Lock lock(state.mutex);
      state.uses.erase(place);
      if (begun) {
        --range->begun;
        if (range->gathered && range->begun == 0) platform::drop_pages(range->bytes);
      }
      state.settle();
    }
    state.wanted.notify_one();
  }

  void begin() override {
    const Lock lock(range->state->mutex);
    begun = true;
    ++range->begun;
  }

  void await() override {
    if (range->gathered) return;
    State& state = *range->state;
    Lock lock(state.mutex);
    const auto is_there = [&] { return range->where == Range::Where::kHere || state.stopping; };
    if (is_there()) return;
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    state.wanted.notify_one();
    state.there.wait(lock, is_there);
    state.stats.waited += std::chrono::duration<double>(Clock::now() - start).count();
  }

  const std::shared_ptr<Range> range;
  bool begun = false;  // under the state's mutex, as the next
  std::list<Use*>::iterator place;
};

std::unique_ptr<MemoryUse> Offload::Range::announce() {
  auto use = std::make_unique<Use>(shared_from_this());
  {
    const Lock lock(state->mutex);
    use->place = state->uses.insert(state->uses.end(), use.get());
  }
  state->wanted.notify_one();
  return use;
}

std::shared_ptr<Offload::Range> Offload::State::next() {
  constexpr int kFarthest = 512;  // uses that are looked at
  ++pass;
  uint64_t bytes = 0;
  int seen = 0;
  Use* first = nullptr;
  for (Use* use : uses) {
    Range& range = *use->range;
    if (++seen > kFarthest && !use->begun) break;
    if (range.gathered || range.pass == pass) continue;
    if (!range.resident) {
      const bool fits = bytes + range.bytes.size() <= ahead_limit;
      if (!fits && bytes > 0 && !use->begun) break;
      bytes += range.bytes.size();
    }
    range.pass = pass;
    if (!first && range.where == Range::Where::kOut) first = use;
  }
  return first ? first->range : nullptr;
}

void Offload::State::settle() {
  next();
  for (Range* range : ranges) {
    if (range->where == Range::Where::kHere && !range->resident && range->begun == 0 &&
        range->pass != pass) {
      drop(*range);
    }
  }
}

void Offload::State::drop(Range& range) {
  platform::drop_pages(range.bytes);
  range.where = Range::Where::kOut;
  stats.present -= range.bytes.size();
}

// Every weight adds its part of the share to an account, and is resident where that covers it: so
// what is left to read is spread evenly over the pass.
void Offload::State::choose_share() {
  const double part =
      stats.total == 0
          ? 0
          : std::min(1.0, static_cast<double>(resident_limit) / static_cast<double>(stats.total));
  double account = 0;
  stats.resident = 0, stats.present = 0;
  for (Range* range : ranges) {
    if (range->gathered) continue;
    const auto bytes = static_cast<double>(range->bytes.size());
    account += bytes * part;
    const uint64_t with = stats.resident + range->bytes.size();
    range->resident = part == 1.0 || (account >= bytes && with <= resident_limit);
    if (range->resident) {
      account -= bytes;
      stats.resident = with;
    } else if (range->where == Range::Where::kHere) {
      stats.present += range->bytes.size();
    }
  }
}

// The reader's thread.
void Offload::read_ahead(State& state) {
  constexpr size_t kAtOnce = size_t{32} << 20;  // between two looks at whether to stop
  Lock lock(state.mutex);
  while (!state.stopping) {
    std::shared_ptr<Range> range = state.next();
    if (!range) {
      state.wanted.wait(lock);
      continue;
    }
    range->where = Range::Where::kComing;
    lock.unlock();
    platform::begin_reading(range->bytes);
    std::span<const std::byte> pages = platform::pages_around(range->bytes);
    for (bool goes_on = true; goes_on && !pages.empty();) {
      const size_t count = std::min(kAtOnce, pages.size());
      platform::populate(pages.first(count));
      pages = pages.subspan(count);
      lock.lock();
      goes_on = !state.stopping;
      lock.unlock();
    }
    lock.lock();
    range->where = Range::Where::kHere;
    state.stats.read += range->bytes.size();
    if (!range->resident) {
      state.stats.present += range->bytes.size();
      state.settle();
      state.stats.most_present = std::max(state.stats.most_present, state.stats.present);
    }
    state.there.notify_all();
    lock.unlock();
    range.reset();  // may be the last one, which takes the mutex
    lock.lock();
  }
}

Offload::Offload(std::string folder)
    : state_(std::make_shared<State>()), cache_(std::make_shared<Cache>(std::move(folder))) {
  try {
    reader_ = std::thread([state = state_] { read_ahead(*state); });
  } catch (const std::system_error& error) {
    throw NativeError(concat("baseOffload: no thread that reads ahead: ", error.what()));
  }
}

Offload::~Offload() {
  {
    const Lock lock(state_->mutex);
    state_->stopping = true;
  }
  state_->wanted.notify_all();
  state_->there.notify_all();
  reader_.join();
}

std::shared_ptr<OffloadedMemory> Offload::add(std::span<const std::byte> bytes,
                                              std::shared_ptr<const ExternalMemory> owner,
                                              bool gathered) {
  auto range = std::make_shared<Range>(state_, bytes, std::move(owner), gathered);
  const Lock lock(state_->mutex);
  state_->ranges.push_back(range.get());
  if (!gathered) state_->stats.total += bytes.size();
  return range;
}

std::shared_ptr<const CachedPart> Offload::reserve(size_t bytes) {
  return cache_->reserve(bytes);
}

void Offload::set_limits(uint64_t resident, uint64_t ahead) {
  {
    const Lock lock(state_->mutex);
    state_->resident_limit = resident, state_->ahead_limit = ahead;
    state_->choose_share();
    state_->settle();
    state_->stats.most_present = state_->stats.present;
  }
  state_->wanted.notify_one();
}

OffloadStats Offload::stats() const {
  const Lock lock(state_->mutex);
  return state_->stats;
}

}  // namespace balora::io
