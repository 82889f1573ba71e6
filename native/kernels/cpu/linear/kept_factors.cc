#include "kernels/cpu/linear/kept_factors.h"

#include "platform/platform.h"

namespace balora {
namespace {

// The content of a slot.
struct Kept {
  std::shared_ptr<const char> storage = std::make_shared<const char>();

  KeptKey key;
  platform::AlignedMemory matrix;
};

// The content of a factor's slot, made at the first call; null for a factor without a slot.
Kept* kept_of(const View& factor) {
  if (!factor.versioned || !view_contiguous(factor)) return nullptr;
  balora_slot& slot = *factor.versioned;
  if (!slot.data) {
    slot.data = new Kept;
    slot.destroy = [](void* data) { delete static_cast<Kept*>(data); };
  }
  return static_cast<Kept*>(slot.data);
}

FactorValues values_of(const View& factor) {
  const Kept* const kept = kept_of(factor);
  return kept ? FactorValues{kept->storage, factor.version} : FactorValues{};
}

void account(Context* ctx, balora_slot& slot, int64_t bytes) {
  if (ctx->account) ctx->account(ctx, bytes - slot.bytes);
  slot.bytes = bytes;
}

void free_matrix(Context* ctx, balora_slot& slot) {
  Kept& kept = *static_cast<Kept*>(slot.data);
  kept.matrix.reset();
  kept.key = {};
  account(ctx, slot, 0);
}

}  // namespace

void KeptKey::add(const LowRankUpdate& update, Side side, int64_t linear) {
  const View* const start = update.start(side);
  Part part{.now = values_of(update.factor(side)), .linear = linear};
  if (start) part.start = values_of(*start);
  if (side == Side::kB) {
    part.scale = update.scale;
    part.is_change = update.is_change();
  }
  is_known = is_known && part.now.storage && (!start || part.start.storage);
  parts.push_back(std::move(part));
}

const void* kept_matrix(Context* ctx, const View& owner, const KeptKey& key, int64_t bytes,
                        const std::function<void(void*)>& make) {
  Kept* const kept = key.is_known ? kept_of(owner) : nullptr;
  if (!kept) return nullptr;
  if (kept->matrix && kept->key == key) return kept->matrix.get();
  drop_stale(ctx, owner);
  if (kept->matrix) return nullptr;
  balora_slot& slot = *owner.versioned;
  platform::AlignedMemory matrix = platform::allocate_aligned(static_cast<uint64_t>(bytes));
  make(matrix.get());
  kept->matrix = std::move(matrix);
  kept->key = key;
  account(ctx, slot, static_cast<int64_t>(platform::aligned_bytes(static_cast<uint64_t>(bytes))));
  return kept->matrix.get();
}

void drop_stale(Context* ctx, const View& factor) {
  if (!factor.versioned || !factor.versioned->data) return;
  const Kept& kept = *static_cast<const Kept*>(factor.versioned->data);
  if (!kept.matrix) return;
  for (const KeptKey::Part& part : kept.key.parts) {
    if (part.now.storage == kept.storage && part.now.version == factor.version) return;
    if (part.start.storage == kept.storage && part.start.version == factor.version) return;
  }
  free_matrix(ctx, *factor.versioned);
}

}  // namespace balora
