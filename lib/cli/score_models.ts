/** The models that are scored side by side: one, a base and its adapter, or several adapters. */
import { createHash } from 'node:crypto';
import { sep } from 'node:path';
import { AdapterModel } from '../adapters/adapter_model.ts';
import { ArgumentError } from '../errors.ts';
import { baseDigest, baseSummary } from '../models/base_digest.ts';
import type { CausalLM } from '../models/index.ts';
import type { EvaluateSettings } from './evaluate_options.ts';
import { adapterOptions, showWarnings } from './load.ts';
import type { Candidate } from './score_task.ts';
import type { RunContext } from './tasks/cli_task.ts';

/** A model that is scored, with its adapter if it has one. */
export interface CandidateModel extends Candidate {
  readonly tuned: AdapterModel | null;
}

/** The models to score: one after the other, since the adapters are attached to the model that was the base. */
export async function* candidates(
  model: CausalLM,
  settings: EvaluateSettings,
  { progress }: RunContext,
): AsyncGenerator<CandidateModel> {
  const { adapter, compare, output, base = false } = settings;
  const needsDigest = output !== undefined;
  const digest = needsDigest ? baseSummary(model, await baseDigest(model)) : '';
  const folders = compare ?? (adapter === undefined ? [] : [adapter]);
  const alone = { scored: model, tuned: null, digest };
  if (folders.length === 0) yield { name: 'model', suffix: '', ...alone };
  if (base) yield { name: 'base', suffix: '.base', ...alone };
  const names = compare === undefined ? ['adapter'] : folderNames(compare);
  for (const [i, folder] of folders.entries()) {
    const tuned = showWarnings(
      await AdapterModel.fromPretrained(model, folder, adapterOptions(settings)),
      progress,
    );
    const name = names[i] as string;
    const own = needsDigest ? await adapterDigest(tuned) : '';
    try {
      yield {
        ...{ name, tuned, scored: tuned, digest: `${digest}, adapter ${own}` },
        suffix: compare === undefined ? '' : `.${name.replace(/[^\w.-]+/g, '-')}`,
      };
    } finally {
      tuned.dispose();
    }
  }
}

/** The shortest ends of paths that differ from each other. @throws ArgumentError for a folder that is named twice */
export function folderNames(paths: readonly string[]): readonly string[] {
  const parts = paths.map((path) => path.split(/[/\\]/).filter((part) => part !== ''));
  const longest = Math.max(...parts.map(({ length }) => length));
  for (let length = 1; length <= longest; length++) {
    const names = parts.map((part) => part.slice(-length).join(sep));
    if (new Set(names).size === names.length && !names.includes('base')) return names;
  }
  throw new ArgumentError('--compare: two of the folders are the same; name each of them once');
}

/** Digits of a digest that identify an adapter. */
const kDigits = 16;

/** A digest of an adapter's configuration and weights. */
async function adapterDigest(tuned: AdapterModel): Promise<string> {
  const hash = createHash('sha256').update(JSON.stringify(tuned.identity()));
  for (const { name, tensor } of tuned.parameters()) {
    const { buffer, byteOffset, byteLength } = await tensor.data();
    hash.update(name).update(new Uint8Array(buffer, byteOffset, byteLength));
  }
  return hash.digest('hex').slice(0, kDigits);
}
