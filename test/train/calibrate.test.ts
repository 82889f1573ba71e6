/** Calibration: what is read of the data, its file, and what is refused. Its values are compared with references in test/golden. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { Calibration } from '../../lib/adapters/calibration.ts';
import type { AdapterConfigInput } from '../../lib/adapters/create.ts';
import type { Batch } from '../../lib/data/collate.ts';
import { ArgumentError, FormatError, UnsupportedError } from '../../lib/errors.ts';
import { loadSafetensors, saveSafetensors } from '../../lib/io/safetensors.ts';
import { AutoModelForSeq2SeqLM } from '../../lib/models/index.ts';
import type { Linear } from '../../lib/nn/linear.ts';
import { zero_ } from '../../lib/ops/index.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import { noGrad, type Tensor } from '../../lib/tensor.ts';
import { calibrate } from '../../lib/train/calibrate.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import { disturb, expectNear, hidden } from '../support/tiny_adapters.ts';
import { tinyClassifier, tinyLabelled } from '../support/tiny_classifier.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';
import { kTinyT5, tinySeq2SeqData } from '../support/tiny_seq2seq.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-calibrate-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);
const batches = tinyBatches({ rows: 24 });
const data = tinySource(batches);

/** All values of a calibration, by module and name. */
const allOf = (calibration: Calibration): Record<string, number[]> =>
  Object.fromEntries(
    Object.keys(calibration.facts.modules).flatMap((module) =>
      Object.entries(calibration.of(module).statistics).map(([name, value]) => [
        `${module} ${name}`,
        numbers(value),
      ]),
    ),
  );

/** A batch whose segments are padded at their ends with rows that would change everything. */
function padded(batch: Batch, more = 3): Batch {
  const { cuSeqlens, inputIds, targets } = batch;
  const sequences = [0, 1].map((b) => [cuSeqlens[b], cuSeqlens[b + 1]] as [number, number]);
  const wider = (values: Int32Array, fill: number): Int32Array =>
    Int32Array.from(
      sequences.flatMap(([begin, end]) => [
        ...values.slice(begin, end),
        ...new Array<number>(more).fill(fill),
      ]),
    );
  const lengths = sequences.map(([begin, end]) => end - begin);
  const ends = lengths.map((length) => length + more);
  return {
    inputIds: wider(inputIds, 16),
    targets: wider(targets, -100),
    positions: Int32Array.from(ends.flatMap((n) => Array.from({ length: n }, (_, t) => t))),
    cuSeqlens: Int32Array.of(0, ends[0] as number, (ends[0] as number) + (ends[1] as number)),
    lengths: Int32Array.from(lengths),
  };
}

