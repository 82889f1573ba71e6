// The public part of the tape (the autograd graph): backward from several roots, ops written in TypeScript, and checkpointed segments.
import { getDefaultDevice, withDevice } from './device.ts';
import { ArgumentError, BaloraError } from './errors.ts';
import { type Handle, native, withSetting } from './native.ts';
import { checkKeys } from './options/call.ts';
import { enableGrad, keep, mapTensors, noGrad, scope, Tensor } from './tensor.ts';

/**
 * Runs backward() from several tensors at once.
 * @param grads gradient of each root; null for a single number (then 1).
 */
export function backward(
  roots: readonly Tensor[],
  grads: readonly (Tensor | null)[] = [],
  options: { retainGraph?: boolean } = {},
): void {
  checkKeys('backward', options, 'retainGraph');
  native.backward(
    roots.map((root) => root.handle),
    grads.map((grad) => grad?.handle ?? null),
    options.retainGraph ?? false,
  );
}

/** An op given as two functions, its forward and its backward. */
export interface CustomOp<Saved> {
  /** Name of the op in errors. */
  name: string;
  /**
   * Computes the outputs (not recorded), and the values that backward needs. Runs in a scope of its own: tensors made in it are
   * freed when it returns, except the outputs and the tensors in `saved` (itself, or nested in arrays and plain objects). The tape
   * owns those: they live as long as the graph, even if the tensors that forward was given or made are disposed of.
   */
  forward: (inputs: readonly Tensor[]) => { outputs: Tensor[]; saved: Saved };
  /**
   * Computes the gradients of the inputs from those of the outputs (null where an output was not used): one for each input, null
   * where there is none, in the input's own shape and dtype and on its device. `saved` is the value that forward returned, with its
   * tensors detached. Runs unrecorded (so there are no second derivatives), in a scope of its own, with the default device that was
   * in force when the op was called.
   */
  backward: (grads: readonly (Tensor | null)[], saved: Saved) => readonly (Tensor | null)[];
}

/**
 * Applies an op written in TypeScript. Check a backward of your own with {@link gradcheck}.
 * @example
 * const cube = (x: Tensor) => customOp({
 *   name: 'cube',
 *   forward: ([x]) => ({ outputs: [mul(mul(x, x), x)], saved: x }),
 *   backward: ([dy], x) => [mul(dy, mul(3, mul(x, x)))],
 * }, [x])[0];
 * @throws ArgumentError that names the op if forward returns no outputs, if backward returns no gradients, or, in backward, if a
 *   saved value has been overwritten in place; balora's errors inside the two functions name the op, too
 */
export function customOp<Saved>(op: CustomOp<Saved>, inputs: readonly Tensor[]): Tensor[] {
  const { name } = op;
  return recordCustom(
    {
      name,
      forward: (given) => withErrorPrefix(`${name}: forward`, () => op.forward(given)),
      backward: (grads, saved) =>
        withErrorPrefix(`${name}: backward`, () => op.backward(grads, saved)),
    },
    inputs,
  );
}

/** Records a custom op like customOp(), but leaves messages as they are. */
function recordCustom<Saved>(op: CustomOp<Saved>, inputs: readonly Tensor[]): Tensor[] {
  const forms = inputs.map(({ dtype, shape }) => ({ dtype, shape }));
  const device = getDefaultDevice();
  return scope(() => {
    const returned: unknown = noGrad(() => op.forward(inputs));
    const { outputs, saved } = checkOutputs<Saved>(op.name, returned);
    const held: Tensor[] = [];
    mapTensors(saved, (tensor) => {
      held.push(tensor);
      return tensor;
    });
    const handles = native.customNode(
      op.name,
      inputs.map((input) => input.handle),
      outputs.map((output) => output.handle),
      held.map((tensor) => tensor.handle),
      // Both lists of handles are this function's own; the native side takes ownership of those returned.
      (dy: Handle[], kept: Handle[]) =>
        scope(() => {
          const grads = dy.map((handle) => (handle === 0 ? null : new Tensor(handle)));
          const values = kept.map((handle) => new Tensor(handle));
          let at = 0;
          const again = mapTensors(saved, () => values[at++] as Tensor);
          const versions = grads.map((grad) => grad?.version);
          const { given } = withDevice(device, () => ({
            given: op.backward(grads, again) as unknown,
          }));
          refusePromise(op.name, given);
          const written = grads.findIndex((grad, i) => grad?.version !== versions[i]);
          if (written >= 0) {
            throw new ArgumentError(
              `${op.name}: backward wrote in place to the gradient of output ${written}, which other ops read too; write to a copy`,
            );
          }
          const gradients = checkGradients(op.name, given, forms);
          // All are made before the first leaves the scope: one that was disposed of is refused, and none of the others is lost.
          const owned = gradients.map((grad) => grad?.detach() ?? null);
          return owned.map((grad) => (grad === null ? 0 : keep(grad).handle));
        }) as number[],
    );
    return handles.map((handle) => new Tensor(handle));
  });
}

