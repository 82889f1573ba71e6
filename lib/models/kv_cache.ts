/**
 * The keys and values that a model's attention has computed for the sequences that it decodes. They are kept in blocks of 32
 * positions in tensors of the engine; a sequence is a list of blocks, and sequences that begin with the same tokens share theirs.
 * See docs/decisions/kv-cache.md.
 */
import { beyondAbort } from '../abort.ts';
import { withDevice } from '../device.ts';
import { ArgumentError } from '../errors.ts';
import type { NamedTensors } from '../graph.ts';
import { attention, copy_, slice, zeros } from '../ops/index.ts';
import {
  type CachedAttentionOptions,
  cacheAppend,
  cachedAttention,
  type KvCacheView,
  kCacheBlock,
  kCacheChannels,
  keepAborted,
} from '../ops/kv_cache.ts';
import { withMemoryTag } from '../runtime.ts';
import { computeOwned, type DType, type Tensor, tensor, unscoped } from '../tensor.ts';

/** One attention of a model, as its cache sees it. */
export interface CachedLayer {
  /** Number of keys that a row attends to, itself included; 0: all before it. */
  readonly window: number;
  readonly numKeyValueHeads: number;
  readonly headDim: number;
  /** The rows whose keys it keeps: those that are decoded, or those of the encoder. Default own. */
  readonly of?: 'own' | 'encoder';
}

/** Layers that keep the same positions, and share lists of blocks therefore. */
interface Group extends Required<CachedLayer> {
  readonly layers: number;
}

/** The group of a layer, and its index in it. */
interface Place {
  readonly group: number;
  readonly layer: number;
}

/** The least size of a chunk. */
const kChunkBytes = 4 << 20;
/** A cache grows by at least this share of its size, so that there are few chunks. */
const kGrowth = 1 / 4;

const kBytes: Partial<Record<DType, number>> = { f32: 4, bf16: 2, f16: 2, f64: 8 };

const blocksOf = (positions: number): number => Math.ceil(positions / kCacheBlock);

/** Channels of a head in the cache, whose rows are filled up. */
const channelsOf = (headDim: number): number =>
  Math.ceil(headDim / kCacheChannels) * kCacheChannels;

/** Bytes of a position's keys and values in one layer. */
const positionBytes = ({ numKeyValueHeads, headDim }: CachedLayer, dtype: DType): number =>
  2 * numKeyValueHeads * channelsOf(headDim) * (kBytes[dtype] as number);

/** The blocks of one group: tensors that are made when they are needed, and the count of each block's users. */
class BlockPool {
  readonly chunks: Tensor[] = [];
  readonly blockBytes: number;
  readonly #free: number[] = [];
  readonly #users: number[] = [];

  constructor(
    private readonly group: Group,
    private readonly dtype: DType,
  ) {
    this.blockBytes = group.layers * kCacheBlock * positionBytes(group, dtype);
  }

