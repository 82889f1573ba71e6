import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { loraConfig, parseAdapterConfig } from '../../lib/adapters/config.ts';
import {
  moduleSettings,
  resolveTargets,
  shortestNames,
  type TargetCandidate,
  targetMatcher,
} from '../../lib/adapters/targets.ts';
import { fixturePath } from '../support/fixtures.ts';

const kShapes: Record<string, [number, number]> = {
  'self_attn.q_proj': [8, 8],
  'self_attn.k_proj': [4, 8],
  'self_attn.v_proj': [4, 8],
  'self_attn.o_proj': [8, 8],
  'mlp.gate_proj': [16, 8],
  'mlp.up_proj': [16, 8],
  'mlp.down_proj': [8, 16],
};
const candidates: TargetCandidate[] = [
  ...Array.from({ length: 12 }, (_, layer) => layer).flatMap((layer) =>
    Object.entries(kShapes).map(([name, [outFeatures, inFeatures]]) => ({
      name: `model.layers.${layer}.${name}`,
      inFeatures,
      outFeatures,
    })),
  ),
  { name: 'lm_head', inFeatures: 8, outFeatures: 32, isHead: true },
];

const names = (input: object): string[] =>
  resolveTargets(loraConfig({ r: 2, ...input }), candidates).map(({ name }) => name);

/** Runs work with a third of the stack left, however large it is: what V8 has no stack for does not depend on the machine then. */
function withLittleStack(work: () => void): void {
  let most = 0;
  const measure = (): void => {
    most++;
    measure();
  };
  expect(measure).toThrow(RangeError);
  const descend = (left: number): void => (left > 0 ? descend(left - 1) : work());
  descend(Math.floor((2 * most) / 3));
}

