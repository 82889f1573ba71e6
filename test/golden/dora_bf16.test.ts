// DoRA on a bf16 base: one layer against torch in f64, and PEFT's error in the same types.
import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { loadSafetensors } from '../../lib/io/index.ts';
import { Linear } from '../../lib/nn/index.ts';
import { div, rowNorm } from '../../lib/ops/index.ts';
import { noGrad, type Tensor } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const kGolden = 'golden/methods/variants/dora_bf16';

interface Facts {
  layer: { scale: number; out: number };
  table: Record<string, { grad_error_over_max: Record<'A' | 'B' | 'm', number> }>;
  band_for_a_fused_forward_with_bf16_base_and_f32_adapter: {
    rms_error_over_rms_output_at_most: number;
    effect_slope_between: [number, number];
    output_units_without_any_effect: number;
  };
}

const rms = (x: Float64Array): number => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / x.length);
const difference = (x: Float64Array, y: Float64Array): Float64Array =>
  x.map((v, i) => v - (y[i] as number));

describeShared('DoRA with a bf16 base', [kGolden], () => {
  const load = async () => {
    const { tensors } = await loadSafetensors(sharedPath(`${kGolden}/expected.safetensors`));
    const facts: Facts = JSON.parse(readFileSync(sharedPath(`${kGolden}/expected.json`), 'utf8'));
    const get = (name: string): Tensor => tensors[name] as Tensor;
    const lowRank = [{ a: get('lora_A'), b: get('lora_B'), scale: facts.layer.scale }];
    const forward = (m: Tensor): Tensor => {
      const linear = new Linear(get('W'));
      const norm = noGrad(() => rowNorm(linear.weight, lowRank));
      linear.adapter = { update: () => ({ lowRank, outputScale: div(m, norm) }) };
      return linear.forward(get('x'));
    };
    return { get, facts, forward };
  };

  it('has an output in the band of a fused forward, in which small changes of m have their effect', async () => {
    const { get, facts, forward } = await load();
    const band = facts.band_for_a_fused_forward_with_bf16_base_and_f32_adapter;
    const [y, moved] = [values(forward(get('m'))), values(forward(get('m_perturbed')))];
    const [want, wantMoved] = [values(get('y.f64')), values(get('y_perturbed.f64'))];
    expect(rms(difference(y, want)) / rms(want)).toBeLessThanOrEqual(
      band.rms_error_over_rms_output_at_most,
    );
    const [effect, expected] = [difference(moved, y), difference(wantMoved, want)];
    const dot = effect.reduce((sum, v, i) => sum + v * (expected[i] as number), 0);
    const slope = dot / expected.reduce((sum, v) => sum + v * v, 0);
    expect(slope).toBeGreaterThan(band.effect_slope_between[0]);
    expect(slope).toBeLessThan(band.effect_slope_between[1]);
    const units = new Set(
      Array.from(effect.keys(), (i) => i)
        .filter((i) => effect[i] !== 0)
        .map((i) => i % facts.layer.out),
    );
    expect(facts.layer.out - units.size).toBe(band.output_units_without_any_effect);
  });

  it('has gradients with smaller errors than bf16 throughout', async () => {
    const { get, facts, forward } = await load();
    const trained = { A: get('lora_A'), B: get('lora_B'), m: get('m') };
    for (const parameter of Object.values(trained)) parameter.requiresGrad = true;
    forward(trained.m).backward(get('dy'));
    for (const [key, parameter] of Object.entries(trained) as ['A' | 'B' | 'm', Tensor][]) {
      const want = values(get(`grad.f64.${key}`));
      const error = difference(values(parameter.grad as Tensor), want);
      const largest = (x: Float64Array) => x.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
      const limit = facts.table.bf16_all?.grad_error_over_max[key] as number;
      expect(largest(error) / largest(want), key).toBeLessThan(limit);
    }
  });
});