  get #channels(): number {
    return channelsOf(this.group.headDim);
  }

  get blocks(): number {
    return this.#users.length;
  }

  /** Number of blocks that some sequence uses. */
  get used(): number {
    return this.#users.length - this.#free.length;
  }

  /** Makes sure that so many blocks are free. */
  reserve(count: number): void {
    const missing = count - this.#free.length;
    if (missing <= 0) return;
    const least = Math.max(1, Math.floor(kChunkBytes / this.blockBytes));
    const added = Math.max(missing, least, Math.ceil(this.blocks * kGrowth));
    const { layers, numKeyValueHeads } = this.group;
    const shape = [added, layers, 2, numKeyValueHeads, kCacheBlock, this.#channels];
    this.chunks.push(
      withMemoryTag('kv cache', () => unscoped(() => zeros(shape, { dtype: this.dtype }))),
    );
    const first = this.blocks;
    for (let id = first + added - 1; id >= first; id--) this.#free.push(id);
    for (let i = 0; i < added; i++) this.#users.push(0);
  }

  /** A free block, with one user. */
  take(): number {
    this.reserve(1);
    const id = this.#free.pop() as number;
    this.#users[id] = 1;
    return id;
  }

  share(id: number): void {
    this.#users[id] = (this.#users[id] as number) + 1;
  }

  isShared(id: number): boolean {
    return (this.#users[id] as number) > 1;
  }

  release(id: number): void {
    const users = (this.#users[id] as number) - 1;
    this.#users[id] = users;
    if (users === 0) this.#free.push(id);
  }

  /** Copies a block's keys and values of all layers. */
  copy(from: number, to: number): void {
    beyondAbort(() => computeOwned(() => void copy_(this.#block(to), this.#block(from))));
  }

  #block(id: number): Tensor {
    let first = 0;
    for (const chunk of this.chunks) {
      const blocks = chunk.shape[0] as number;
      if (id < first + blocks) {
        return slice(chunk, 0, { start: id - first, stop: id - first + 1 });
      }
      first += blocks;
    }
    throw new ArgumentError(`block ${id} is not one of the cache's ${first}`);
  }

  /** Goes on with the blocks that an aborted forward did not write to. */
  keepAborted(): void {
    for (const chunk of this.chunks) keepAborted(chunk);
  }

  dispose(): void {
    for (const chunk of this.chunks.splice(0)) chunk.dispose();
  }
}

/** The blocks of a sequence in one group. */
interface BlockList {
  /** Positions that are in the cache, or were and are out of the window now. */
  length: number;
  /** Index, by position, of the first block in `blocks`. */
  first: number;
  readonly blocks: number[];
}

type Sequence = readonly BlockList[]; // by group

/** Rows that a forward adds to sequences of a cache: of each sequence its newest positions, one sequence after the other. */
export interface AddedRows {
  readonly sequences: readonly number[];
  /** Number of rows of each. */
  readonly counts: readonly number[];
}

/** A cache of keys and values of any number of sequences, for one model. */
export class KvCache {
  /** Bytes of the keys and values of so many positions in all layers, with what a cache is ahead of its sequences, at most. */
  static bytes(layers: readonly CachedLayer[], dtype: DType, positions: number): number {
    const position = layers.reduce((sum, layer) => sum + positionBytes(layer, dtype), 0);
    return (1 + kGrowth) * position * positions + kChunkBytes;
  }

  readonly #groups: readonly Group[];
  readonly #places: readonly Place[];
  readonly #pools: readonly BlockPool[];
  readonly #sequences = new Map<number, Sequence>();
  readonly #device: string;
  #next = 0;
  #disposed = false;

  /** @param layers the attentions of the model, in the order of the numbers that they give to {@link CachePass.attend} */
  constructor(
    layers: readonly CachedLayer[],
    { dtype, device }: { readonly dtype: DType; readonly device: string },
  ) {
    const { groups, places } = grouped(layers);
    this.#groups = groups;
    this.#places = places;
    this.#pools = groups.map((group) => new BlockPool(group, dtype));
    this.#device = device;
  }

  /** Bytes of the chunks. */
  get bytes(): number {
    return this.#pools.reduce((sum, pool) => sum + pool.blocks * pool.blockBytes, 0);
  }

  /** Bytes of the blocks that sequences use. */
  get usedBytes(): number {
    return this.#pools.reduce((sum, pool) => sum + pool.used * pool.blockBytes, 0);
  }

  /** Starts an empty sequence and returns its number. */
  create(): number {
    this.#checkAlive();
    const number = this.#next++;
    this.#sequences.set(
      number,
      this.#groups.map(() => ({ length: 0, first: 0, blocks: [] })),
    );
    return number;
  }

  /** Number of positions of a sequence. */
  lengthOf(sequence: number): number {
    const lists = this.#sequence(sequence);
    return (lists[this.#ownGroup] as BlockList).length;
  }

  /** Makes a sequence that begins as the given one does, and shares its blocks. */
  fork(sequence: number): number {
    const copy = this.#sequence(sequence).map((list, group) => {
      for (const block of list.blocks) this.#pool(group).share(block);
      return { ...list, blocks: [...list.blocks] };
    });
    const number = this.#next++;
    this.#sequences.set(number, copy);
    return number;
  }

  /**
   * Shortens a sequence to its first positions, as if the others had never been added. Rows of an encoder stay.
   * @param length from 1 to the present length
   * @returns whether it was shortened: false, with nothing changed, where a layer's window has left keys behind that the next row
   *   would see
   */
  truncate(sequence: number, length: number): boolean {
    const own = this.#sequence(sequence).flatMap((list, g) => {
      const group = this.#groups[g] as Group;
      return group.of === 'own' ? [{ list, g, window: group.window }] : [];
    });
    if (!Number.isInteger(length) || length < 1 || length > this.lengthOf(sequence)) {
      throw new ArgumentError(
        `sequence ${sequence} has ${this.lengthOf(sequence)} positions and cannot be shortened to ${length}`,
      );
    }
    const isLeft = own.some(
      ({ list, window }) => window > 0 && list.first > firstKept(length, window),
    );
    if (isLeft) return false;
    for (const { list, g } of own) {
      list.length = length;
      this.#shrink(list, g);
    }
    return true;
  }

  /**
   * Goes back to some lengths after a forward that was aborted, whose rows are half written or not at all; those before them are as they
   * were. Sequences that had no rows are to be released.
   * @param lengths the sequences that the forward added to, and their lengths before
   * @returns whether all are as before: false where a layer's window has left keys behind, so that a sequence is of no use any more
   */
  undo(lengths: Iterable<readonly [sequence: number, length: number]>): boolean {
    if (this.#disposed) return false;
    for (const pool of this.#pools) pool.keepAborted();
    let isWhole = true;
    for (const [sequence, length] of lengths) {
      if (length > 0 && !this.truncate(sequence, length)) isWhole = false;
    }
    return isWhole;
  }

  /** Ends a sequence. Its blocks are free for others, unless they are shared. After dispose() there is nothing to end. */
  release(sequence: number): void {
    if (this.#disposed) return;
    this.#sequence(sequence).forEach((list, group) => {
      for (const block of list.blocks) this.#pool(group).release(block);
    });
    this.#sequences.delete(sequence);
  }

  /**
   * Runs a forward that adds rows to sequences. If it throws, the sequences are as before. Where all of them are new, their rows
   * attend to each other without the cache.
   * @param rows `own`, those of the decoder, and `encoder`, those of the encoder where this forward adds them. `recorded`: the tables
   *   belong to nobody, and are wide enough for more positions, so that they have the same shape for many steps
   */
  extend<T>(
    { own, encoder = null, recorded = false }: ExtendOptions,
    forward: (pass: CachePass) => T,
  ): T {
    this.#checkAlive();
    const rowsOf = (group: Group): AddedRows | null => (group.of === 'own' ? own : encoder);
    const lists = (added: AddedRows, group: number): BlockList[] =>
      added.sequences.map((sequence) => this.#sequence(sequence)[group] as BlockList);
    checkDistinct(own.sequences);
    const isFresh = own.sequences.every((sequence) => this.lengthOf(sequence) === 0);
    try {
      const tables = withDevice(this.#device, () =>
        this.#groups.map((group, g) => {
          const added = rowsOf(group);
          if (added !== null) this.#grow(lists(added, g), { ...added, isFresh, group: g });
          const { chunks } = this.#pool(g);
          const make = () => new GroupTables(lists(own, g), { added, own, chunks, recorded });
          return recorded ? unscoped(make) : make();
        }),
      );
      const result = forward(
        new CachePass(this.#places, { groups: this.#groups, tables, isFresh }),
      );
      this.#groups.forEach((group, g) => {
        const added = rowsOf(group);
        if (added === null) return;
        lists(added, g).forEach((list, i) => {
          list.length += added.counts[i] as number;
          this.#leaveWindow(list, g);
        });
      });
      return result;
    } catch (error) {
      this.#groups.forEach((_, g) => {
        for (const list of lists(own, g)) this.#shrink(list, g);
      });
      throw error;
    }
  }

  /** Frees everything. Idempotent. */
  dispose(): void {
    this.#disposed = true;
    this.#sequences.clear();
    for (const pool of this.#pools) pool.dispose();
  }

  /** Adds the blocks that so many new positions of each sequence need. */
  #grow(
    lists: readonly BlockList[],
    { counts, isFresh, group }: AddedRows & { isFresh: boolean; group: number },
  ): void {
    const pool = this.#pool(group);
    const { window } = this.#groups[group] as Group;
    lists.forEach((list, i) => {
      const length = list.length + (counts[i] as number);
      // New sequences attend to their rows where they are, so that only what later rows see is kept.
      if (isFresh && window > 0) list.first = firstKept(length, window);
      const last = list.blocks.length - 1;
      if (
        last >= 0 &&
        list.length % kCacheBlock !== 0 &&
        pool.isShared(list.blocks[last] as number)
      ) {
        const copy = pool.take();
        pool.copy(list.blocks[last] as number, copy);
        pool.release(list.blocks[last] as number);
        list.blocks[last] = copy;
      }
      const missing = blocksOf(length) - list.first - list.blocks.length;
      if (missing > 0) pool.reserve(missing);
      for (let n = 0; n < missing; n++) list.blocks.push(pool.take());
    });
  }

  /** Frees the blocks that no later row sees. */
  #leaveWindow(list: BlockList, group: number): void {
    const { window } = this.#groups[group] as Group;
    if (window === 0) return;
    const first = Math.min(firstKept(list.length, window), list.first + list.blocks.length);
    for (const block of list.blocks.splice(0, Math.max(0, first - list.first))) {
      this.#pool(group).release(block);
    }
    list.first = Math.max(first, list.first);
  }

  /** Frees the blocks after the last position. */
  #shrink(list: BlockList, group: number): void {
    const kept = Math.max(0, blocksOf(list.length) - list.first);
    for (const block of list.blocks.splice(kept)) this.#pool(group).release(block);
    if (list.length === 0) list.first = 0;
  }

  get #ownGroup(): number {
    return this.#groups.findIndex(({ of }) => of === 'own');
  }

  #pool(group: number): BlockPool {
    return this.#pools[group] as BlockPool;
  }

  #sequence(number: number): Sequence {
    this.#checkAlive();
    const found = this.#sequences.get(number);
    if (found === undefined) {
      throw new ArgumentError(
        `sequence ${number} is not in the cache: it was released, or belongs to another session`,
      );
    }
    return found;
  }

  #checkAlive(): void {
    if (this.#disposed)
      throw new ArgumentError('the cache of keys and values has been disposed of');
  }
}

