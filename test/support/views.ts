// Views for tests (permuted, stepped through, expanded, parts of wider tensors), and calls of ops whose operands become views.
import { native } from '../../lib/native.ts';
import { concat, contiguous, expand, permute, reshape, slice } from '../../lib/ops/index.ts';
import { scope, Tensor, tensor } from '../../lib/tensor.ts';
import type { kFloatTypes } from './compare.ts';
import { kTestDevice } from './device.ts';
import { testRandom } from './gradcheck.ts';

type Fields = [name: string, type: string][];
interface Signatures {
  parametersOf(signature: { typescript: string }): Fields;
  fieldsOf(type: string): Fields;
}
// The module has no types.
const path = './signatures.mjs';
const { parametersOf, fieldsOf } = (await import(path)) as Signatures;

export type FloatType = (typeof kFloatTypes)[number];
export type Form = (x: Tensor) => Tensor;

/** Views with the values of x. */
export const kSameValues: Record<string, Form> = {
  whole: (x) => x,
  turned: (x) => {
    const order = x.shape.map((_, i) => x.shape.length - 1 - i);
    return permute(contiguous(permute(x, order)), order);
  },
  'every second row': (x) => everySecond(x, 0),
  'every second column': (x) => everySecond(x, -1),
  'columns of a wider one': (x) => {
    const width = x.shape.at(-1) as number;
    return slice(concat([x, x], -1), -1, { start: 0, stop: width });
  },
};

/** Views with the values of x, or with those of its first row or column again and again. */
export const kForms: Record<string, Form> = {
  ...kSameValues,
  'its first row repeated': (x) => expand(slice(x, 0, { stop: 1 }), x.shape),
  'its first column repeated': (x) => expand(slice(x, -1, { stop: 1 }), x.shape),
};

function everySecond(x: Tensor, axis: 0 | -1): Tensor {
  const at = axis === 0 ? 0 : x.shape.length - 1;
  const apart = [...x.shape.slice(0, at + 1), 1, ...x.shape.slice(at + 1)];
  const doubled = x.shape.map((extent, i) => (i === at ? 2 * extent : extent));
  const twice = concat([reshape(x, apart), reshape(x, apart)], at + 1);
  return slice(reshape(twice, doubled), axis, { step: 2 });
}

/** -1, 0 or 1 at random: their sums of products are exact in every type. */
export function signs(
  shape: number[],
  dtype: FloatType,
  seed: number,
  requiresGrad = false,
): Tensor {
  const random = testRandom(seed);
  const size = shape.reduce((product, extent) => product * extent, 1);
  const data = Float64Array.from({ length: size }, () => Math.round(random() * 1.4));
  return tensor(data, { shape, dtype, requiresGrad });
}

/** Calls body for all pairs of forms; on a device that is not the CPU, where an emulator takes its time, for pairs of the same. */
export function eachPair(body: (a: Form, b: Form, names: string) => void): void {
  for (const [name, a] of Object.entries(kForms)) {
    for (const [other, b] of Object.entries(kForms)) {
      if (kTestDevice === 'cpu' || a === b) scope(() => body(a, b, `${name}, ${other}`));
    }
  }
}

/**
 * Runs `body`; each tensor that it gives to a function of the addon goes through `change` first.
 * @param change gets the operand and its place among those of the call
 * @returns what `body` returns, and how many operands were changed
 */
export function withOperands<T>(
  name: string,
  change: (x: Tensor, place: number) => Tensor,
  body: () => T,
): { result: T; changed: number } {
  const functions = native as unknown as Record<string, (...args: unknown[]) => unknown>;
  const original = functions[name] as (...args: unknown[]) => unknown;
  const signature = native.signatures.find((row) => row.name === name);
  const types = signature ? parametersOf(signature).map(([, type]) => type) : [];
  let changed = 0;
  functions[name] = (...args) => {
    // The views are made by ops, too.
    functions[name] = original;
    let place = 0;
    /** The value with each of its tensors changed; `type` says which numbers are tensors. */
    const viewed = (value: unknown, type: string): unknown => {
      if (!/\bHandle\b/.test(type) || value === null) return value;
      if (Array.isArray(value)) {
        const element = type.replace(/^readonly \((.*)\)\[\]$/s, '$1');
        return value.map((each) => viewed(each, element));
      }
      if (typeof value === 'object') {
        const types = new Map(fieldsOf(type));
        const fields = Object.entries(value);
        return Object.fromEntries(
          fields.map(([key, of]) => [key, viewed(of, types.get(key) ?? '')]),
        );
      }
      if (typeof value !== 'number') return value;
      const axes = native.shapeOf(value).map((_, axis) => axis);
      if (axes.length === 0) return value;
      ++changed;
      // A tensor of its own: the handle belongs to another one.
      return change(new Tensor(native.permute(value, axes)), place++).handle;
    };
    try {
      return original(...args.map((value, i) => viewed(value, types[i] ?? '')));
    } finally {
      functions[name] = replaced;
    }
  };
  const replaced = functions[name];
  try {
    return { result: body(), changed };
  } finally {
    functions[name] = original;
  }
}
