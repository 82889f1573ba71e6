/**
 * @huggingface/jinja's interpreter with limits. A chat template comes with a checkpoint, so it may be a program that never ends or
 * that writes gigabytes. Every step costs 1, and more where a large value takes part, and no value may be larger than a limit. Both
 * limits grow with the conversation, and are far beyond what published templates need.
 */
import * as jinja from '@huggingface/jinja';
import { FormatError, UnsupportedError } from '../errors.ts';

/** A value of a running template. */
interface Value {
  readonly type: string;
  readonly value: unknown;
}

/** A node of a parsed template. */
interface Node {
  readonly type: string;
}
interface Call extends Node {
  readonly args: readonly Node[];
  readonly callee: Node;
}
interface Member extends Node {
  readonly object: Node;
  readonly property: Node & { readonly value: unknown };
  readonly computed: boolean;
}

interface For extends Node {
  readonly iterable: Node & { readonly lhs?: Node };
}

interface Scope {
  readonly variables: ReadonlyMap<string, Value>;
  set(name: string, value: unknown): void;
}

/** The parts of the package that are used here. Its declarations import without file extensions, which node16 resolution reads as `any`. */
interface Package {
  Environment: new () => Scope;
  Interpreter: new (
    scope: Scope,
  ) => {
    run(program: Node): Value;
    evaluate(node: Node | undefined, scope: Scope): Value | undefined;
    applyFilter(operand: Value, filter: Node, scope: Scope): Value;
    evaluateCallExpression(call: Call, scope: Scope): Value;
    evaluateFor(loop: For, scope: Scope): Value;
  };
}
const { Environment, Interpreter } = jinja as unknown as Package;

/** The methods that are overridden here. A version of the package in which one has another name would run without its limit. */
const kOverridden = ['evaluate', 'applyFilter', 'evaluateFor', 'evaluateCallExpression'] as const;
for (const name of kOverridden) {
  if (typeof Interpreter.prototype[name] === 'function') continue;
  throw new UnsupportedError(
    `the package @huggingface/jinja has no Interpreter.${name}; install the version that balora's package.json names`,
  );
}

/** Limits for an empty conversation, and their growth with each character and value of it. */
const kSteps = { least: 1e6, each: 32 };
const kSize = { least: 2 ** 20, each: 16 };
/** The characters of a text, and the values in a list or a mapping, that cost as much as a step. */
const kPerStep = { text: 64, values: 1024 };
/** The cost of an iteration of a loop and of a call, which make scopes of their own. */
const kPerScope = 16;
/** Lists in lists, and mappings in them. */
const kDepth = 128;
/** Nodes within nodes that run, those of macros that call others included. */
const kRunning = 500;

/** End of the errors about a template: what to do. */
export const kTemplateAdvice =
  'correct chat_template.jinja, or chat_template in tokenizer_config.json';

function beyond(what: string): FormatError {
  return new FormatError(`chat template: ${what}`, { advice: kTemplateAdvice });
}

/**
 * Runs a parsed template.
 * @param variables values by name, which the template reads
 * @throws FormatError if it takes too many steps or makes a value that is too large; the package's errors for others
 */
export function runTemplate(
  program: unknown,
  variables: Readonly<Record<string, unknown>>,
): string {
  const scope = new Environment();
  const given = new Map(Object.entries(variables));
  const sizes = new Sizes();
  for (const [name, value] of given) scope.set(name, value);
  let input = 0;
  for (const name of given.keys()) {
    input += sizes.of(scope.variables.get(name) as Value).size;
  }
  const interpreter = new BoundedInterpreter(scope, sizes, input);
  try {
    return interpreter.run(program as Node).value as string;
  } catch (error) {
    // V8's limits on the depth of calls and the length of a text.
    if (!(error instanceof RangeError)) throw error;
    throw beyond(`it nests too deeply, or writes too much (${error.message})`);
  }
}

/** The size of a value written out: its characters and its values, those it contains twice counted twice. */
interface Extent {
  /** Characters and values. */
  readonly size: number;
  readonly values: number;
  readonly depth: number;
}

const kOne: Extent = { size: 1, values: 1, depth: 0 };

/** Measures values, each once. Only a namespace may change later, and with it what contains it. */
class Sizes {
  readonly #known = new WeakMap<Value, Extent>();
  readonly #changing = new Set<Value>();