/** Refuses an async backward, whose promise is never awaited: a rejection of it must not end the process. */
function refusePromise(name: string, given: unknown): void {
  if (!(given instanceof Promise)) return;
  given.catch(() => {});
  throw new ArgumentError(`${name}: backward returned a promise; it must not be async`);
}

/** Runs a function of an op; balora's errors that it throws get a prefix that says where they come from. */
function withErrorPrefix<T>(where: string, body: () => T): T {
  try {
    return body();
  } catch (error) {
    if (error instanceof BaloraError && !error.message.startsWith(`${where}: `)) {
      error.amend({ where });
    }
    throw error;
  }
}

/** Checks that a custom op's forward returned outputs. */
function checkOutputs<Saved>(
  name: string,
  returned: unknown,
): { outputs: readonly Tensor[]; saved: Saved } {
  const { outputs, saved } = (returned ?? {}) as { outputs?: unknown; saved?: unknown };
  if (!Array.isArray(outputs) || !outputs.every((output) => output instanceof Tensor)) {
    throw new ArgumentError(
      `${name}: forward must return { outputs, saved } with an array of tensors as outputs, and not be async`,
    );
  }
  return { outputs, saved: saved as Saved };
}

/** Checks that a custom op's backward returned gradients that fit the inputs. */
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
 * Runs `body` with recomputation on or off. When it is on, ops recorded in `body` do not keep inputs that are cheap to compute again
 * in backward (the output of a norm or an activation whose own inputs are kept). The gradients are the same bit for bit, and less
 * memory is used.
 * @param what true, false, or `products`: gated activations do not keep `up` either, whose product backward repeats
 */
export function recomputing<T>(what: boolean | 'products', body: () => T): T {
  return withSetting(native.setRecompute, what !== false, () =>
    withSetting(native.setRecomputeProducts, what === 'products', body),
  );
}

/**
 * Runs `segment` without keeping its intermediate values; backward() runs it again, which takes more time and less memory. The
 * segment must compute the same both times. Leaves that it closes over, such as parameters, get gradients, too. Other tensors that
 * require a gradient must be passed as inputs: otherwise the segment's backward pass goes through their graph, and frees it.
 * @param inputs the tensors that the segment is called with; gradients flow through them to the rest of the graph
 */
export function checkpoint(
  segment: (...inputs: Tensor[]) => Tensor,
  inputs: readonly Tensor[],
): Tensor {
  const wanted = inputs.map((input) => input.requiresGrad);
  const int8 = native.int8Products(); // backward repeats the segment in this form, whatever is set then
  const [output] = recordCustom(
    {
      name: 'checkpoint',
      forward: (given) => ({ outputs: [segment(...given)], saved: given }),
      backward: ([dy], saved) => {
        if (!dy) return saved.map(() => null);
        const leaves = saved.map((input, i) => {
          const leaf = input.detach();
          if (wanted[i]) leaf.requiresGrad = true;
          return leaf;
        });
        const again = withSetting(native.setInt8Products, int8, () =>
          enableGrad(() => segment(...leaves)),
        );
        again.backward(dy);
        // The gradient of a bf16 or f16 leaf is f32, and the tape continues in the input's own type.
        return leaves.map((leaf) => leaf.grad?.to(leaf.dtype) ?? null);
      },
    },
    inputs,
  );
  return output as Tensor;
}
