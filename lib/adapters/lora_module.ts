/** One linear with a trained pair A, B: beside it the frozen first pair that W already contains, and the parameters of its variant. */
import type { FactorOfPair, LinearUpdate } from '../nn/adapter_hook.ts';
import { add, copy_, type LowRank, mul } from '../ops/index.ts';
import { noGrad, scope, type Tensor, unscoped } from '../tensor.ts';
import { AdaptedLinear, type AdaptedParts, type AdapterState } from './adapted_linear.ts';
import { type LowRankPair, PAIR_KEYS, pairIn, productOf } from './low_rank.ts';
import type { QuantizedBase } from './quantized_base.ts';

/** Those of its parameters that are left out have their first values. */
export interface LoraParts extends AdaptedParts {
  readonly frozen?: LowRankPair | null;
  readonly teacher?: LowRankPair | null;
  readonly quantized?: QuantizedBase | null;
}

/** A tensor that is derived from A and B, and their versions. */
interface Derived {
  readonly tensor: Tensor;
  readonly versions: string;
}

/** One linear with a trained pair A, B: its trained tensors, the frozen first pair if there is one, and the scale. */
export class LoraModule extends AdaptedLinear {
  override readonly frozen: LowRankPair | null;
  override readonly teacher: LowRankPair | null;
  override readonly quantized: QuantizedBase | null;
  readonly #pair: LowRankPair;
  readonly #derived = new Map<string, Derived>();

  constructor(
    { frozen = null, teacher = null, quantized = null, ...own }: LoraParts,
    state: AdapterState,
  ) {
    const parameters = new Map(own.parameters);
    super({ ...own, parameters }, state);
    this.frozen = frozen;
    this.teacher = teacher;
    this.quantized = quantized;
    this.#pair = pairIn(parameters);
    // A pair is computed since its start, unless a base of its own does not contain that.
    if (frozen !== null) this.form = quantized === null ? 'sinceStart' : 'exact';
    for (const { key, start } of this.variant.parameters) {
      if (parameters.has(key)) continue;
      const first = unscoped(() => noGrad(() => start(this)));
      first.requiresGrad = true;
      parameters.set(key, first);
    }
  }

  override get pair(): LowRankPair {
    return this.#pair;
  }

  /** The pair with its scale and its frozen start, which a base of its own does not contain. */
  override get parts(): LowRank[] {
    const { scale, form, quantized } = this;
    return [{ ...this.#pair, scale, start: quantized === null ? this.frozen : null, form }];
  }

  /** The weight of the model before tuning (out,in), f64: W, or what the codes of a base of its own and the first pair make of it. */
  override startWeight(): Tensor {
    const { quantized, frozen, scale } = this;
    if (quantized === null) return super.startWeight();
    const codes = quantized.weight.to('f32').to('f64');
    return add(codes, mul(productOf(frozen as LowRankPair), scale));
  }

  protected override get teacherUpdate() {
    const { quantized, scale } = this;
    const pair = quantized === null ? this.teacher : this.frozen;
    if (!this.state.teaches || pair === null) return null;
    const lowRank = [{ ...pair, scale, form: 'exact' as const }];
    return { key: quantized?.keys.teacher ?? pair, update: { ...this.#base, lowRank } };
  }

  protected override get studentKey(): unknown {
    // A repeated forward would not bring up to date what is derived.
    const derived = Object.keys(this.variant.derives ?? {}).map((name) => this.#upToDate(name));
    if (derived.includes(undefined)) return undefined;
    return derived[0] ?? this.quantized?.keys.student ?? this.inPhase(this.#pair);
  }

  protected override get plainUpdate(): LinearUpdate {
    return { ...this.#base, lowRank: this.parts };
  }

  /** The weight in the place of W. */
  get #base(): Pick<LinearUpdate, 'weight'> {
    return this.quantized === null ? {} : { weight: this.quantized.weight };
  }

  override derived(name: string): Tensor {
    const known = this.#upToDate(name);
    if (known !== undefined) return known.tensor;
    const make = this.variant.derives?.[name];
    if (make === undefined) return super.derived(name);
    const kept = this.#derived.get(name)?.tensor;
    const tensor = kept ?? unscoped(() => noGrad(() => make(this)));
    if (kept !== undefined) scope(() => noGrad(() => copy_(kept, make(this))));
    this.#derived.set(name, { tensor, versions: this.#versions });
    return tensor;
  }

  override renewDerived(): void {
    for (const name of Object.keys(this.variant.derives ?? {})) this.derived(name);
  }

  #upToDate(name: string): Derived | undefined {
    const kept = this.#derived.get(name);
    return kept?.versions === this.#versions ? kept : undefined;
  }

  /** The versions of A and B. */
  get #versions(): string {
    return `${this.#pair.a.version} ${this.#pair.b.version}`;
  }

  protected override factorOf(key: string): FactorOfPair | undefined {
    const { scale } = this;
    if (key === PAIR_KEYS.a) return { role: 'a', ...this.#pair, scale };
    return key === PAIR_KEYS.b ? { role: 'b', ...this.#pair, scale } : undefined;
  }

  override tensors(): Tensor[] {
    const pairs = [this.frozen, this.teacher].flatMap((pair) => (pair ? [pair.a, pair.b] : []));
    return [...super.tensors(), ...(this.quantized?.tensors ?? []), ...pairs];
  }

  override dispose(): void {
    super.dispose();
    for (const { tensor } of this.#derived.values()) tensor.dispose();
    this.#derived.clear();
  }
}
