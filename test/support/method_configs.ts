/** The configuration of every method that makes an adapter, with small ranks, for tables of tests on tiny models. */
import type { AdapterConfigInput, AdapterMethodName } from '../../lib/adapters/create.ts';
import type { MethodPreset } from '../../lib/adapters/methods/method.ts';
import { METHOD_NAMES, METHODS } from '../../lib/adapters/methods/registry.ts';

/** Settings of methods whose defaults are for longer runs, or whose ranks have other names. */
const kSettings: Readonly<Record<string, AdapterConfigInput>> = {
  adalora: { initR: 4, targetR: 2 },
  lora_dash: { r: 4, dashWarmup: 1, dashIndex: 2 },
};

export const kMethodConfigs: readonly (readonly [AdapterMethodName, AdapterConfigInput])[] =
  METHOD_NAMES.flatMap((name) => {
    const preset = METHODS[name].adapter as MethodPreset | null;
    if (preset === null) return [];
    const method = name as AdapterMethodName;
    const sizes = preset.peftType === undefined ? { r: 4, loraAlpha: 8 } : { r: 4 };
    return [[method, { method, ...(kSettings[name] ?? sizes) }] as const];
  });