describe.each(['eva', 'corda', 'corda_kpm', 'lora_ga', 'lora_ga_peft'] as const)('%s', (init) => {
  const config: AdapterConfigInput = { r: 2, loraAlpha: 4, initLoraWeights: init };

  it('leaves padding out, and does not depend on the number of passes', async () => {
    const expected = allOf(await calibrate(new TinyModel(), config, { data }));
    const some = tinySource(batches.map((batch) => padded(batch)));
    const found = allOf(await calibrate(new TinyModel(), config, { data: some }));
    expect(Object.keys(found)).toEqual(Object.keys(expected));
    // The signs of singular vectors are free, and the passes sum in another order.
    const near = (one: Record<string, number[]>): void => {
      for (const [key, values] of Object.entries(expected)) {
        expectNear((one[key] as number[]).map(Math.abs), values.map(Math.abs), 2e-3);
      }
    };
    near(found);
    let [done, total] = [0, 0];
    const many = await calibrate(new TinyModel(), config, {
      ...{ data, maxBytes: 1 },
      onProgress: (now, all) => {
        expect(now).toBeGreaterThanOrEqual(done);
        [done, total] = [now, all];
      },
    });
    near(allOf(many));
    expect(done).toBe(total);
  });

  it('is kept in a file, and read from there only for the same base, data and ranks', async () => {
    const file = join(folder, 'calibration.safetensors');
    const first = await calibrate(new TinyModel(), config, { data, file });
    let calls = 0;
    const counted = {
      ...data,
      batches: () => {
        calls++;
        return [];
      },
    };
    const again = await calibrate(new TinyModel(), config, { data: counted, file });
    expect(calls).toBe(0);
    expect(allOf(again)).toEqual(allOf(first));
    expect(again.identity).toBe(first.identity);
    const refused = async (other: Parameters<typeof calibrate>, reason: RegExp): Promise<void> => {
      const attempt = calibrate(...other);
      await expect(attempt).rejects.toThrow(ArgumentError);
      await expect(attempt).rejects.toThrow(reason);
      await expect(attempt).rejects.toThrow(
        /calibration\.safetensors: is a calibration that was made/,
      );
    };
    const other = new TinyModel({ seed: 7 });
    await refused([other, config, { data, file }], /on another base/);
    const fewer = { data, file, batches: 3 };
    await refused([new TinyModel(), config, fewer], /with 8 micro-batches, not 3/);
    const moved = { data: { ...data, fingerprint: 'other' }, file };
    await refused([new TinyModel(), config, moved], /with other data/);
    const larger = { ...config, r: 3 };
    await refused(
      [new TinyModel(), larger, { data, file }],
      /for rank r=2 of layers\.0\.gate_proj, not r=3/,
    );
    const start = { ...config, initLoraWeights: init === 'eva' ? 'corda' : 'eva' } as const;
    await refused([new TinyModel(), start, { data, file }], /for initLoraWeights/);
  });

  it('is needed by the adapter, and refused where it does not fit', async () => {
    const calibration = await calibrate(new TinyModel(), config, { data });
    await expect(AdapterModel.create(new TinyModel(), config)).rejects.toThrow(
      `initLoraWeights "${init}" is computed from data; pass calibration, made by calibrate(model, config, { data })`,
    );
    const other = new TinyModel({ seed: 7 });
    await expect(AdapterModel.create(other, config, { calibration })).rejects.toThrow(
      'calibration: it was made on another base; calibrate again',
    );
    const plain = { ...config, initLoraWeights: 'pissa' } as const;
    await expect(AdapterModel.create(other, plain, { calibration })).rejects.toThrow(
      'calibration: initLoraWeights "pissa" is not computed from data; leave the calibration out',
    );
    expect((await AdapterModel.create(other, plain)).modules).toHaveLength(6);
  });

  it('can be trained, and resumed bit for bit with the same calibration alone', async () => {
    const output = join(folder, 'run');
    const create = async (seed?: number) => {
      const model = new TinyModel();
      const source = seed === undefined ? data : tinySource(tinyBatches({ rows: 24, count: seed }));
      const calibration = await calibrate(model, config, { data: source });
      return AdapterModel.create(model, config, { calibration });
    };
    const options = { data, learningRate: 0.02, maxSteps: 4, saveSteps: 2 };
    const straight = await create();
    await new Trainer({ tuned: straight, ...options, output: join(folder, 'straight') }).train();
    const first = await create();
    for await (const event of new Trainer({ tuned: first, ...options, output }).run()) {
      if (event.type === 'checkpoint') break;
    }
    const foreign = await create(5);
    await expect(
      new Trainer({ tuned: foreign, ...options, output, resume: true }).train(),
    ).rejects.toThrow(/calibration: was/);
    const resumed = await create();
    const last = new Trainer({ tuned: resumed, ...options, output, resume: true });
    const { checkpoint } = await last.train();
    for (const [name, value] of Object.entries(straight.state())) {
      expect(numbers(resumed.state()[name] as Tensor), name).toEqual(numbers(value));
    }
    const loaded = await AdapterModel.fromPretrained(new TinyModel(), checkpoint as string);
    expect(loaded.modules.map(({ r }) => r)).toEqual(resumed.modules.map(({ r }) => r));
  });

  it('works for several adapters on one base, and leaves nothing behind', async () => {
    const model = new TinyModel();
    const base = hidden(model);
    const calibration = await calibrate(model, config, { data });
    expect(hidden(model)).toEqual(base);
    expect(model.parameters().every((weight) => !weight.requiresGrad && weight.grad === null)).toBe(
      true,
    );
    const tuned = await AdapterModel.create(model, { r: 2 });
    await tuned.addAdapter('other', config, { calibration });
    tuned.setAdapter('other');
    expectNear(hidden(model), base, 1e-6);
    disturb(tuned);
    expect(tuned.withTeacher(() => hidden(model))).toEqual(base);
    tuned.dispose();
    calibration.dispose();
    await synchronize();
    const { liveBytes } = memoryStats();
    (await calibrate(model, config, { data })).dispose();
    await synchronize();
    expect(memoryStats().liveBytes).toBeLessThanOrEqual(liveBytes);
  });
});

