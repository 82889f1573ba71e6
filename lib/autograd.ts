// The tape's public side: backward from several roots, ops written in TypeScript, and segments that are recomputed
// instead of kept.
import { getDefaultDevice, withDevice } from './device.ts';
import { ArgumentError } from './errors.ts';
import { native } from './native.ts';
import { enableGrad, noGrad, scope, Tensor, unscoped } from './tensor.ts';

/**
 * backward() from several tensors at once.
 * @param grads gradient of each root; null for a single number (then 1).
 */
export function backward(
  roots: readonly Tensor[],
  grads: readonly (Tensor | null)[] = [],
  options: { retainGraph?: boolean } = {},
): void {
  native.backward(
    roots.map((root) => root.handle),
    grads.map((grad) => grad?.handle ?? null),
    options.retainGraph ?? false,
  );
}

/** An op given as two functions. */
export interface CustomOp<Saved> {
  /** Names the op in errors. */
  name: string;
  /** Computes the outputs (not recorded), and whatever backward needs of it. */
  forward: (inputs: readonly Tensor[]) => { outputs: Tensor[]; saved: Saved };
  /**
   * Gradients of the inputs from those of the outputs (null where an output was not used): one for each input, null
   * where there is none, in the input's own dtype and on its device. Runs unrecorded, in a scope of its own, with the
   * default device that was in force at the call.
   */
  backward: (grads: readonly (Tensor | null)[], saved: Saved) => readonly (Tensor | null)[];
}

/**
 * Applies an op written in TypeScript.
 * @example
 * const cube = (x: Tensor) => customOp({
 *   name: 'cube',
 *   forward: ([x]) => ({ outputs: [mul(mul(x, x), x)], saved: x }),
 *   backward: ([dy], x) => [mul(dy, mul(3, mul(x, x)))],
 * }, [x])[0];
 */
export function customOp<Saved>(op: CustomOp<Saved>, inputs: readonly Tensor[]): Tensor[] {
  const { outputs, saved } = noGrad(() => op.forward(inputs));
  const forms = inputs.map(({ dtype, shape }) => ({ dtype, shape }));
  const device = getDefaultDevice();
  const handles = native.customNode(
    op.name,
    inputs.map((input) => input.handle),
    outputs.map((output) => output.handle),
    // The native side takes ownership of the handles returned here.
    (dy: number[]) =>
      scope(() => {
        const grads = dy.map((handle) => (handle === 0 ? null : new Tensor(handle)));
        const returned: unknown = withDevice(device, () => op.backward(grads, saved));
        const gradients = checkGradients(op.name, returned, forms);
        return gradients.map((grad) => (grad === null ? 0 : native.detach(grad.handle)));
      }) as number[],
  );
  return handles.map((handle) => new Tensor(handle));
}

/** What an author's backward returned, held against the inputs it is for. */
function checkGradients(
  name: string,
  returned: unknown,
  inputs: readonly Pick<Tensor, 'dtype' | 'shape'>[],
): (Tensor | null)[] {
  if (!Array.isArray(returned) || returned.length !== inputs.length) {
    throw new ArgumentError(
      `${name}: backward must return an array with one gradient (or null) for each of the ${inputs.length} inputs`,
    );
  }
  const refuse = (i: number, wanted: string, got: string): never => {
    throw new ArgumentError(`${name}: the gradient of input ${i} must be ${wanted}, got ${got}`);
  };
  for (const [i, { dtype, shape }] of inputs.entries()) {
    const grad: unknown = returned[i];
    if (grad === null) continue;
    if (!(grad instanceof Tensor)) return refuse(i, 'a tensor or null', typeof grad);
    if (grad.dtype !== dtype) refuse(i, dtype, grad.dtype);
    if (grad.shape.join() !== shape.join()) refuse(i, `(${shape})`, `(${grad.shape})`);
  }
  return returned as (Tensor | null)[];
}

/**
 * Says whether ops made in `body` keep how to make a cheap input again (a norm of rows that are kept, an activation of
 * kept factors) instead of the input. The same gradients bit for bit, less memory.
 */
export function recomputing<T>(enabled: boolean, body: () => T): T {
  const before = native.setRecompute(enabled);
  try {
    return body();
  } finally {
    native.setRecompute(before);
  }
}

/**
 * Runs `segment` without keeping its intermediate values; backward() runs it again. Trades time for memory.
 * The segment must compute the same thing both times; gradients of tensors it closes over are collected too.
 * @param inputs the tensors it takes; their gradients are returned through the tape.
 */
export function checkpoint(
  segment: (...inputs: Tensor[]) => Tensor,
  inputs: readonly Tensor[],
): Tensor {
  const wanted = inputs.map((input) => input.requiresGrad);
  const [output] = customOp(
    {
      name: 'checkpoint',
      forward: (given) => ({
        outputs: [scope(() => segment(...given))],
        // References of our own: the caller may dispose its tensors before backward.
        saved: unscoped(() => given.map((input) => input.detach())),
      }),
      backward: ([dy], saved) => {
        if (!dy) return saved.map(() => null);
        const leaves = saved.map((input, i) => {
          const leaf = input.detach();
          if (wanted[i]) leaf.requiresGrad = true;
          return leaf;
        });
        enableGrad(() => segment(...leaves)).backward(dy);
        for (const input of saved) input.dispose();
        // A leaf's gradient is f32 whatever the leaf is; the tape goes on in the input's own type.
        return leaves.map((leaf) => leaf.grad?.to(leaf.dtype) ?? null);
      },
    },
    inputs,
  );
  return output as Tensor;
}
