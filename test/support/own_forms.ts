/** Settings of every method with tensors of its own, for tables of tests. Ranks are even, and divide the sizes of the tiny models. */
import type { LoraConfigInput } from '../../lib/adapters/config.ts';
import type { MethodPreset } from '../../lib/adapters/methods/method.ts';
import { METHOD_NAMES, METHODS } from '../../lib/adapters/methods/registry.ts';

const kOthers: readonly [string, LoraConfigInput][] = [
  ['vera of a high rank', { peftType: 'VERA', r: 24, dInitial: 0.5 }],
  ['lora_xs with alpha', { peftType: 'LORA_XS', r: 4, loraAlpha: 12 }],
  ['miss of a rank that does not divide', { peftType: 'MISS', r: 3 }],
  ['miss bat', { peftType: 'MISS', r: 4, missForm: 'bat' }],
  ['miss mini', { peftType: 'MISS', r: 4, missForm: 'mini', miniR: 2 }],
  ['neat of depth 2', { peftType: 'PEANUT', r: 4, peanutDepth: 2, peanutActFn: 'silu' }],
  ['randlora sparse', { peftType: 'RANDLORA', r: 4, loraAlpha: 8, randloraSparse: true }],
  ['lora_dash at once', { peftType: 'LORA_DASH', r: 4, dashWarmup: 0, dashIndex: 2 }],
  ['randlora very sparse', { peftType: 'RANDLORA', r: 3, randloraVerySparse: true }],
];

/** Further settings of methods whose ranks or counts have names of their own. */
const kSmall: Readonly<Record<string, LoraConfigInput>> = {
  adalora: { r: 8, initR: 4, targetR: 2 },
  lora_dash: { dashWarmup: 3, dashIndex: 3 },
};

/** The preset of each such method with a small rank, and further settings. */
export const kOwnForms: readonly [string, LoraConfigInput][] = [
  ...METHOD_NAMES.flatMap((name): [string, LoraConfigInput][] => {
    const preset = METHODS[name].adapter as MethodPreset | null;
    return preset?.peftType === undefined
      ? []
      : [[name, { ...preset, r: 4, ...kSmall[name] } as LoraConfigInput]];
  }),
  ...kOthers,
];