describe('calibrate', () => {
  const config = { r: 2, method: 'corda' } as const;

  it('refuses a start that reads no data, a model with an adapter, no data and wrong options', async () => {
    const model = new TinyModel();
    await expect(calibrate(model, { method: 'pissa' }, { data })).rejects.toThrow(
      'calibrate: initLoraWeights "pissa" is not computed from data; make the adapter without a calibration',
    );
    await expect(calibrate(model, config, { data: tinySource([]) })).rejects.toThrow(
      'calibrate: the data has no micro-batch',
    );
    await expect(calibrate(model, config, { data, batches: 0 })).rejects.toThrow(
      'calibrate: batches must be a whole number >= 1, got 0',
    );
    const unsupervised = tinySource(
      batches.map((batch) => ({ ...batch, targets: batch.targets.map(() => -100) })),
    );
    await expect(
      calibrate(model, { ...config, method: 'lora_ga' }, { data: unsupervised }),
    ).rejects.toThrow(/no micro-batch has a supervised token/);
    await AdapterModel.create(model, { r: 2 });
    await expect(calibrate(model, config, { data })).rejects.toThrow(/has an adapter already/);
  });

  it('is for classifiers, too, with the rows of texts in the head', async () => {
    for (const method of ['lora_ga', 'corda', 'eva'] as const) {
      const classifier = await tinyClassifier();
      const source = await tinyLabelled(16, { batchSize: 8 });
      const settings = { r: 2, method } as const;
      const calibration = await calibrate(classifier, settings, { data: source });
      const tuned = await AdapterModel.create(classifier, settings, { calibration });
      expect(tuned.modules.map(({ name }) => name)).toContain('bert.pooler.dense');
      for (const { name } of tuned.modules) {
        for (const value of Object.values(calibration.of(name).statistics)) {
          expect(numbers(value).every(Number.isFinite), name).toBe(true);
        }
      }
      tuned.dispose();
    }
  });

  it('is for encoder-decoders, too, each module with the rows of its side', async () => {
    for (const method of ['lora_ga', 'corda', 'eva'] as const) {
      const model = await AutoModelForSeq2SeqLM.fromPretrained(kTinyT5, { dtype: 'f32' });
      const source = await tinySeq2SeqData(8, { batchSize: 8, shuffle: false });
      const settings = { r: 2, method } as const;
      const calibration = await calibrate(model, settings, { data: source });
      const tuned = await AdapterModel.create(model, settings, { calibration });
      const { modules } = calibration.facts;
      const crossed = Object.keys(modules).filter((name) => /EncDecAttention\.[kv]$/.test(name));
      expect(crossed.length).toBeGreaterThan(2);
      if (method === 'lora_ga') continue;
      // All keys and values of the decoder read the encoder's states, its queries do not.
      expect(new Set(crossed.map((name) => modules[name]?.inputOf)).size).toBe(1);
      const query = (crossed[0] as string).replace(/[kv]$/, 'q');
      expect(modules[query]?.inputOf).toBe(query);
      tuned.dispose();
      model.dispose();
    }
  });

  it('refuses modules that do not read one row for each token or text', async () => {
    const model = new TinyModel();
    const [first, second] = model.layers.map((layer) => layer.down_proj) as [Linear, Linear];
    const forward = second.forward.bind(second);
    second.forward = (x) => {
      first.forward(x);
      return forward(x);
    };
    await expect(calibrate(model, config, { data })).rejects.toThrow(
      new UnsupportedError(
        'calibrate: layers.0.down_proj is run several times in a forward of this tiny model; exclude it with excludeModules',
      ),
    );
  });

  it('is stopped by its signal, and the model can be used again', async () => {
    for (const method of ['eva', 'corda', 'lora_ga'] as const) {
      const model = new TinyModel();
      const stop = new AbortController();
      const stopped = calibrate(
        model,
        { r: 2, method },
        {
          ...{ data, signal: stop.signal },
          onProgress: () => stop.abort(new Error('enough')),
        },
      );
      await expect(stopped).rejects.toThrow('enough');
      expect(
        model.parameters().every((weight) => !weight.requiresGrad && weight.grad === null),
      ).toBe(true);
      const calibration = await calibrate(model, { r: 2, method }, { data });
      await AdapterModel.create(model, { r: 2, method }, { calibration });
    }
  });

  it('refuses modules whose inputs are all 0', async () => {
    const model = new TinyModel();
    const { norm } = model.layers[1] as { norm: { weight: Tensor } };
    noGrad(() => zero_(norm.weight));
    await expect(calibrate(model, config, { data })).rejects.toThrow(
      'calibrate: layers.1.gate_proj: all of its inputs are 0, so',
    );
  });
});

