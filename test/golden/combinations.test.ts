/**
 * Pairs of PEFT's options of LoRA that PEFT takes (../shared/golden/methods/variants/combinations.json, where all were tried): here they
 * combine as well, or one of them is refused with the reason. An adapter of a combination starts as the base, is the same
 * after it was saved and read, and after merging.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { noGrad, scope } from '../../lib/tensor.ts';
import { createCalibrated } from '../support/calibrated.ts';
import { values } from '../support/compare.ts';
import { readJson, relativeError } from '../support/fixtures.ts';
import { describeShared, sharedPath } from '../support/shared.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { tinyBatches, tinySource } from '../support/tiny_model.ts';

const kGolden = 'golden/methods/variants/combinations.json';

/** An option as a Python dictionary; objects of settings as the call that makes them. */
type PythonOptions = string;

interface Facts {
  readonly base_options: Readonly<Record<string, unknown>>;
  readonly values: Readonly<Record<string, PythonOptions>>;
  readonly alone: Readonly<Record<string, { readonly stage: string }>>;
  readonly pairs_as_good_as_each_alone: Readonly<Record<string, readonly string[]>>;
}

/** The options that are refused alone, and so in every pair: they change the mathematics and have no implementation here. */
const kRefused: Readonly<Record<string, RegExp>> = {
  'init_lora_weights=mica': /init_lora_weights must be one of .*, got "mica"/,
  'bias=all': /bias = "all" is not supported/,
  'bias=lora_only': /bias = "lora_only" is not supported/,
  layer_replication: /layer_replication = .* is not supported/,
  target_parameters: /target_parameters = .* is not supported/,
  trainable_token_indices: /trainable_token_indices = .* is not supported/,
  ensure_weight_tying: /ensure_weight_tying = true is not supported/,
  alora_invocation_tokens: /alora_invocation_tokens = .* is not supported/,
  use_qalora: /use_qalora = true is not supported/,
  use_bdlora: /use_bdlora = .* is not supported/,
  velora_config: /velora_config = .* is not supported/,
  kasa_config: /kasa_config = .* is not supported/,
  monteclora_config: /monteclora_config = .* is not supported/,
  embedding_target: /embed_tokens/,
  lm_head_target: /lm_head: an adapter on the output head is not supported yet/,
};

/** The options of adapters that do not start as the base, and of those that cannot be merged into this model. */
const kOwnStart = 'init_lora_weights=False';
const kUnmerged = 'lora_bias';

const kModel = {
  ...{ model_type: 'llama', vocab_size: 37, hidden_size: 32, intermediate_size: 48 },
  ...{ num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2 },
  ...{ rms_norm_eps: 1e-5, hidden_act: 'silu', max_position_embeddings: 64 },
  ...{ tie_word_embeddings: false, initializer_range: 0.2 },
};
const kData = tinySource(tinyBatches({ rows: 40, vocabulary: 37 }));

const out = mkdtempSync(join(tmpdir(), 'balora-combinations-'));
afterAll(() => rmSync(out, { recursive: true }));
let count = 0;

const load = (): Promise<CausalLM> => AutoModelForCausalLM.fromConfig({ ...kModel }, { seed: 1 });

const logitsOf = (model: CausalLM): Float64Array => {
  const inputIds = Int32Array.of(3, 1, 4, 1, 5, 9, 2, 6, 5);
  const positions = inputIds.map((_, i) => i);
  const batch = { inputIds, positions, cuSeqlens: Int32Array.of(0, inputIds.length) };
  return scope(() => noGrad(() => Float64Array.from(values(model.logits(model.forward(batch))))));
};

/** The options of a Python dictionary, whose texts have no quotes in them. */
function parsed(python: PythonOptions): Record<string, unknown> {
  const json = python
    .replaceAll("'", '"')
    .replaceAll('True', 'true')
    .replaceAll('False', 'false')
    .replaceAll(/"\w+Config\(\)"/g, '{}'); // of defaults
  return JSON.parse(json) as Record<string, unknown>;
}

describeShared('what PEFT combines', [kGolden], () => {
  const facts = readJson(sharedPath(kGolden)) as Facts;
  const { values: all, alone, pairs_as_good_as_each_alone: pairs } = facts;

  /** Creates, saves, reads and merges an adapter. */
  async function use(...names: readonly string[]): Promise<void> {
    const options = names.map((name) => parsed(all[name] as PythonOptions));
    const config = Object.assign({ ...facts.base_options }, ...options);
    const model = await load();
    const base = logitsOf(model);
    const near = (found: Float64Array, wanted: Float64Array): void =>
      expect(relativeError(found, wanted), names.join(' + ')).toBeLessThan(1e-5);
    try {
      const tuned = await createCalibrated(model, config, kData);
      if (!names.includes(kOwnStart)) near(logitsOf(model), base);
      disturb(tuned, 1, 0.1);
      const expected = logitsOf(model);
      expect(relativeError(expected, base)).toBeGreaterThan(1e-3);
      const folder = join(out, `${count++}`);
      await tuned.savePretrained(folder);
      const other = await load();
      const again = await AdapterModel.fromPretrained(other, folder);
      expect(again.warnings).toEqual([]);
      near(logitsOf(other), expected);
      const merged = join(out, `${count++}`);
      if (names.includes(kUnmerged)) {
        await expect(saveMerged(tuned, merged)).rejects.toThrow(/layer without a bias/);
      } else {
        await saveMerged(tuned, merged);
        const whole = await AutoModelForCausalLM.fromPretrained(merged);
        near(logitsOf(whole), expected);
        whole.dispose();
      }
      for (const one of [again, other, tuned]) one.dispose();
    } finally {
      model.dispose();
    }
  }

  const works = ({ stage }: { stage: string }): boolean => stage === 'ok' || stage === 'merge';
  it.each(Object.keys(alone).filter((name) => works(alone[name] as { stage: string })))(
    '%s',
    async (name) => {
      const reason = kRefused[name];
      if (reason === undefined) await use(name);
      else await expect(use(name)).rejects.toThrow(reason);
    },
  );

  const offered = Object.entries(pairs)
    .filter(([name]) => kRefused[name] === undefined)
    .map(([name, others]) => [name, others.filter((one) => kRefused[one] === undefined)] as const)
    .filter(([, others]) => others.length > 0);
  it.each(offered)('%s with each of the others', async (name, others) => {
    for (const other of others) await use(name, other);
  });
});