function checkDistinct(sequences: readonly number[]): void {
  if (new Set(sequences).size === sequences.length) return;
  throw new ArgumentError(`each sequence may be named once, got ${sequences.join(', ')}`);
}

/** Index of the first block that rows from position `length` on see. */
function firstKept(length: number, window: number): number {
  return Math.floor(Math.max(0, length - window + 1) / kCacheBlock);
}

function grouped(layers: readonly CachedLayer[]): { groups: Group[]; places: Place[] } {
  const groups: (Group & { layers: number })[] = [];
  const places = layers.map(({ of = 'own', ...layer }) => {
    const same = (group: Group): boolean =>
      group.of === of &&
      group.window === layer.window &&
      group.headDim === layer.headDim &&
      group.numKeyValueHeads === layer.numKeyValueHeads;
    const found = groups.findIndex(same);
    const group = found >= 0 ? found : groups.push({ ...layer, of, layers: 0 }) - 1;
    const own = groups[group] as Group & { layers: number };
    return { group, layer: own.layers++ };
  });
  return { groups, places };
}

/** Rows that a forward adds, and whether it is recorded. */
interface ExtendOptions {
  readonly own: AddedRows;
  readonly encoder?: AddedRows | null;
  readonly recorded?: boolean;
}

/** The tensors of {@link GroupTables}. */
type TableTensors = Pick<GroupTables, 'lengths' | 'tables' | 'firstBlocks' | 'cuRows' | 'cuAdded'>;

