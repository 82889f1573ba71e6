/**
 * EVA (Paischer et al. 2024): A is the leading principal components of the module's inputs at the supervised tokens, B is 0, and the
 * ranks go to the modules whose components explain most of their inputs. As PEFT computes it, with components of a known accuracy
 * (`pcaUpdates`) in place of a randomised search of few iterations: incremental analyses over the micro-batches, until the components
 * that are used stand still.
 */
import { ArgumentError } from '../../errors.ts';
import { div, type PcaState, reshape, slice, sqrt, zeros } from '../../ops/index.ts';
import type { Tensor } from '../../tensor.ts';
import { IncrementalPca } from '../incremental_pca.ts';
import {
  type Collected,
  defineMethod,
  defineNamedStart,
  type InputCollector,
  type StartModule,
  type Statistics,
} from './method.ts';

/** The settings of the analyses and of the start, under PEFT's names. */
interface Settings {
  /** Components that are computed for each one that is used on average. */
  readonly rho: number;
  /** Cosine of a component with the one before from which on it stands still. */
  readonly tau: number;
  /** Whether each component is divided by the root of its singular value. */
  readonly whiten: boolean;
}

const kSettings: Settings = { rho: 2, tau: 0.99, whiten: false };

const settingsOf = ({ settings }: StartModule): Settings => settings as unknown as Settings;

const start = defineNamedStart('eva', {
  title: "A the principal components of the module's inputs, ranks by explained variance, B zero",
  fromWeight: false,
  calibration: {
    reads: 'inputs',
    settings: { ...kSettings },
    checkSettings: ({ rho, tau }) => {
      if (!((rho as number) >= 1)) throw new ArgumentError(`eva: rho must be >= 1, got ${rho}`);
      if (!((tau as number) > 0 && (tau as number) < 1))
        throw new ArgumentError(`eva: tau must be > 0 and < 1, got ${tau}`);
    },
    collector: (groups) => new Collector(groups),
  },
  ranks: (modules) =>
    distributed(
      modules,
      modules.map(({ statistics }) => (statistics.ratios as Tensor).dataSync() as Float32Array),
    ),
  pairs: (modules) =>
    modules.map(({ statistics, r, outFeatures }) => ({
      a: slice(whitened(statistics), 0, { stop: r }),
      b: zeros([outFeatures, r]),
    })),
});

/** The components, each divided by the root of its singular value where a calibration has kept these. */
function whitened({ vectors, singular }: Statistics): Tensor {
  if (singular === undefined) return vectors as Tensor;
  return div(vectors as Tensor, reshape(sqrt(singular), [-1, 1]));
}

export const eva = defineMethod({
  name: 'eva',
  title: 'EVA: LoRA that starts from the principal components of the activations',
  about:
    'A spans the directions in which the inputs of each module vary most on your data, at the supervised tokens: their ' +
    'principal components. The ranks are distributed over all modules by the variance that they explain; their sum stays, and a ' +
    'module may get none. Modules that share an input (q, k, v; gate, up) are analysed once. Take it where the modules of a ' +
    'model differ in how much they have to learn. [A calibration](adapters.md#a-start-from-your-data) reads the first ' +
    'micro-batches again and again until the components stand still (`settings: { rho, tau }` as in PEFT): 54 forwards of SmolLM2 ' +
    'over 8 micro-batches at a `tau` of 0.9, and many more at the default of 0.99. The file is a plain LoRA.',
  differs:
    'its components are those of a randomised search of few iterations, up to 5 % off; with `whiten` it divides the components ' +
    'of modules that share an input two and three times; ties at the last rank are broken by an unstable sort',
  source: 'arXiv 2410.07170',
  since: '0.2.0',
  adapter: { initLoraWeights: 'eva' },
  starts: [start],
});

/** The number of components that are computed for a module: r rho, rounded as Python rounds. */
function sizeFor({ r }: StartModule, { rho }: Settings): number {
  const size = r * rho;
  const near = Math.round(size);
  return near - size === 0.5 && near % 2 === 1 ? near - 1 : near;
}

/**
 * Distributes the sum of the modules' ranks over their components by explained variance. Among modules with the same input, the first
 * one gets the largest rank, since its components must stand still.
 * @param ratios of each module's components, in falling order
 */
export function distributed(
  modules: readonly Pick<StartModule, 'name' | 'r' | 'inputOf' | 'inFeatures' | 'outFeatures'>[],
  ratios: readonly ArrayLike<number>[],
): number[] {
  const budget = modules.reduce((total, { r }) => total + r, 0);
  const all = modules.flatMap(({ inFeatures, outFeatures }, module) => {
    const usable = Math.min(inFeatures, outFeatures);
    const own = Array.from(ratios[module] as ArrayLike<number>).slice(0, usable);
    return own.map((ratio) => ({ module, ratio }));
  });
  all.sort((a, b) => b.ratio - a.ratio);
  const ranks = modules.map(() => 0);
  for (const { module } of all.slice(0, budget)) ranks[module] = (ranks[module] as number) + 1;
  for (const [i, { inputOf }] of modules.entries()) {
    const first = modules.findIndex(({ name }) => name === inputOf);
    const [rank, most] = [ranks[i] as number, ranks[first] as number];
    if (most < rank) [ranks[first], ranks[i]] = [rank, most];
  }
  return ranks;
}

/** The analysis of a group's inputs, and the number of its components. */
interface Analysis {
  readonly pca: IncrementalPca;
  readonly size: number;
}

