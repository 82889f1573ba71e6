import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { ArgumentError, FormatError } from '../../lib/errors.ts';
import { clipNorm, type NormType } from '../../lib/optim/clip.ts';
import {
  Adafactor,
  AdamW,
  type Optimizer,
  type ParameterGroup,
  Sgd,
} from '../../lib/optim/index.ts';
import { resetOpTimes, synchronize } from '../../lib/runtime.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { fixturePath } from '../support/fixtures.ts';
import { type GoldenArray, goldenArray, goldenArrays } from '../support/golden.ts';
import { callsOf } from '../support/run_numbers.ts';

interface Case {
  name: string;
  params: {
    optimizer: string;
    /** Learning rate; null for Adafactor's relative step. */
    lr?: number | null;
    betas?: [number, number];
    eps?: number | [number, number];
    weight_decay?: number;
    momentum?: number;
    dampening?: number;
    nesterov?: boolean;
    clip_threshold?: number;
    decay_rate?: number;
    beta1?: number | null;
    relative_step?: boolean;
    scale_parameter?: boolean;
    warmup_init?: boolean;
    groups?: { params: string[]; lr: number; weight_decay: number }[];
  };
  steps: number;
  lrs?: number[];
}

interface Golden {
  shapes: Record<string, number[]>;
  cases: Case[];
  clip: {
    name: string;
    grads: string;
    max_norm: number;
    norm_type: NormType;
    total_norm: number;
    coefficient: number;
  }[];
}

const kNames = ['w', 'b', 'x'];

describe('optimisers of torch 2.15 and transformers 5.24', () => {
  const golden = JSON.parse(readFileSync(fixturePath('optim/optim.json'), 'utf8')) as Golden;
  const arrays = goldenArrays(fixturePath('optim/optim.safetensors'));

  const start = (dtype: 'f32' | 'f64'): Map<string, Tensor> =>
    new Map(
      kNames.map((name) => {
        const { data, shape } = goldenArray(arrays, `init/${name}`);
        return [name, tensor(data, { shape, dtype, requiresGrad: true })];
      }),
    );

  const gradOf = (name: string, step: number, dtype: 'f32' | 'f64'): Tensor => {
    const { data, shape } = goldenArray(arrays, `grads/${name}`);
    const size = data.length / (shape[0] as number);
    const values = (data as Float32Array).slice(step * size, (step + 1) * size);
    return tensor(values, { shape: shape.slice(1), dtype });
  };

  const build = ({ params }: Case, tensors: Map<string, Tensor>): Optimizer => {
    const named = (names: readonly string[]) =>
      names.map((name) => ({ name, tensor: tensors.get(name) as Tensor }));
    const groups: ParameterGroup[] = params.groups
      ? params.groups.map((group) => ({
          parameters: named(group.params),
          weightDecay: group.weight_decay,
          learningRateScale: group.lr,
        }))
      : [{ parameters: named(kNames) }];
    const weightDecay = params.weight_decay ?? 0;
    if (params.optimizer === 'sgd') {
      const { momentum = 0, dampening = 0, nesterov = false } = params;
      return new Sgd(groups, { momentum, dampening, nesterov, weightDecay });
    }
    if (params.optimizer === 'adafactor') {
      return new Adafactor(groups, {
        eps: params.eps as [number, number],
        clipThreshold: params.clip_threshold as number,
        decayRate: params.decay_rate as number,
        beta1: params.beta1 ?? null,
        scaleParameter: params.scale_parameter as boolean,
        relativeStep: params.relative_step as boolean,
        warmupInit: params.warmup_init as boolean,
        weightDecay,
      });
    }
    const [beta1, beta2] = params.betas as [number, number];
    return new AdamW(groups, { beta1, beta2, eps: params.eps as number, weightDecay });
  };

  const rateOf = ({ params, lrs }: Case, step: number): number =>
    lrs ? (lrs[step] as number) : params.groups ? 1 : (params.lr ?? 1);

  // The reference ran Adafactor in f32.
  const tolerance = ({ params }: Case, dtype: 'f32' | 'f64'): number =>
    params.optimizer === 'adafactor' ? 1e-5 : dtype === 'f64' ? 1e-12 : 2e-6;

  for (const dtype of ['f64', 'f32'] as const) {
    it.each(golden.cases.map((one) => [one.name, one] as const))(`%s in ${dtype}`, (_, one) => {
      const tensors = start(dtype);
      let optimizer = build(one, tensors);
      for (let step = 0; step < one.steps; step++) {
        for (const [name, parameter] of tensors) parameter.grad = gradOf(name, step, dtype);
        optimizer.step({ learningRate: rateOf(one, step) });
        optimizer.zeroGrad();
        if (step === 11) {
          const again = build(one, tensors);
          again.restore(optimizer.state(), 'checkpoint');
          optimizer = again;
        }
        for (const [name, parameter] of tensors) {
          const expected = goldenArray(arrays, `${one.name}/${name}`);
          compare(parameter, expected, step, tolerance(one, dtype));
        }
      }
    });
  }

  // clip_zero and clip_nan have no arrays; see below.
  const clips = golden.clip.filter(({ grads }) =>
    [...arrays.keys()].some((key) => key.startsWith(`${grads}/`)),
  );
  it.each(clips.map((one) => [one.name, one] as const))('%s', async (_, one) => {
    const parameters = [...arrays].flatMap(([name, { data, shape }]) => {
      if (!name.startsWith(`${one.grads}/`)) return [];
      const parameter = tensor(new Float32Array(data.length), { shape, requiresGrad: true });
      parameter.grad = tensor(data as Float32Array, { shape, dtype: 'f32' });
      return [parameter];
    });
    expect(parameters.length).toBeGreaterThan(0);
    const { norm, coefficient } = await clipNorm(parameters, {
      maxNorm: one.max_norm,
      normType: one.norm_type,
    });
    expect(Math.abs(norm - one.total_norm)).toBeLessThanOrEqual(1e-6 * one.total_norm);
    const factor = (await coefficient?.item()) as number;
    expect(Math.abs(factor - one.coefficient)).toBeLessThanOrEqual(1e-6);
  });
});

