// An adapter that balora saved carries digests of its tensors and its configuration in the metadata of its file: damage is refused, a
// changed configuration is named, and files without this metadata, such as PEFT's own, load as before.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { FormatError } from '../../lib/errors.ts';
import { loadSafetensors, SafetensorsFile, saveSafetensors } from '../../lib/io/safetensors.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { TinyModel } from '../support/tiny_model.ts';

let folder: string;
let tensors: string;
let config: string;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-metadata-'));
  tensors = join(folder, 'adapter_model.safetensors');
  config = join(folder, 'adapter_config.json');
  const tuned = await AdapterModel.create(new TinyModel(), { r: 2 });
  disturb(tuned);
  await tuned.savePretrained(folder);
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const load = () => AdapterModel.fromPretrained(new TinyModel(), folder);

/** The values of all trained tensors, by name. */
const weightsOf = (tuned: AdapterModel): Record<string, number[]> =>
  Object.fromEntries(
    tuned
      .parameters()
      .map(({ name, tensor }) => [name, Array.from(tensor.dataSync() as Float32Array)]),
  );

/** Writes the tensors again with other metadata. */
async function rewrite(metadata: (old: Record<string, string>) => Record<string, string>) {
  const file = await loadSafetensors(tensors);
  rmSync(tensors);
  await saveSafetensors(tensors, file.tensors, metadata(file.metadata));
}

function editConfig(change: (keys: Record<string, unknown>) => object): void {
  writeFileSync(config, JSON.stringify(change(JSON.parse(readFileSync(config, 'utf8')))));
}

describe('a saved adapter', () => {
  it('says format pt, as PEFT writes it, and loads without a warning', async () => {
    const file = SafetensorsFile.open(tensors);
    expect([...file.metadata.keys()].sort()).toEqual(
      expect.arrayContaining(['balora_config', 'balora_tensors', 'format']),
    );
    expect(file.metadata.get('format')).toBe('pt');
    file.close();
    expect((await load()).warnings).toEqual([]);
  });

  it('with a changed bit is refused, and leaves nothing in memory', async () => {
    const bytes = readFileSync(tensors);
    const at = bytes.length - 4; // the lowest bit of a mantissa: the value stays finite
    bytes[at] = (bytes[at] as number) ^ 1;
    writeFileSync(tensors, bytes);
    const model = new TinyModel();
    await synchronize();
    const before = memoryStats().liveBytes;
    const loading = AdapterModel.fromPretrained(model, folder);
    await expect(loading).rejects.toThrow(FormatError);
    await expect(loading).rejects.toThrow(
      /adapter_model\.safetensors: the tensors are not those that were saved: the file is damaged; use a copy/,
    );
    expect(memoryStats().liveBytes).toBe(before);
  });

  it('whose digest is damaged is refused, too', async () => {
    await rewrite((old) => ({ ...old, balora_tensors: '0'.repeat(64) }));
    await expect(load()).rejects.toThrow(/the file is damaged/);
  });

  it('without the metadata, as PEFT saves it again, is not checked', async () => {
    await rewrite(() => ({ format: 'pt' }));
    editConfig((keys) => ({ ...keys, lora_alpha: 99 }));
    expect((await load()).warnings).toEqual([]);
  });

  it('names a configuration that was changed, except for what has no influence', async () => {
    editConfig(({ peft_type, ...keys }) => ({
      ...keys,
      ...{ base_model_name_or_path: 'elsewhere', inference_mode: false, revision: 'main' },
      peft_type,
    }));
    expect((await load()).warnings).toEqual([]);
    editConfig((keys) => ({ ...keys, lora_alpha: 9 }));
    expect((await load()).warnings).toEqual([
      `${config} was changed after the adapter had been saved: it is used as it is now`,
    ]);
  });

  it('has the values of the moment at which it was saved', async () => {
    const tuned = await AdapterModel.create(new TinyModel(), { r: 2 });
    disturb(tuned, 7);
    const values = weightsOf(tuned);
    const saving = tuned.savePretrained(folder);
    disturb(tuned, 8);
    await saving;
    expect(weightsOf(await load())).toEqual(values);
  });
});