describe('targets', () => {
  it('matches whole trailing names', () => {
    expect(names({ targetModules: ['q_proj', 'mlp.up_proj'] })).toHaveLength(24);
    expect(() => names({ targetModules: ['proj'] })).toThrow(
      /matches no linear module.*q_proj, k_proj/,
    );
    expect(names({ targetModules: ['model.layers.1.self_attn.q_proj'] })).toEqual([
      'model.layers.1.self_attn.q_proj',
    ]);
  });

  it('reads a string as one regular expression for the whole path', () => {
    expect(names({ targetModules: '.*\\.self_attn\\.(q|v)_proj' })).toHaveLength(24);
    expect(() => names({ targetModules: 'q_proj' })).toThrow(/"q_proj" matches no linear module/);
    expect(names({ targetModules: '(?i).*\\.(?P<which>Q)_proj\\Z' })).toHaveLength(12);
    expect(() => names({ targetModules: '(' })).toThrow(/pattern "\("/);
  });

  it.each([
    ['nests too deeply', `${'(?:'.repeat(101)}q${')*'.repeat(101)}`, /has groups within groups/],
    ['is too long', 'q'.repeat(20_001), /has 20001 characters/],
  ])('refuses a pattern that %s', (_, pattern, message) => {
    expect(() => names({ targetModules: pattern })).toThrow(message);
    expect(() => names({ rankPattern: { [pattern]: 4 } })).toThrow(message);
  });

  it('refuses a pattern that V8 cannot compile', () => {
    const pattern = 'q?'.repeat(10_000);
    const message = /Stack overflow; write it/;
    withLittleStack(() => {
      expect(() => names({ targetModules: pattern })).toThrow(message);
      expect(() => names({ rankPattern: { [pattern]: 4 } })).toThrow(message);
    });
  });

  it('stops a pattern that backtracks for ever, and names it', () => {
    const evil = '((\\w|\\w|\\w|\\.)+)+!';
    const stopped =
      /^pattern "\(\(\\\\w\|\\\\w\|\\\\w\|\\\\\.\)\+\)\+!": was not compared with model\.layers\.0\.\S+ within 1000 ms; write it/;
    expect(() => names({ targetModules: evil })).toThrow(stopped);
    expect(() => names({ excludeModules: evil })).toThrow(stopped);
    expect(() => names({ rankPattern: { [evil]: 4 } })).toThrow(stopped);
    expect(() => names({ alphaPattern: { [evil]: 4 } })).toThrow(stopped);
    expect(() => names({ layersToTransform: [0], layersPattern: evil })).toThrow(stopped);
  });

  it('stops one that takes as long on an empty text, with repetition or without', () => {
    for (const evil of ['(?:|x?){40}\\b', `${'(?:|(?:|x))'.repeat(40)}\\b`]) {
      expect(() => names({ targetModules: evil })).toThrow(
        /: was not compared with an empty text within 1000 ms; write it/,
      );
    }
  });

  it('reads all-linear as all linears except the head', () => {
    expect(names({})).toHaveLength(84);
    expect(names({ targetModules: ['lm_head'] })).toEqual(['lm_head']);
    expect(names({ excludeModules: ['down_proj'] })).toHaveLength(72);
  });

  it('keeps only the requested layers', () => {
    expect(names({ targetModules: ['q_proj'], layersToTransform: 1 })).toEqual([
      'model.layers.1.self_attn.q_proj',
    ]);
    expect(
      names({
        targetModules: ['q_proj'],
        layersToTransform: [1, 11],
        layersPattern: ['h', 'layers'],
      }),
    ).toHaveLength(2);
    expect(() =>
      names({ targetModules: ['q_proj'], layersToTransform: [0], layersPattern: 'h' }),
    ).toThrow(/matches no/);
  });

  it('names the entry of a list that matches nothing', () => {
    expect(() => names({ targetModules: ['q_proj', 'qproj'] })).toThrow(
      /\["qproj"\] matches no linear module/,
    );
  });

  it('refuses a rank larger than the matrix', () => {
    expect(() => names({ r: 5, targetModules: ['q_proj', 'k_proj'] })).toThrow(
      /layers\.0\.self_attn\.k_proj: rank r=5 is larger than the matrix \(out,in\)=\(4,8\) allows; set r, .* to 4 at most/,
    );
  });

  it('uses the first matching pattern for each module', () => {
    const settings = moduleSettings(
      loraConfig({
        r: 2,
        loraAlpha: 4,
        rankPattern: { 'layers.1.self_attn.v_proj': 3, v_proj: 1 },
        alphaPattern: { q_proj: 9 },
      }),
    );
    expect(settings('model.layers.1.self_attn.v_proj')).toMatchObject({
      r: 3,
      alpha: 4,
      scale: 4 / 3,
    });
    expect(settings('model.layers.11.self_attn.v_proj')).toMatchObject({ r: 1, scale: 4 });
    expect(settings('model.layers.1.self_attn.q_proj')).toMatchObject({
      r: 2,
      alpha: 9,
      scale: 4.5,
    });
    expect(moduleSettings(loraConfig({ r: 4, loraAlpha: 4, useRslora: true }))('x').scale).toBe(2);
  });

  it('writes the shortest list that selects the same modules', () => {
    const all = candidates.map(({ name }) => name);
    expect(
      shortestNames(
        all.filter((name) => /[qv]_proj$/.test(name)),
        all,
      ),
    ).toEqual(['q_proj', 'v_proj']);
    expect(shortestNames(['model.layers.1.self_attn.q_proj'], all)).toEqual([
      'model.layers.1.self_attn.q_proj',
    ]);
  });
});

describe('targets of the golden adapters', () => {
  it.each([
    ['adapter', 14],
    ['adapter-one-layer', 7],
    ['adapter-regex', 4],
    ['adapter-pattern', 14],
  ])('%s', (name, count) => {
    const text = readFileSync(
      fixturePath(`architectures/llama-untied-gqa/${name}/adapter_config.json`),
      'utf8',
    );
    const twoLayers = candidates.filter((candidate) => /layers\.[01]\./.test(candidate.name));
    expect(
      twoLayers.filter((candidate) => targetMatcher(parseAdapterConfig(text))(candidate.name)),
    ).toHaveLength(count);
  });
});
