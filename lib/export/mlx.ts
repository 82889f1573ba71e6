/**
 * A LoRA adapter in the form of mlx-lm: adapters.safetensors with `<path>.lora_a` (in,r) and `.lora_b` (r,out), and one rank and scale
 * for all modules in adapter_config.json (mlx_lm/tuner/utils.py, mlx_lm/tuner/lora.py). Smaller ranks are filled with zeros, and other
 * scales are folded into lora_b.
 */
import { join } from 'node:path';
import type { PlainPair } from '../adapters/export.ts';
import { MLX_CONFIG, MLX_TENSORS } from '../adapters/mlx_folder.ts';
import { UnsupportedError } from '../errors.ts';
import { writeFileAtomic } from '../io/files.ts';
import { hubIdOf } from '../io/hub/names.ts';
import { saveSafetensors } from '../io/index.ts';
import type { Model } from '../models/index.ts';
import { concat, contiguous, mul, transpose, zeros } from '../ops/index.ts';
import { computeOwned, type Tensor } from '../tensor.ts';
import { fillFolder } from './output.ts';
import { mostFrequent, withPlainLora } from './plain_lora.ts';
import { defineAdapterTarget } from './target.ts';

export const mlx = defineAdapterTarget({
  name: 'mlx',
  title: 'the adapter alone as mlx-lm stores it',
  output: 'folder',
  types: ['f32'],
  readers: [
    { program: 'mlx-lm', read: null },
    { program: 'balora', read: 'this version' },
  ],
  namesOf: () => [],
  write: ({ tuned, overwrite }, output) =>
    withPlainLora(tuned, 'mlx', async (modules) => {
      const { config, tensors } = mlxAdapter(modules, tuned.model, tuned.config.loraDropout);
      try {
        const fill = async (folder: string): Promise<void> => {
          await saveSafetensors(join(folder, MLX_TENSORS), tensors);
          await writeFileAtomic(join(folder, MLX_CONFIG), `${JSON.stringify(config, null, 4)}\n`);
        };
        await fillFolder(output, fill, [MLX_TENSORS, MLX_CONFIG], { overwrite });
      } finally {
        for (const tensor of Object.values(tensors)) tensor.dispose();
      }
      return [`${modules.length} modules of rank ${config.lora_parameters.rank}`];
    }),
});

/** The path of a module in a layer, whose numbers mlx counts from the end. */
const kInLayer = /^model\.layers\.(\d+)\.(.+)$/;

function mlxAdapter(modules: readonly PlainPair[], model: Model, dropout: number) {
  const placed = modules.map((module) => {
    const [, layer, key] = kInLayer.exec(module.name) ?? [];
    if (key !== undefined) return { module, layer: Number(layer), key };
    throw new UnsupportedError(
      `mlx: ${module.name} is in no layer that mlx-lm gives adapters to (model.layers.N); leave it out of target_modules`,
    );
  });
  const rank = Math.max(...modules.map(({ pair }) => pair.a.shape[0] as number));
  const scale = mostFrequent(modules.map((module) => module.scale));
  const layerOf = (name: string) => Number(kInLayer.exec(name)?.[1] ?? -1);
  const layers = Math.max(...Array.from(model.namedParameters(), ([name]) => layerOf(name))) + 1;
  const config = {
    fine_tune_type: 'lora',
    model: hubIdOf(model.nameOrPath) ?? model.nameOrPath,
    num_layers: layers - Math.min(...placed.map(({ layer }) => layer)),
    lora_parameters: {
      ...{ rank, scale, dropout },
      keys: [...new Set(placed.map(({ key }) => key))],
    },
  };
  const tensors = Object.fromEntries(
    modules.flatMap(({ name, pair: { a, b }, scale: own }) => [
      [`${name}.lora_a`, stored(a, { axis: 0, rank, factor: 1 })],
      [`${name}.lora_b`, stored(b, { axis: 1, rank, factor: own / scale })],
    ]),
  ) as Record<string, Tensor>;
  return { config, tensors };
}

/** A matrix transposed, times a factor, with zeros up to the rank along its axis of ranks. */
function stored(
  matrix: Tensor,
  { axis, rank, factor }: { axis: 0 | 1; rank: number; factor: number },
): Tensor {
  return computeOwned(() => {
    const missing = rank - (matrix.shape[axis] as number);
    const shape = matrix.shape.map((extent, i) => (i === axis ? missing : extent));
    const scaled = (factor === 1 ? matrix : mul(matrix.to('f64'), factor)).to('f32');
    const whole = missing === 0 ? scaled : concat([scaled, zeros(shape)], axis);
    return contiguous(transpose(whole));
  });
}