/** Least width of the tables of a recorded forward: 256 positions. */
const kRecordedWidth = 8;

/** The lists of blocks of one forward as tensors, which belong to the scope around it. */
class GroupTables {
  readonly chunks: readonly Tensor[];
  readonly lengths: Tensor; // (B) i32
  readonly tables: Tensor; // (B,W) i32
  readonly firstBlocks: Tensor | null; // (B) i32
  readonly cuRows: Tensor; // (B+1) i32, of the rows that are decoded
  readonly cuAdded: Tensor | null; // (B+1) i32, of the rows that are added

  constructor(lists: readonly BlockList[], { added, own, chunks, recorded }: GroupTablesOptions) {
    const blocks = lists.reduce((most, { blocks }) => Math.max(most, blocks.length), 1);
    const width = recorded ? 2 ** Math.ceil(Math.log2(Math.max(blocks, kRecordedWidth))) : blocks;
    const tables = new Int32Array(lists.length * width);
    lists.forEach(({ blocks }, b) => {
      tables.set(blocks, b * width);
    });
    this.chunks = [...chunks];
    this.lengths = tensor(
      Int32Array.from(lists, ({ length }, b) => length + (added?.counts[b] ?? 0)),
    );
    this.tables = tensor(tables, { shape: [lists.length, width] });
    this.firstBlocks =
      recorded || lists.some(({ first }) => first > 0)
        ? tensor(Int32Array.from(lists, ({ first }) => first))
        : null;
    this.cuRows = tensor(bounds(own.counts));
    this.cuAdded = added === null || added === own ? null : tensor(bounds(added.counts));
  }
}

