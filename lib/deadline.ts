/**
 * Stops synchronous work that may never end: a regular expression that a file brings may backtrack for longer than the process
 * lives. V8 looks for a request to stop in every backtracking step and in every loop, and node:vm makes that request from a thread
 * of its own.
 */
import { type Context, createContext, Script } from 'node:vm';

/** Longest regular expression of a file or an option that is read; published ones have up to 2000 characters. */
const kMaxPattern = 20_000;
/** Groups within groups. V8 ends the process where it compiles some thousands of them. */
const kMaxGroups = 100;

/** The reason why a regular expression that a file or an option brings must not be compiled, behind "it"; null: it may be. */
export function patternProblem(source: string): string | null {
  if (source.length > kMaxPattern) {
    return `has ${source.length} characters, more than the ${kMaxPattern} that are read`;
  }
  let [depth, inClass] = [0, false];
  for (let i = 0; i < source.length; i++) {
    const char = source[i];
    if (char === '\\') i++;
    else if (inClass) inClass = char !== ']';
    else if (char === '[') inClass = true;
    else if (char === ')') depth--;
    else if (char === '(' && ++depth > kMaxGroups) {
      return `has groups within groups, more than the ${kMaxGroups} that are read`;
    }
  }
  return null;
}

/** Runs work with a limit on its time; calls within the work have that limit, too. */
class Supervisor {
  readonly #script = new Script('work()');
  readonly #sandbox: { work: (() => unknown) | null } = { work: null };
  readonly #context: Context = createContext(this.#sandbox);

  run<T>(limitMs: number, work: () => T, late: () => Error): T {
    if (this.#sandbox.work !== null) return work();
    this.#sandbox.work = work;
    try {
      const options = { timeout: limitMs, displayErrors: false };
      return this.#script.runInContext(this.#context, options) as T;
    } catch (error) {
      if ((error as NodeJS.ErrnoException | null)?.code !== 'ERR_SCRIPT_EXECUTION_TIMEOUT')
        throw error;
      throw late();
    } finally {
      this.#sandbox.work = null;
    }
  }
}

/** Made at the first use, since a context takes a millisecond. */
let supervisor: Supervisor | undefined;

/**
 * Runs synchronous work, and stops it in the middle when it takes longer than `limitMs`. What the work changes must be of no use
 * afterwards, since it may be half done. A call takes about a tenth of a millisecond.
 * @param late makes the error of work that was stopped
 */
export function withDeadline<T>(limitMs: number, work: () => T, late: () => Error): T {
  supervisor ??= new Supervisor();
  return supervisor.run(limitMs, work, late);
}