  of(value: Value): Extent {
    const { value: content } = value;
    if (typeof content === 'string') return { ...kOne, size: 1 + content.length };
    if (typeof content !== 'object' || content === null) return kOne;
    const known = this.#known.get(value);
    if (known !== undefined) return known;
    this.#known.set(value, kOne); // a namespace may contain itself
    const extent = this.#measure(content);
    this.#known.set(value, extent);
    if (value.type === 'NamespaceValue' || this.#containsChanging(content))
      this.#changing.add(value);
    return extent;
  }

  /** Measures namespaces again when they are asked for, after one of them was changed. */
  forgetNamespaces(): void {
    for (const value of this.#changing) this.#known.delete(value);
    this.#changing.clear();
  }

  #measure(content: object): Extent {
    let [size, values, depth] = [1, 1, 0];
    const add = (item: Value) => {
      const inner = this.of(item);
      size += inner.size;
      values += inner.values;
      depth = Math.max(depth, inner.depth);
    };
    if (content instanceof Map) {
      for (const [key, item] of content as Map<string, Value>) {
        size += key.length;
        add(item);
      }
    } else for (const item of content as Iterable<Value | undefined>) if (item) add(item);
    return { size, values, depth: depth + 1 };
  }

  #containsChanging(content: object): boolean {
    if (this.#changing.size === 0) return false;
    const items = content instanceof Map ? content.values() : (content as Iterable<Value>);
    for (const item of items) if (this.#changing.has(item)) return true;
    return false;
  }
}

/** A node that stands for a value that was computed already. */
interface Constant extends Node {
  readonly type: 'Constant';
  readonly constant: Value | undefined;
}
const constant = (value: Value | undefined): Constant => ({ type: 'Constant', constant: value });

/** The items that a loop over a value runs through. */
function itemCount({ value }: Value): number {
  if (Array.isArray(value)) return value.length;
  return value instanceof Map ? value.size : 0;
}

/** Filters and methods whose result may be many times as long as what they are given. */
const kGrowing = new Set(['indent', 'join', 'replace', 'tojson']);

class BoundedInterpreter extends Interpreter {
  readonly #sizes: Sizes;
  readonly #maxSteps: number;
  readonly #maxSize: number;
  #steps = 0;
  #running = 0;

  constructor(scope: Scope, sizes: Sizes, input: number) {
    super(scope);
    this.#sizes = sizes;
    this.#maxSteps = kSteps.least + kSteps.each * input;
    this.#maxSize = kSize.least + kSize.each * input;
    this.#declare(scope);
  }

  override evaluate(node: Node | undefined, scope: Scope): Value | undefined {
    if (node?.type === 'Constant') return (node as Constant).constant;
    this.#spend(1);
    if (++this.#running > kRunning) throw beyond(`its parts nest deeper than ${kRunning}`);
    let value: Value | undefined;
    try {
      value = super.evaluate(node, scope);
    } finally {
      this.#running--;
    }
    if (
      node?.type === 'Set' &&
      'assignee' in node &&
      (node.assignee as Node).type === 'MemberExpression'
    ) {
      this.#sizes.forgetNamespaces();
    }
    if (value !== undefined) this.#check(value);
    return value;
  }

  override applyFilter(operand: Value, filter: Node, scope: Scope): Value {
    const call = filter as Call & { value?: string };
    const named = filter.type === 'CallExpression';
    const name = String(named ? (call.callee as Node & { value?: unknown }).value : call.value);
    if (!kGrowing.has(name)) return super.applyFilter(operand, filter, scope);
    this.#spend(this.#sizes.of(operand).size / kPerStep.text);
    if (!named) {
      this.#refuseGrowth(name, operand, []);
      return super.applyFilter(operand, filter, scope);
    }
    const { args, values } = this.#computed(call.args, scope);
    this.#refuseGrowth(name, operand, values);
    return super.applyFilter(operand, { ...call, args } as Node, scope);
  }

  override evaluateFor(loop: For, scope: Scope): Value {
    const { iterable } = loop;
    // A loop with a condition has the list in its left side.
    const list = this.evaluate(iterable.lhs ?? iterable, scope);
    if (list !== undefined) this.#spend(kPerScope * itemCount(list));
    const known = constant(list);
    return super.evaluateFor(
      { ...loop, iterable: iterable.lhs === undefined ? known : { ...iterable, lhs: known } },
      scope,
    );
  }

  override evaluateCallExpression(call: Call, scope: Scope): Value {
    this.#spend(kPerScope);
    const callee = call.callee as Member;
    if (callee.type !== 'MemberExpression' || callee.property.value !== 'replace') {
      return super.evaluateCallExpression(call, scope);
    }
    const object = this.evaluate(callee.object, scope);
    const { args, values } = this.#computed(call.args, scope);
    if (object !== undefined) this.#refuseGrowth('replace', object, values);
    const known = { ...callee, object: constant(object) };
    return super.evaluateCallExpression({ ...call, args, callee: known }, scope);
  }

  /** The names that transformers gives to templates beside Jinja's own. */
  #declare(scope: Scope): void {
    for (const [name, value] of [
      ['true', true],
      ['false', false],
      ['none', null],
    ] as const) {
      scope.set(name, value);
      scope.set(`${name.charAt(0).toUpperCase()}${name.slice(1)}`, value);
    }
    scope.set('raise_exception', (message: unknown) => {
      throw new Error(String(message));
    });
    scope.set('range', (...bounds: unknown[]) => this.#range(bounds));
    scope.set('strftime_now', (format: unknown) => strftime(new Date(), String(format)));
  }

  /** Python's range. */
  #range(bounds: readonly unknown[]): number[] {
    if (!bounds.every(Number.isInteger) || bounds.length < 1 || bounds.length > 3) {
      throw new Error(`range() takes 1 to 3 whole numbers, got ${bounds.map(String).join(', ')}`);
    }
    const numbers = bounds as readonly number[];
    const [start, stop, step = 1] =
      numbers.length === 1 ? [0, numbers[0] as number] : (numbers as [number, number, number?]);
    if (step === 0) throw new Error('range() step must not be zero');
    const count = Math.max(0, Math.ceil((stop - start) / step));
    this.#refuseSize(count, 'range()');
    this.#spend(count);
    return Array.from({ length: count }, (_, i) => start + i * step);
  }

  #spend(steps: number): void {
    this.#steps += steps;
    if (this.#steps > this.#maxSteps) {
      throw beyond(`it takes more than ${this.#maxSteps} steps, as a loop without end does`);
    }
  }

  #refuseSize(size: number, what = 'it'): void {
    if (size <= this.#maxSize) return;
    throw beyond(
      `${what} makes a text or a list of more than ${this.#maxSize} characters and values`,
    );
  }

  #check(value: Value): void {
    const { value: content } = value;
    if (typeof content === 'string') {
      this.#refuseSize(content.length);
      this.#spend(content.length / kPerStep.text);
    } else if (typeof content === 'object' && content !== null) {
      const { size, depth } = this.#sizes.of(value);
      this.#refuseSize(size);
      if (depth > kDepth) throw beyond(`its lists and mappings nest deeper than ${kDepth}`);
      this.#spend(size / kPerStep.values);
    }
  }

