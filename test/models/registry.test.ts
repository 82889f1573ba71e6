// Completeness of the registry: every family has a golden checkpoint with an adapter, and every GGUF architecture a test file;
// and the errors of unknown names.
import { existsSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  classifierKind,
  familyOf,
  familyOfGguf,
  kEncoders,
  kFamilies,
  kSeq2SeqFamilies,
  seq2SeqFamilyOf,
  supportedModels,
} from '../../lib/models/registry.ts';
import { kConversions, kEncoderConversions, kSeq2SeqConversions } from '../support/gguf_models.ts';
import {
  architecture,
  type GoldenTask,
  goldenConfig,
  goldenNames,
} from '../support/golden_checkpoints.ts';

const typesOf = (task: GoldenTask): Set<unknown> =>
  new Set(
    goldenNames(task)
      .filter((name) => existsSync(architecture(`${name}/adapter`)))
      .map((name) => goldenConfig(name).model_type),
  );

describe('golden checkpoints', () => {
  it.each([
    ['causal_lm', kFamilies],
    ['seq_cls', kEncoders],
    ['seq2seq_lm', kSeq2SeqFamilies],
  ] as const)('of %s exist for every family', (task, families) => {
    const proved = typesOf(task);
    expect(families.map((family) => family.modelType).filter((t) => !proved.has(t))).toEqual([]);
  });

  it('are written as GGUF for every architecture of the table', () => {
    const conversions = Object.values({
      ...kConversions,
      ...kSeq2SeqConversions,
      ...kEncoderConversions,
    });
    const written = new Set(conversions.map(({ architecture: name }) => name));
    const named = supportedModels().flatMap(({ gguf }) => gguf ?? []);
    expect(named.filter((name) => !written.has(name))).toEqual([]);
  });
});

describe('an unknown name', () => {
  const message = (work: () => unknown): string => {
    try {
      work();
    } catch (error) {
      expect((error as { code: string }).code).toBe('ERR_UNSUPPORTED');
      return (error as Error).message;
    }
    return expect.fail('did not throw');
  };
  const known = (names: readonly string[]) =>
    `; known: ${names.join(', ')}; read docs/how-to-add-a-`;

  it('is an error with the known names and a page to read', () => {
    const types = kFamilies.map(({ modelType }) => modelType);
    expect(message(() => familyOf('mamba', 'c.json'))).toContain(
      `c.json: model_type "mamba" is not supported as a language model${known(types)}`,
    );
    expect(message(() => familyOfGguf('mamba', 'm.gguf'))).toContain(
      `m.gguf: general.architecture "mamba" is not supported${known(kFamilies.flatMap(({ gguf }) => gguf?.architecture ?? []))}`,
    );
    expect(message(() => classifierKind('mamba', 'c.json'))).toMatch(
      /not supported for classification; known: bert, .*llama, .*; read docs/,
    );
    expect(message(() => seq2SeqFamilyOf('bart', 'c.json'))).toContain(
      `not supported as an encoder-decoder${known(['t5'])}`,
    );
  });

  it('that is known for another task is an error with that task', () => {
    expect(message(() => familyOf('bert', 'c.json'))).toContain(
      'as a language model, only as classification: AutoModelForSequenceClassification, --task seq',
    );
    expect(message(() => familyOf('t5', 'c.json'))).toContain(
      'only as encoder-decoder: AutoModelForSeq2SeqLM; known',
    );
    expect(message(() => classifierKind('gpt2', 'c.json'))).toContain(
      'for classification, only as language model: AutoModelForCausalLM; known',
    );
  });
});