/** Elements of inputs that wait to be analysed together: enough groups for all threads. */
const kWaitingElements = 1 << 25;

/** An analysis for each group of modules, each updated until the components that are used stand still. */
class Collector implements InputCollector {
  readonly #modules: readonly StartModule[];
  readonly #settings: Settings;
  readonly #analyses: readonly Analysis[];
  /** Whether each component of a group stands still. */
  readonly #still: boolean[][];
  /** Rank of each group's first module, by the ratios known so far. */
  #ranks: number[];
  /** Groups that were given rows since the last micro-batch. */
  readonly #given = new Set<number>();
  /** Rows that are not analysed yet. */
  #waiting: { readonly pca: IncrementalPca; readonly x: Tensor }[] = [];

  constructor(private readonly groups: readonly (readonly StartModule[])[]) {
    const settings = settingsOf(groups[0]?.[0] as StartModule);
    const { rho } = settings;
    this.#settings = settings;
    this.#modules = groups.flatMap((group) =>
      group.map((module) => ({ ...module, inputOf: (group[0] as StartModule).name })),
    );
    this.#analyses = groups.map((group) => {
      const [first] = group as [StartModule];
      const size = Math.max(...group.map((module) => sizeFor(module, settings)));
      if (size > first.inFeatures) {
        throw new ArgumentError(
          `${first.name}: initLoraWeights eva computes ${size} components for r=${first.r}, and there are only ${first.inFeatures} ` +
            `inputs; set r, or rankPattern for it, to ${Math.floor(first.inFeatures / rho)} at most`,
        );
      }
      return { pca: new IncrementalPca({ size, seed: first.seed('svd') }), size };
    });
    this.#still = this.#analyses.map(({ size }) => new Array<boolean>(size).fill(false));
    this.#ranks = this.#analyses.map(({ size }) => size);
  }

  wants(group: number): boolean {
    const rank = this.#ranks[group] as number;
    return !(this.#still[group] as boolean[]).slice(0, rank).every(Boolean);
  }

  add(group: number, x: Tensor): void {
    const { pca, size } = this.#analyses[group] as Analysis;
    if ((x.shape[0] as number) < size) {
      x.dispose();
      return;
    }
    this.#waiting.push({ pca, x });
    this.#given.add(group);
    const elements = this.#waiting.reduce((sum, one) => sum + one.x.size, 0);
    if (elements >= kWaitingElements) this.#analyse();
  }

  /** Analyses the rows that wait. */
  #analyse(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    try {
      IncrementalPca.add(waiting);
    } finally {
      for (const { x } of waiting) x.dispose();
    }
  }

  async endBatch(): Promise<boolean> {
    this.#analyse();
    const given = [...this.#given];
    this.#given.clear();
    await Promise.all(
      given.flatMap((group) => {
        const { cosines, ratios } = this.#stateOf(group);
        return [cosines.data(), ratios.data()];
      }),
    );
    for (const group of given) this.#look(group);
    if (given.length > 0) this.#distribute();
    return given.length > 0;
  }

  /** The analysis so far of a group that was given rows. */
  #stateOf(group: number): PcaState {
    return (this.#analyses[group] as Analysis).pca.known as PcaState;
  }

  /** Sees which components of a group stand still. */
  #look(group: number): void {
    const { cosines } = this.#stateOf(group);
    const { tau } = this.#settings;
    this.#still[group] = Array.from(cosines.dataSync() as Float32Array, (cosine) => cosine >= tau);
  }

  /** Distributes the ranks by the ratios that are known, once all are. */
  #distribute(): void {
    const known = this.#analyses.map(({ pca }) => pca.known);
    if (known.some((one) => one === null)) return;
    const ratios = known.map((one) => one?.ratios.dataSync() as Float32Array);
    const each = this.groups.flatMap((group, i) => group.map(() => ratios[i] as Float32Array));
    const ranks = distributed(this.#modules, each);
    this.#ranks = this.groups.map(
      ([first]) => ranks[this.#modules.findIndex(({ name }) => name === first?.name)] as number,
    );
  }

  reached(): Collected {
    const tensors: Record<string, Tensor> = {};
    const counts: Record<string, number> = {};
    for (const [i, { pca }] of this.#analyses.entries()) {
      for (const [name, value] of Object.entries(pca.tensors)) tensors[`${i}|${name}`] = value;
      counts[`rows ${i}`] = pca.count;
    }
    return { tensors, counts };
  }

  restore({ tensors, counts }: Collected): void {
    for (const [i, { pca }] of this.#analyses.entries()) {
      const prefix = `${i}|`;
      const own = Object.entries(tensors).filter(([key]) => key.startsWith(prefix));
      if (own.length === 0) continue;
      const named = own.map(([key, value]) => [key.slice(prefix.length), value] as const);
      pca.restore(Object.fromEntries(named), counts[`rows ${i}`] as number);
      this.#look(i);
    }
    this.#distribute();
  }

  results(): readonly Statistics[] {
    return this.#analyses.map(({ pca, size }) => {
      const { vectors, ratios, singular } = pca.known as PcaState;
      const components = slice(vectors, 0, { stop: size });
      return { vectors: components, ratios, ...(this.#settings.whiten && { singular }) };
    });
  }

  dispose(): void {
    for (const { x } of this.#waiting) x.dispose();
    this.#waiting = [];
    for (const { pca } of this.#analyses) pca.dispose();
  }
}
