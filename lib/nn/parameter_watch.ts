/** Notices when the forward of a module would read other tensors than before. */
import { Tensor } from '../tensor.ts';
import { Linear } from './linear.ts';
import type { Module } from './module.ts';

/** Watches which tensors the forward of a module reads: its parameters, and what adapters add to its linears. */
export class ParameterWatch {
  readonly #read: readonly (() => unknown)[];
  #seen: unknown[] | null = null;

  constructor(root: Module) {
    this.#read = [...root.namedModules()].flatMap(([, module]) => readersOf(module));
  }

  /** Whether a forward can be recorded: not where an adapter has another update for each. */
  get isRecordable(): boolean {
    return this.#seen !== null;
  }

  /**
   * Compares the tensors that a forward would read now with those of the call before. Their values do not count.
   * @returns whether a forward that was recorded before may be repeated
   */
  isSame(): boolean {
    const now = this.#read.map((read) => read());
    const before = this.#seen;
    const isKnown = now.every((value) => value !== undefined);
    this.#seen = isKnown ? now : null;
    return isKnown && before !== null && now.every((value, i) => value === before[i]);
  }
}

function readersOf(module: Module): (() => unknown)[] {
  const attributes = module as unknown as Record<string, unknown>;
  const names = Object.keys(module).filter((name) => attributes[name] instanceof Tensor);
  const readers: (() => unknown)[] = names.map((name) => () => attributes[name]);
  if (module instanceof Linear) {
    readers.push(() => (module.adapter === null ? null : module.adapter.updateKey));
  }
  return readers;
}
