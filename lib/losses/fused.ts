// The fused form of the losses, on M selected rows: logits are computed a chunk at a time, so that no (M,V) tensor is ever made. The
// SVD regularizer uses the Gram matrix G = W^T W of the head W where that is allowed, otherwise tiles of the logits.
import { gram, gramAdd, gramSpectrum } from '../ops/linalg.ts';
import { headRows, svdRatio, svdRatioGram } from '../ops/losses.ts';
import { checkKeys } from '../options/call.ts';
import { DTYPE_BYTES, noGrad, type Tensor, unscoped } from '../tensor.ts';

/** The output head as the losses use it. */
export interface Head {
  /** (V, C). */
  weight: Tensor;
  /** Logits are softcap * tanh(h W^T / softcap). Default 0: not capped. */
  softcap?: number;
  /** (V, C) of the teacher, where it has a head of its own. */
  teacherWeight?: Tensor | null;
}

/**
 * Whether the SVD term may use G = W^T W: the logits must be linear in the hidden states, and the head must not be trained
 * (its G would change with every step, and its gradient is wanted).
 */
export function gramFormAllowed(head: Head): boolean {
  return !head.weight.requiresGrad && !((head.softcap ?? 0) > 0);
}

/** Bytes of the tiles of logits where the Gram form is not allowed, unless a limit is given. */
const kSvdTileBytes = 16 * 2 ** 20;
/** Copies of a tile, those of its gradient included, over what a tile is counted as: logits in f32 and in f64. */
const kTileCopies = 2.5;
/** f64 matrices (C,C) that exist at one time while {@link gramSpectrum} runs, beside its operands. */
const kSpectrumMatrices = 5;
const kF64Bytes = 8;

/** The Gram matrix G = W^T W of a frozen head, (C, C) f64, made at the first use and kept until it is disposed of. */
export class HeadGram {
  #gram: Tensor | null = null;

  constructor(private readonly head: Tensor) {}

  /** W^T W (C,C) f64, made at the first call. */
  get(): Tensor {
    this.#gram ??= unscoped(() => noGrad(() => gram(this.head)));
    return this.#gram;
  }

  /** Bytes that it takes from its first use on, and bytes that making it takes once, those of a head's decoded values. */
  static bytes({ shape, dtype, encoding }: Tensor): { kept: number; making: number } {
    const [vocabulary, channels] = shape as [number, number];
    const making = encoding === null ? 0 : DTYPE_BYTES[dtype] * vocabulary * channels;
    return { kept: kF64Bytes * channels ** 2, making };
  }

  /** Frees its tensors. */
  dispose(): void {
    this.#gram?.dispose();
    this.#gram = null;
  }
}

/** Options of {@link fusedSvdLoss}. */
export interface SvdTermOptions {
  /** Number of singular values that are summed. Default 10. */
  k?: number;
  /** The denominator. Default `frobenius`. */
  norm?: 'frobenius' | 'nuclear';
  /** Limit, in bytes, on the tiles of logits where the Gram form is not allowed; 0 (the default) for 16 MiB. */
  chunkBytes?: number;
}

/**
 * L_SVDR = -(sum of the k largest singular values of the rows' logits) / norm.
 * @param hidden (M, C)
 * @returns () f64
 */
export function fusedSvdLoss(
  hidden: Tensor,
  head: Head,
  headGram: HeadGram | null,
  options: SvdTermOptions = {},
): Tensor {
  checkKeys('fusedSvdLoss', options, 'k norm chunkBytes');
  const { k = 10, norm = 'frobenius', chunkBytes = 0 } = options;
  if (headGram && gramFormAllowed(head)) return svdRatioGram(hidden, headGram.get(), { k, norm });
  return svdRatio(hidden, head.weight, { k, norm, softcap: head.softcap ?? 0, chunkBytes });
}

/** f64 matrices of the order of a Gram matrix that exist at one time while all of its eigenvectors are computed, or few of them. */
const kEigenMatrices = { all: 6, few: 1.5 };
/**
 * Columns of a block of the iteration for few eigenvectors, from the number that is wanted, and blocks without which all are computed: as
 * native/kernels/cpu/linalg/krylov.h and head/svd_ratio.cc have them.
 */
const krylovBlock = (k: number): number => 8 * Math.ceil((k + 6) / 8);
const kLeastBlocks = 8;

