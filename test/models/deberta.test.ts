// Forms of DeBERTa-v2 that the golden checkpoint does not have, against a definition in plain loops that is itself checked with the
// golden checkpoint; and separate projections of positions, which change nothing where they are copies of the content's.
import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { saveSafetensors } from '../../lib/io/safetensors.ts';
import {
  AutoModelForSequenceClassification as Auto,
  type SequenceClassifier,
} from '../../lib/models/index.ts';
import { debertaBucket } from '../../lib/models/relative_positions.ts';
import { gelu } from '../../lib/ops/index.ts';
import { noGrad, type Tensor, tensor } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';
import { goldenArrays } from '../support/golden.ts';
import { goldenConfig, relativeError } from '../support/golden_checkpoints.ts';
import {
  type ClassifierGolden,
  goldenLoss,
  readClassifierGolden,
} from '../support/golden_classifiers.ts';

type Json = Record<string, unknown>;
/** The values of a parameter in f64, and its shape. */
interface Weight {
  readonly shape: readonly number[];
  readonly data: Float64Array;
}
type Weights = ReadonlyMap<string, Weight>;

const folder = mkdtempSync(join(tmpdir(), 'balora-deberta-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const kGolden = 'deberta-v2';
const golden = await readClassifierGolden(kGolden);
const kConfig = goldenConfig(kGolden);
const [kHidden, kPositions] = [40, 25];
const kSelf = [0, 1].map((i) => `deberta.encoder.layer.${i}.attention.self`);

const kWeights: Weights = new Map(
  [...goldenArrays(join(golden.folder, 'model', 'model.safetensors'))].map(([name, array]) => [
    name,
    { shape: array.shape, data: Float64Array.from(array.data as Float32Array, Number) },
  ]),
);

/** Values from -.6 to .6 that f32 represents exactly, determined by the name. */
function drawn(name: string, shape: readonly number[]): Weight {
  let state = [...name].reduce((sum, letter) => (31 * sum + letter.charCodeAt(0)) >>> 0, 7);
  const data = Float64Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => {
    state = (1664525 * state + 1013904223) >>> 0;
    return Math.fround(1.2 * (state / 2 ** 32 - 0.5));
  });
  return { shape, data };
}

let made = 0;
/** The golden checkpoint with changed configuration keys and tensors, in f64. */
async function variant(config: Json, weights: Weights): Promise<SequenceClassifier> {
  const path = join(folder, String(made++));
  cpSync(join(golden.folder, 'model'), path, { recursive: true });
  writeFileSync(join(path, 'config.json'), JSON.stringify({ ...kConfig, ...config }));
  const tensors = [...weights].map(([name, { shape, data }]) => [
    name,
    tensor(Float32Array.from(data), { shape }),
  ]);
  await saveSafetensors(join(path, 'model.safetensors'), Object.fromEntries(tensors));
  return Auto.fromPretrained(path, { dtype: 'f64', trainable: true });
}

const logitsOf = (model: SequenceClassifier, { batch }: Pick<ClassifierGolden, 'batch'> = golden) =>
  noGrad(() => model.logits(model.forward(batch), batch));

describe('separate projections of positions', () => {
  const copies = kSelf.flatMap((self) =>
    ['key', 'query'].flatMap((name) =>
      ['weight', 'bias'].map((kind): [string, Weight] => [
        `${self}.pos_${name}_proj.${kind}`,
        kWeights.get(`${self}.${name}_proj.${kind}`) as Weight,
      ]),
    ),
  );

  it('give the golden logits where they are copies, and gradients that add up to the golden ones', async () => {
    const separate = await variant({ share_att_key: false }, new Map([...kWeights, ...copies]));
    const expected = golden.expected.logits_f64 as Tensor;
    expect(relativeError(logitsOf(separate), expected)).toBeLessThan(1e-9);
    const shared = await variant({}, kWeights);
    const [ofSeparate, ofShared] = [separate, shared].map((model) => {
      const parameters = new Map(model.namedParameters());
      for (const parameter of parameters.values()) parameter.requiresGrad = true;
      goldenLoss(model, golden).backward();
      return (name: string) => values(parameters.get(name)?.grad as Tensor);
    }) as [(name: string) => Float64Array, (name: string) => Float64Array];
    for (const [name] of copies) {
      const content = name.replace('pos_', '');
      const [own, positions, both] = [ofSeparate(content), ofSeparate(name), ofShared(content)];
      const largest = both.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
      both.forEach((v, i) => {
        const sum = (own[i] as number) + (positions[i] as number);
        expect(Math.abs(sum - v), name).toBeLessThan(1e-9 * Math.max(largest, 1e-3));
      });
      if (name.endsWith('weight')) expect(Math.hypot(...positions), name).toBeGreaterThan(1e-4);
    }
  });
});

describe('a definition in plain loops', () => {
  const own = kSelf.flatMap((self) =>
    ['pos_key_proj', 'pos_query_proj'].flatMap((name): [string, Weight][] => [
      [`${self}.${name}.weight`, drawn(`${self}.${name}`, [kHidden, kHidden])],
      [`${self}.${name}.bias`, drawn(`${self}.${name}.bias`, [kHidden])],
    ]),
  );
  const only = (name: string) => own.filter(([key]) => key.includes(name));
  const table = (name: string, rows: number): [string, Weight][] => [
    [`deberta.${name}.weight`, drawn(name, [rows, kHidden])],
  ];
  const types = table('embeddings.token_type_embeddings', 2);
  const places = table('embeddings.position_embeddings', kPositions);

  it.each<[string, Json, [string, Weight][]]>([
    ['the golden form', {}, []],
    ['c2p alone', { pos_att_type: ['c2p'] }, []],
    ['p2c alone', { pos_att_type: 'p2c' }, []],
    ['neither', { pos_att_type: [] }, []],
    ['own projections', { share_att_key: false }, own],
    ['own, c2p alone', { share_att_key: false, pos_att_type: ['c2p'] }, only('pos_key_proj')],
    ['own, p2c alone', { share_att_key: false, pos_att_type: ['p2c'] }, only('pos_query_proj')],
    ['absolute positions too', { position_biased_input: true }, places],
    ['token types', { type_vocab_size: 2 }, types],
    ['every distance', { position_buckets: -1 }, table('encoder.rel_embeddings', 2 * kPositions)],
    [
      'distances up to 4',
      { position_buckets: -1, max_relative_positions: 4 },
      table('encoder.rel_embeddings', 8),
    ],
    ['relative embeddings as they are', { norm_rel_ebd: 'none' }, []],
  ])('gives the logits of %s', async (_, change, added) => {
    const weights = new Map([...kWeights, ...added]);
    const config = { ...kConfig, ...change };
    if (config.norm_rel_ebd === 'none') {
      for (const kind of ['weight', 'bias']) weights.delete(`deberta.encoder.LayerNorm.${kind}`);
    }
    const { batch } = golden;
    const tokenTypeIds = Int32Array.from(batch.inputIds, (id) => id % 2);
    const typed = config.type_vocab_size === 2 ? { ...batch, tokenTypeIds } : batch;
    const found = logitsOf(await variant(change, weights), { batch: typed });
    const expected = segmentsOf(batch.cuSeqlens).flatMap(([from, to]) => {
      const ids = Array.from(batch.inputIds.subarray(from, to));
      return plainLogits(weights, config, { ids, types: Array.from(tokenTypeIds.slice(from, to)) });
    });
    const want = tensor(Float64Array.from(expected), { shape: found.shape });
    expect(relativeError(found, want)).toBeLessThan(1e-9);
    const usual = golden.expected.logits_f64 as Tensor;
    if (Object.keys(change).length === 0) expect(relativeError(want, usual)).toBeLessThan(1e-9);
    else expect(relativeError(want, usual)).toBeGreaterThan(1e-2);
  });
});

const segmentsOf = (cuSeqlens: Int32Array): [number, number][] =>
  Array.from(cuSeqlens.subarray(1), (end, b) => [cuSeqlens[b] as number, end]);

type Rows = readonly (readonly number[])[]; // (T,C)

/** Logits of one sequence, (D). */
function plainLogits(
  weights: Weights,
  config: Json,
  { ids, types }: { ids: number[]; types: number[] },
): number[] {
  const at = (name: string) => weights.get(name) as Weight;
  const row = (name: string, i: number) => {
    const { shape, data } = at(name);
    const c = shape[1] as number;
    return Array.from(data.subarray(i * c, (i + 1) * c));
  };
  const linear = (name: string, x: Rows): Rows =>
    x.map((vector) =>
      Array.from(
        at(`${name}.bias`).data,
        (bias, o) => bias + dot(row(`${name}.weight`, o), vector),
      ),
    );
  const norm = (name: string, x: Rows): Rows => {
    const [weight, bias] = ['weight', 'bias'].map((kind) => at(`${name}.${kind}`).data);
    return x.map((vector) => {
      const mean = vector.reduce((sum, v) => sum + v, 0) / vector.length;
      const variance = vector.reduce((sum, v) => sum + (v - mean) ** 2, 0) / vector.length;
      const scale = 1 / Math.sqrt(variance + (config.layer_norm_eps as number));
      return vector.map(
        (v, i) => (v - mean) * scale * (weight?.[i] as number) + (bias?.[i] as number),
      );
    });
  };
  const embedded = ids.map((id, t) => {
    const parts = [row('deberta.embeddings.word_embeddings.weight', id)];
    if (config.position_biased_input === true)
      parts.push(row('deberta.embeddings.position_embeddings.weight', t));
    if ((config.type_vocab_size as number) > 0)
      parts.push(row('deberta.embeddings.token_type_embeddings.weight', types[t] as number));
    return parts.reduce(sumOf);
  });
  let x = norm('deberta.embeddings.LayerNorm', embedded);
  for (let i = 0; i < (config.num_hidden_layers as number); i++) {
    const layer = `deberta.encoder.layer.${i}`;
    const attended = attention(`${layer}.attention.self`, x);
    const mixed = linear(`${layer}.attention.output.dense`, attended);
    x = norm(`${layer}.attention.output.LayerNorm`, addRows(mixed, x));
    const inner = geluRows(linear(`${layer}.intermediate.dense`, x));
    x = norm(`${layer}.output.LayerNorm`, addRows(linear(`${layer}.output.dense`, inner), x));
  }
  const pooled = geluRows(linear('pooler.dense', x.slice(0, 1)));
  return [...(linear('classifier', pooled)[0] as number[])];

  function attention(self: string, states: Rows): Rows {
    const stated = [config.pos_att_type].flat() as string[];
    const [c2p, p2c] = [stated.includes('c2p'), stated.includes('p2c')];
    const prefix = config.share_att_key === true ? '' : 'pos_';
    const relative = at('deberta.encoder.rel_embeddings.weight').shape[0] as number;
    const rows = Array.from({ length: relative }, (_, r) =>
      row('deberta.encoder.rel_embeddings.weight', r),
    );
    const positions =
      config.norm_rel_ebd === 'none' ? rows : norm('deberta.encoder.LayerNorm', rows);
    const keys = c2p ? linear(`${self}.${prefix}key_proj`, positions) : null;
    const queries = p2c ? linear(`${self}.${prefix}query_proj`, positions) : null;
    const [q, k, v] = ['query', 'key', 'value'].map((n) => linear(`${self}.${n}_proj`, states)) as [
      Rows,
      Rows,
      Rows,
    ];
    const heads = config.num_attention_heads as number;
    const d = (config.hidden_size as number) / heads;
    const head = (vector: readonly number[] | undefined, h: number) =>
      (vector as number[]).slice(h * d, (h + 1) * d);
    const scale = 1 / Math.sqrt(d * (1 + Number(c2p) + Number(p2c)));
    return states.map((_, i) =>
      Array.from({ length: heads }, (__, h) => {
        const scores = states.map((___, j) => {
          const r = place(i - j, relative / 2);
          let score = dot(head(q[i], h), head(k[j], h));
          if (keys) score += dot(head(q[i], h), head(keys[r], h));
          if (queries) score += dot(head(k[j], h), head(queries[r], h));
          return score * scale;
        });
        const most = Math.max(...scores);
        const shares = scores.map((score) => Math.exp(score - most));
        const total = shares.reduce((sum, share) => sum + share, 0);
        return shares
          .map((share, j) => head(v[j], h).map((value) => (share / total) * value))
          .reduce(sumOf);
      }).flat(),
    );
  }

  /** The row of the table for the distance from a key to its query. */
  function place(queryMinusKey: number, span: number): number {
    const stated = config.max_relative_positions as number;
    const maxPosition = stated > 0 ? stated : (config.max_position_embeddings as number);
    const buckets = config.position_buckets as number;
    const bucket =
      buckets > 0 ? debertaBucket(queryMinusKey, { buckets, maxPosition }) : queryMinusKey;
    return Math.min(Math.max(bucket + span, 0), 2 * span - 1);
  }
}

const dot = (a: readonly number[], b: readonly number[]) =>
  a.reduce((sum, v, i) => sum + v * (b[i] as number), 0);
const sumOf = (a: readonly number[], b: readonly number[]): number[] =>
  a.map((v, i) => v + (b[i] as number));
const addRows = (a: Rows, b: Rows): Rows => a.map((vector, t) => sumOf(vector, b[t] as number[]));
const geluRows = (x: Rows): Rows =>
  x.map((vector) => Array.from(values(gelu(tensor(Float64Array.from(vector))))));