interface GroupTablesOptions {
  readonly added: AddedRows | null;
  readonly own: AddedRows;
  readonly chunks: readonly Tensor[];
  readonly recorded: boolean;
}

/** (B+1): where the rows of each sequence begin, and how many there are. */
export function bounds(counts: readonly number[]): Int32Array {
  const all = new Int32Array(counts.length + 1);
  counts.forEach((count, b) => {
    all[b + 1] = (all[b] as number) + count;
  });
  return all;
}

/** Settings of one layer's attention. */
export type CachedAttendOptions = Omit<CachedAttentionOptions, 'causal' | 'window'>;

/** The cache during one forward: attention of its new rows to their sequences, new keys and values added. */
export class CachePass {
  constructor(
    private readonly places: readonly Place[],
    private readonly parts: {
      readonly groups: readonly Group[];
      readonly tables: readonly GroupTables[];
      readonly isFresh: boolean;
    },
  ) {}

  /** Numbers of the chunks of each list. */
  get chunkCounts(): readonly number[] {
    return this.parts.tables.map(({ chunks }) => chunks.length);
  }

  /** The tensors that differ from step to step, by names for {@link CachePass.over}. */
  tensors(): NamedTensors {
    const named = this.parts.tables.map(({ chunks, ...tensors }, g) =>
      Object.entries(tensors).map(([name, tensor]) => [`${name}.${g}`, tensor] as const),
    );
    return Object.fromEntries(named.flat());
  }

  /** The same pass with other tensors, named as those of tensors(). */
  over(named: NamedTensors): CachePass {
    const tables = this.parts.tables.map(({ chunks, ...tensors }, g) => {
      const own = Object.keys(tensors).map((name) => [name, named[`${name}.${g}`]]);
      return { chunks, ...(Object.fromEntries(own) as TableTensors) };
    });
    return new CachePass(this.places, { ...this.parts, tables });
  }

  /**
   * Adds keys and values of new rows in a layer, and computes the attention of these rows. Rows of sequences that were empty
   * attend to each other, without the cache.
   * @param layer the number of the layer in the list that the cache was made with
   * @param qkv q (N,H,D), k and v (N,Hkv,D)
   * @returns (N,H,D)
   */
  attend(
    layer: number,
    [q, k, v]: readonly [Tensor, Tensor, Tensor],
    { bias = null, ...options }: CachedAttendOptions,
  ): Tensor {
    const view = this.#view(layer);
    const { window } = this.#group(layer);
    cacheAppend(k, v, view);
    if (this.parts.isFresh && bias === null) {
      return attention(q, k, v, { ...options, window, cuSeqlens: view.cuRows });
    }
    return cachedAttention(q, view, { ...options, bias, window });
  }

  /**
   * Computes the attention of new rows to their encoder's rows in a layer.
   * @param added keys and values of the encoder's rows (M,Hkv,D), where these are added by this forward
   */
  attendToEncoder(
    layer: number,
    q: Tensor,
    { added, ...options }: CachedAttendOptions & { added: readonly [Tensor, Tensor] | null },
  ): Tensor {
    const view = this.#view(layer);
    if (added !== null) {
      const { cuAdded } = this.parts.tables[this.#place(layer).group] as GroupTables;
      cacheAppend(...added, { ...view, cuRows: cuAdded as Tensor });
    }
    return cachedAttention(q, view, { ...options, causal: false });
  }

  #place(layer: number): Place {
    return this.places[layer] as Place;
  }

  #group(layer: number): Group {
    return this.parts.groups[this.#place(layer).group] as Group;
  }

  #view(layer: number): KvCacheView {
    const place = this.#place(layer);
    const tables = this.parts.tables[place.group] as GroupTables;
    const { chunks, lengths, firstBlocks, cuRows } = tables;
    return { chunks, lengths, tables: tables.tables, firstBlocks, cuRows, layer: place.layer };
  }
}