/**
 * Bytes that {@link fusedSvdLoss} takes for M rows beside the head's Gram matrix. With it: H and H G in f64 where all pairs are wanted or M
 * is small, else H in f64, and in f32 the rest that the pairs leave of it, that times G, and G. By tiles: the sum of dH, and a tile with its
 * copies in f64.
 */
export function svdLossBytes(
  rows: number,
  head: Head,
  { k = 10, norm = 'frobenius', chunkBytes = 0 }: SvdTermOptions = {},
): number {
  const [vocabulary, channels] = head.weight.shape as [number, number];
  const isGram = gramFormAllowed(head);
  const order = Math.min(rows, isGram ? channels : vocabulary);
  const isDense = norm === 'nuclear' || kLeastBlocks * krylovBlock(k) > order;
  const pairs = kEigenMatrices[isDense ? 'all' : 'few'] * kF64Bytes * order ** 2;
  const states = rows * channels;
  if (isGram) {
    if (isDense) return 3 * kF64Bytes * states + pairs;
    return (kF64Bytes + 2 * DTYPE_BYTES.f32) * states + DTYPE_BYTES.f32 * channels ** 2;
  }
  const logitBytes = DTYPE_BYTES.f32 + kF64Bytes;
  const tile = Math.min(Math.max(chunkBytes, kSvdTileBytes), logitBytes * rows * vocabulary);
  return (DTYPE_BYTES.f32 + kF64Bytes) * states + pairs + kTileCopies * tile;
}

/**
 * Computes for each row: cross-entropy, KL(teacher || student) at T = 1 and entropy over the whole vocabulary, in nats.
 * @param hidden (M, C) of the tuned model
 * @param teacher (M, C) of the base, or null (the KL column is 0)
 * @param targets (M) i32, -100 for a row without cross-entropy
 * @param head the head, with a limit in bytes on the logits that are computed at one time (default 0: that of the device)
 * @returns (M, 3) f64: cross-entropy, KL, entropy
 */
export function evaluationRows(
  hidden: Tensor,
  teacher: Tensor | null,
  targets: Tensor | null,
  head: Head & { readonly chunkBytes?: number },
): Tensor {
  return noGrad(() =>
    headRows({
      chunkBytes: head.chunkBytes ?? 0,
      hidden,
      teacher,
      head: head.weight,
      teacherHead: teacher ? (head.teacherWeight ?? null) : null,
      targets,
      softcap: head.softcap ?? 0,
    }),
  );
}

/** The effective rank exp(entropy of sigma / sum(sigma)) of singular values sigma; 0 for a zero matrix. */
export function effectiveRankOf(singularValues: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < singularValues.length; i++) sum += singularValues[i] as number;
  if (!(sum > 0)) return 0;
  let entropy = 0;
  for (let i = 0; i < singularValues.length; i++) {
    const share = (singularValues[i] as number) / sum;
    if (share > 0) entropy -= share * Math.log(share);
  }
  return Math.exp(entropy);
}

/**
 * Effective rank of the logits of any number of rows, of which only H^T H (C, C) is kept. Soft-capping is ignored: the rank is
 * that of the linear logits.
 */
export class EffectiveRank {
  #sum: Tensor | null = null;

  /** Bytes of the matrices of an evaluation at its end: H^T H, the head's Gram matrix, and those that the spectrum is made of. */
  static bytes(head: Tensor): number {
    const { kept, making } = HeadGram.bytes(head);
    return kept + Math.max(making, (1 + kSpectrumMatrices) * kept);
  }

  /**
   * Adds rows.
   * @param hidden (M, C), any M
   */
  add(hidden: Tensor): void {
    noGrad(() => {
      if (this.#sum) gramAdd(this.#sum, hidden);
      else this.#sum = unscoped(() => gram(hidden));
    });
  }

  /**
   * Computes exp(entropy of sigma / sum(sigma)) for the singular values sigma of all rows' logits.
   * @param headGram of the head that makes the logits
   */
  async value(headGram: HeadGram): Promise<number> {
    if (!this.#sum) return 0;
    const spectrum = unscoped(() => gramSpectrum(this.#sum as Tensor, headGram.get()));
    try {
      return effectiveRankOf((await spectrum.data()) as Float64Array);
    } finally {
      spectrum.dispose();
    }
  }

  /** Frees its tensors. */
  dispose(): void {
    this.#sum?.dispose();
    this.#sum = null;
  }
}