function compare(parameter: Tensor, expected: GoldenArray, step: number, tolerance: number): void {
  const size = parameter.size;
  const want = expected.data.slice(step * size, (step + 1) * size) as Float64Array;
  const got = parameter.dataSync() as Float32Array;
  const scale = want.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
  want.forEach((value, i) => {
    const error = Math.abs((got[i] as number) - value);
    expect(error, `step ${step}, element ${i}: ${got[i]}, expected ${value}`).toBeLessThanOrEqual(
      tolerance * scale,
    );
  });
}

describe('optimisers', () => {
  const parameter = (name = 'p', dtype: 'f32' | 'bf16' = 'f32') => ({
    name,
    tensor: tensor([1, 2], { dtype, requiresGrad: true }),
  });

  it('do not change a parameter without a gradient', () => {
    const one = parameter();
    const other = parameter('other');
    const optimizer = new AdamW([{ parameters: [one, other] }], { weightDecay: 0.5 });
    one.tensor.grad = tensor([1, 1]);
    optimizer.step({ learningRate: 0.1 });
    expect(Array.from(other.tensor.dataSync() as Float32Array)).toEqual([1, 2]);
    expect(Array.from(one.tensor.dataSync() as Float32Array)).not.toEqual([1, 2]);
    expect(optimizer.state().steps).toEqual({ p: 1, other: 0 });
  });

  it('AdamW gives each of several groups its own rate, decay and step count, in one op', async () => {
    const all = ['a', 'b', 'c', 'd'].map((name) => parameter(name));
    const optimizer = new AdamW([
      { parameters: all.slice(0, 2) },
      { parameters: all.slice(2), weightDecay: 0.5, learningRateScale: 16 },
    ]);
    const alone = all.map(({ name }) => parameter(name));
    const singles = alone.map((one, i) => {
      const settings = i < 2 ? {} : { weightDecay: 0.5, learningRateScale: 16 };
      return new AdamW([{ parameters: [one], ...settings }]);
    });
    for (let step = 0; step < 3; step++) {
      for (const list of [all, alone]) {
        list.forEach(({ tensor: p }, i) => {
          p.grad = i === 1 && step === 1 ? null : tensor([i + 1, step - 1]); // b misses a step
        });
      }
      await synchronize();
      resetOpTimes();
      optimizer.step({ learningRate: 0.1 });
      await synchronize();
      expect(callsOf('adamw_step')).toBe(1);
      for (const single of singles) single.step({ learningRate: 0.1 });
    }
    expect(optimizer.state().steps).toEqual({ a: 3, b: 2, c: 3, d: 3 });
    for (const [i, { tensor: p }] of all.entries()) {
      expect(p.dataSync()).toEqual((alone[i] as (typeof all)[number]).tensor.dataSync());
    }
    for (const { tensor: p } of all) p.grad = null;
    optimizer.step({ learningRate: 0.1 }); // without gradients no op is launched
    expect(optimizer.state().steps.a).toBe(3);
  });

  it('scale the gradient by the clipping coefficient', () => {
    const [clipped, plain] = [parameter(), parameter()];
    for (const [one, grad, coefficient] of [
      [clipped, [3, 4], tensor(0.5, { dtype: 'f64' })],
      [plain, [1.5, 2], null],
    ] as const) {
      one.tensor.grad = tensor(grad);
      new Sgd([{ parameters: [one] }]).step({ learningRate: 0.1, coefficient });
    }
    expect(clipped.tensor.dataSync()).toEqual(plain.tensor.dataSync());
  });

  it('refuse invalid options and parameters', () => {
    expect(() => new AdamW([{ parameters: [] }])).toThrow(/no parameter/);
    expect(() => new AdamW([{ parameters: [parameter(), parameter()] }])).toThrow(/given twice/);
    expect(() => new AdamW([{ parameters: [parameter('p', 'bf16')] }])).toThrow(ArgumentError);
    expect(() => new Sgd([{ parameters: [parameter()] }], { nesterov: true })).toThrow(/nesterov/);
    const optimizer = new AdamW([{ parameters: [parameter()] }]);
    expect(() => optimizer.restore({ tensors: {}, steps: {} }, 'x')).toThrow(FormatError);
  });

  it('have a norm that is not finite with such a gradient', async () => {
    const one = parameter();
    one.tensor.grad = tensor([1, Number.NaN]);
    const { norm, coefficient } = await clipNorm([one.tensor], { maxNorm: 1 });
    expect(norm).toBeNaN();
    expect(await coefficient?.item()).toBeNaN();
  });

  it('have the norm 0 without gradients', async () => {
    const { norm, coefficient } = await clipNorm([parameter().tensor], { maxNorm: 1 });
    expect(norm).toBe(0);
    expect(await coefficient?.item()).toBe(1);
    expect((await clipNorm([], { maxNorm: 0 })).coefficient).toBeNull();
  });
});