  /** Computes the arguments of a call once: nodes that stand for them, and their values. */
  #computed(args: readonly Node[], scope: Scope): { args: Node[]; values: Value[] } {
    const values: Value[] = [];
    const compute = (node: Node): Constant => {
      const value = this.evaluate(node, scope);
      const { value: content } = value ?? {};
      const items = content instanceof Map ? content.values() : content;
      if (typeof items === 'object' && items !== null) {
        for (const item of items as Iterable<Value>) values.push(item);
      } else if (value !== undefined) values.push(value);
      return constant(value);
    };
    const nodes = args.map((node) => {
      if (node.type === 'KeywordArgumentExpression') {
        return { ...node, value: compute((node as Node & { value: Node }).value) };
      }
      if (node.type === 'SpreadExpression' || node.type === 'KeywordSpreadExpression') {
        return { ...node, argument: compute((node as Node & { argument: Node }).argument) };
      }
      return compute(node);
    });
    return { args: nodes, values };
  }

  /** Refuses a filter whose result would be too large, before it is computed. */
  #refuseGrowth(name: string, operand: Value, args: readonly Value[]): void {
    const { size, values, depth } = this.#sizes.of(operand);
    const numbers = args.map(({ value }) => value).filter((value) => typeof value === 'number');
    const texts = args.map(({ value }) => value).filter((value) => typeof value === 'string');
    const width = Math.max(0, ...numbers);
    const longest = texts.reduce((most, { length }) => Math.max(most, length), 0);
    const pieces = (separator: string) => String(operand.value).split(separator).length;
    const items = Array.isArray(operand.value) ? operand.value.length : size;
    const estimate: Record<string, () => number> = {
      indent: () => size + pieces('\n') * width,
      join: () => size + items * longest,
      replace: () => size + pieces(texts[0] ?? '') * longest,
      tojson: () => size + values * (2 * longest + width * depth),
    };
    this.#refuseSize((estimate[name] as () => number)(), name);
  }
}

const kMonths =
  'January February March April May June July August September October November December'.split(
    ' ',
  );

/** Python's strftime for the directives that templates use, in the names of the C locale. */
function strftime(date: Date, format: string): string {
  const two = (value: number) => String(value).padStart(2, '0');
  const month = kMonths[date.getMonth()] as string;
  const parts: Readonly<Record<string, string>> = {
    Y: String(date.getFullYear()),
    m: two(date.getMonth() + 1),
    d: two(date.getDate()),
    b: month.slice(0, 3),
    B: month,
    H: two(date.getHours()),
    M: two(date.getMinutes()),
    S: two(date.getSeconds()),
    '%': '%',
  };
  return format.replace(/%([YmdbBHMS%])/g, (_, letter: string) => parts[letter] as string);
}