describe.each([
  ['eva', {}, undefined, [1, 5]],
  ['corda', {}, undefined, [1, 8]],
  ['corda', {}, 1, [1, 8, 11]],
  ['lora_ga', {}, undefined, [1, 8]],
  ['lora_ga', {}, 1, [1, 8, 11]],
  ['lora_ga', { quick: true }, undefined, [1, 8, 11]],
] as const)('a calibration of %s that is cut off', (init, settings, maxBytes, counts) => {
  const config: AdapterConfigInput = { r: 2, loraAlpha: 4, initLoraWeights: init };
  const options = { settings, ...(maxBytes !== undefined && { maxBytes }) };
  /** Data that count the micro-batches that are read. */
  const counting = () => {
    const source = {
      ...data,
      read: 0,
      async *batches(epoch: number, start: number) {
        for await (const batch of data.batches(epoch, start)) {
          source.read++;
          yield batch;
        }
      },
    };
    return source;
  };
  const cutAfter = async (count: number, file: string): Promise<void> => {
    const stop = new AbortController();
    let calls = 0;
    const cut = calibrate(new TinyModel(), config, {
      ...{ ...options, data, file, signal: stop.signal },
      onProgress: () => {
        if (++calls === count) stop.abort(new Error('cut off'));
      },
    });
    await expect(cut).rejects.toThrow('cut off');
  };

  it('goes on where it was, and ends with the same bits', async () => {
    const whole = counting();
    const expected = await calibrate(new TinyModel(), config, { ...options, data: whole });
    for (const count of counts) {
      const file = join(folder, `${count}.safetensors`);
      const part = `${file}.part`;
      await cutAfter(count, file);
      expect([existsSync(part), existsSync(file)]).toEqual([true, false]);
      const rest = counting();
      const found = await calibrate(new TinyModel(), config, { ...options, data: rest, file });
      expect(allOf(found)).toEqual(allOf(expected));
      // EVA reads one more at its end, to see that nothing is wanted of it.
      expect(rest.read).toBeLessThanOrEqual(whole.read - count);
      expect([existsSync(part), existsSync(file)]).toEqual([false, true]);
    }
  });

  it('is refused for another calibration, and where its file is damaged', async () => {
    const file = join(folder, 'cut.safetensors');
    await cutAfter(2, file);
    const again = (other: Partial<Parameters<typeof calibrate>[2]>) =>
      calibrate(new TinyModel(), config, { ...options, data, file, ...other });
    await expect(again({ batches: 3 })).rejects.toThrow(
      `${file}.part: belongs to a calibration that was cut off, and that was made with 8 micro-batches, not 3; remove it to calibrate from the beginning`,
    );
    await expect(again({ seed: 1 })).rejects.toThrow(/with the seed 42, not 1/);
    await expect(again({ maxBytes: 77 })).rejects.toThrow(/with maxBytes \d+, not 77/);
    const bytes = readFileSync(`${file}.part`);
    const { tensors, metadata } = await loadSafetensors(`${file}.part`);
    for (const note of ['{', 'null', '{"facts":null}', undefined]) {
      const { balora_calibration_part: _, ...rest } = metadata;
      const own = note === undefined ? [] : [['balora_calibration_part', note] as const];
      await saveSafetensors(`${file}.part`, tensors, { ...rest, ...Object.fromEntries(own) });
      await expect(again({})).rejects.toThrow(/\.part: balora_calibration_part.*; remove it/);
    }
    bytes[bytes.length - 3] = (bytes[bytes.length - 3] as number) ^ 1;
    writeFileSync(`${file}.part`, bytes);
    await expect(again({})).rejects.toThrow(FormatError);
  });
});

describe('the file of a calibration', () => {
  const config = { r: 2, method: 'corda' } as const;
  const made = async (): Promise<string> => {
    const file = join(folder, 'calibration.safetensors');
    await calibrate(new TinyModel(), config, { data, file });
    return file;
  };

  it('is refused where it is damaged, of another version, or of another kind', async () => {
    const file = await made();
    const { tensors, metadata } = await loadSafetensors(file);
    const bytes = readFileSync(file);
    bytes[bytes.length - 3] = (bytes[bytes.length - 3] as number) ^ 1;
    writeFileSync(file, bytes);
    await expect(Calibration.load(file)).rejects.toThrow(FormatError);
    await expect(calibrate(new TinyModel(), config, { data, file })).rejects.toThrow(
      `${file}: the tensors are not those that were saved: the file is damaged`,
    );
    const rewritten = (text: string) =>
      saveSafetensors(file, tensors, { ...metadata, balora_calibration: text });
    const facts = JSON.parse(metadata.balora_calibration as string) as Record<string, unknown>;
    await rewritten(JSON.stringify({ ...facts, version: 2 }));
    await expect(Calibration.load(file)).rejects.toThrow(UnsupportedError);
    await rewritten(JSON.stringify({ ...facts, batches: 0 }));
    await expect(Calibration.load(file)).rejects.toThrow(/balora_calibration: batches: /);
    await rewritten('{');
    await expect(Calibration.load(file)).rejects.toThrow(/balora_calibration is not JSON/);
    await saveSafetensors(file, tensors);
    await expect(Calibration.load(file)).rejects.toThrow(
      `${file}: is not the file of a calibration`,
    );
  });
});
