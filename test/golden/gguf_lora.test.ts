/**
 * PEFT's adapters of ../shared/golden/gguf_lora as GGUF adapters: the changes of weights that PEFT's own conversion gives, and in
 * llama.cpp, on the base in F32, PEFT's logits and greedy tokens.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { exportModel, exportTarget } from '../../lib/export/registry.ts';
import { openSession } from '../../lib/generate/open_session.ts';
import { GgufFile } from '../../lib/io/index.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { noGrad, scope, type Tensor } from '../../lib/tensor.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { readJson } from '../support/fixtures.ts';
import { divergence, noLlamaCpp, openLlamaCpp } from '../support/llama_cpp.ts';
import { readFloatTensors } from '../support/read_safetensors.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const kModel = 'models/smollm2-135m-instruct-gguf';
const kGolden = 'golden/gguf_lora';

interface Prompt {
  readonly text: string;
  readonly ids: readonly number[];
  readonly adapter_effect: { readonly kl: number };
  readonly peft_f32: {
    readonly greedy_ids: readonly number[];
    readonly top5: readonly { readonly id: number; readonly logit: number }[];
  };
}

const promptsOf = (name: string) =>
  (readJson(sharedPath(`${kGolden}/${name}/expected.json`)) as { prompts: Prompt[] }).prompts;

/** The tensors of a pair in f64, with the scale that llama.cpp gives their product: a (r,in), b (out,r). */
function pairOf(file: GgufFile, tensor: string) {
  const alpha = file.metadata.get('adapter.lora.alpha') as number;
  return scope(() => {
    const [a, b] = [file.read(`${tensor}.lora_a`), file.read(`${tensor}.lora_b`)];
    const rank = b.shape[1] as number;
    const values = (one: Tensor) => one.to('f64').dataSync() as Float64Array;
    return { rank, scale: alpha / rank, a: values(a), b: values(b) };
  });
}

/** The Frobenius norm of the sum of pairs, by the Gram matrices of their factors, since the product itself is large. */
function norm(pairs: readonly (ReturnType<typeof pairOf> & { readonly sign: number })[]): number {
  // Rows of all A, and columns of all B with their scales.
  const rows = pairs.flatMap(({ rank, a }) => {
    const width = a.length / rank;
    return Array.from({ length: rank }, (_, i) => a.subarray(i * width, (i + 1) * width));
  });
  const columns = pairs.flatMap(({ rank, b, scale, sign }) =>
    Array.from({ length: rank }, (_, i) =>
      Float64Array.from(
        { length: b.length / rank },
        (_, row) => sign * scale * (b[row * rank + i] as number),
      ),
    ),
  );
  const dot = (x: Float64Array, y: Float64Array) =>
    x.reduce((sum, value, i) => sum + value * (y[i] as number), 0);
  let sum = 0;
  for (const [i, row] of rows.entries()) {
    for (const [j, other] of rows.entries()) {
      sum += dot(row, other) * dot(columns[i] as Float64Array, columns[j] as Float64Array);
    }
  }
  return Math.sqrt(Math.max(0, sum));
}

describeShared("PEFT's adapters as GGUF", [kModel, kGolden], () => {
  let folder: string;
  let model: CausalLM;
  let tokenizer: Tokenizer;
  let base: Promise<string> | null = null;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'balora-golden-gguf-lora-'));
    model = await AutoModelForCausalLM.fromPretrained(sharedPath(kModel));
    tokenizer = await Tokenizer.fromPretrained(sharedPath(kModel));
  });
  afterAll(async () => {
    model.dispose();
    await rm(folder, { recursive: true });
  });

  /** Writes a model with an adapter. */
  async function write(tuned: AdapterModel, to: 'gguf' | 'gguf-lora', name: string) {
    const path = join(folder, `${name}.gguf`);
    const input = { tuned, tokenizer, adapter: folder, outtype: 'f32', warn: () => {} } as const;
    await exportModel(exportTarget(to), input, path);
    return path;
  }

  /** Writes the model in F32, half a GiB, as an adapter that changes nothing merged into it. */
  async function writeBase(): Promise<string> {
    const zero = await AdapterModel.create(model, { r: 1, targetModules: ['q_proj'] });
    const path = await write(zero, 'gguf', 'base');
    zero.dispose();
    return path;
  }

  it('change every weight as the adapter that was converted from PEFT does', async () => {
    const tuned = await AdapterModel.fromPretrained(model, sharedPath(`${kGolden}/lora_r4/peft`));
    const own = GgufFile.open(await write(tuned, 'gguf-lora', 'delta'));
    const golden = GgufFile.open(sharedPath(`${kGolden}/lora_r4/adapter.gguf`));
    const modules = [...golden.tensors.keys()].filter((name) => name.endsWith('.lora_a'));
    expect(modules).toHaveLength(210);
    expect([...own.tensors.keys()].sort()).toEqual([...golden.tensors.keys()].sort());
    for (const name of modules) {
      const tensor = name.slice(0, -'.lora_a'.length);
      const [a, b] = [pairOf(own, tensor), pairOf(golden, tensor)];
      const size = norm([{ ...b, sign: 1 }]);
      expect(size).toBeGreaterThan(0);
      // Both files have factors in f32; the difference of squares in f64 is exact to 1e-8 of the size.
      const difference = norm([
        { ...a, sign: 1 },
        { ...b, sign: -1 },
      ]);
      expect(difference / size, tensor).toBeLessThan(1e-6);
    }
    own.close();
    golden.close();
    tuned.dispose();
  });

  it.for(['lora_r4', 'pissa_2r'])(
    'have the logits and tokens of PEFT in llama.cpp: %s',
    async (name, { skip }) => {
      const missing = await noLlamaCpp();
      if (missing !== null) skip(missing);
      base ??= writeBase();
      const path = await base; // before the model gets the next adapter
      const tuned = await AdapterModel.fromPretrained(model, sharedPath(`${kGolden}/${name}/peft`));
      const llama = await openLlamaCpp(path, await write(tuned, 'gguf-lora', name));
      const golden =
        name === 'lora_r4'
          ? readFloatTensors(sharedPath(`${kGolden}/${name}/logits.safetensors`)).get('peft_f32')
          : undefined;
      for (const [row, { text, ids, peft_f32: peft, adapter_effect: effect }] of promptsOf(
        name,
      ).entries()) {
        expect(llama.tokenize(text), text).toEqual(ids);
        const logits = await llama.logits(ids);
        for (const { id, logit } of peft.top5) {
          expect(Math.abs((logits[id] as number) - logit), text).toBeLessThan(2e-4);
        }
        expect((await llama.greedy(ids, 24)).slice(0, 24), text).toEqual(peft.greedy_ids);
        const session = await openSession(model, { run: noGrad, maxLength: 200 } as never);
        const [own] = await session.prefill([Int32Array.from(ids)]);
        session.dispose();
        expect(divergence((own as { logits: Float32Array }).logits, logits), text).toBeLessThan(
          1e-8,
        );
        // The adapter has an effect that a mistake could not hide in.
        expect(effect.kl, text).toBeGreaterThan(1e-4);
        const { length } = logits;
        const whole = golden?.subarray(row * length, (row + 1) * length);
        if (whole === undefined) continue;
        expect(divergence(Float32Array.from(whole), logits), text).toBeLessThan(1e-8);
        const errors = whole.map((value, i) => Math.abs(value - (logits[i] as number)));
        expect(
          errors.reduce((a, b) => Math.max(a, b)),
          text,
        ).toBeLessThan(2e-4);
      }
      await llama.dispose();
      tuned.dispose();
    },
  );
});
