// Checks of names before they become paths: an accepted name stays below the folder that it is joined to, by the
// rules of POSIX and Windows.
import { posix, win32 } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { isCommit, isRepoId, isRevision, pathProblem } from '../../../lib/io/hub/names.ts';

/** Paths made of parts that attacks use, in any order. */
const hostile = fc
  .array(
    fc.oneof(
      fc.constantFrom(
        '..',
        '.',
        '/',
        '//',
        '\\',
        'C:',
        'c:',
        '~',
        '\0',
        ' ',
        '\n',
        '%2e%2e',
        '．．',
      ),
      fc.string({ unit: 'binary', maxLength: 3 }),
      fc.constantFrom('a', 'model', '.gguf', 'NUL'),
    ),
    { maxLength: 8 },
  )
  .map((parts) => parts.join(''));

describe('a path', () => {
  it('that is accepted stays inside', () => {
    let passed = 0;
    fc.assert(
      fc.property(hostile, (path) => {
        if (pathProblem(path) !== null) return;
        ++passed;
        expect(posix.relative('/cache/x', posix.resolve('/cache/x', path))).toBe(path);
        const inside = win32.relative('D:\\cache\\x', win32.resolve('D:\\cache\\x', path));
        expect(inside).toBe(path.replaceAll('/', '\\'));
      }),
      { numRuns: 5000 },
    );
    expect(passed).toBeGreaterThan(100);
  });

  it('of an ordinary repository is accepted', () => {
    for (const path of [
      'model.safetensors',
      'model-00001-of-00002.safetensors',
      'onnx/decoder/model_q4.onnx',
      '.gitattributes',
      '..model',
      'a..b/c...gguf',
      'with space (1)+[x],=@#%.gguf',
      'größe/模型.gguf',
      '🤗.gguf',
    ]) {
      expect(pathProblem(path), path).toBeNull();
    }
  });
});

describe('an id, a revision and a commit', () => {
  it('are those that the hub and git allow', () => {
    for (const id of ['a/b', 'HuggingFaceTB/SmolLM2-135M', 'x_y/z.1-2_3', '0/1', '_a/b_']) {
      expect(isRepoId(id), id).toBe(true);
    }
    for (const id of [
      'a',
      'a/b/c',
      '/a',
      'a/',
      '../a',
      'a/..',
      'a--b/c',
      'ä/b',
      'a/b\n',
      'a/b.git',
    ]) {
      expect(isRepoId(id), id).toBe(false);
    }
    for (const name of ['main', 'refs/pr/12', 'v1.0', 'a-b_c/d', 'f'.repeat(40)]) {
      expect(isRevision(name), name).toBe(true);
    }
    expect(isCommit('f'.repeat(40))).toBe(true);
    for (const sha of ['F'.repeat(40), 'f'.repeat(41), `${'f'.repeat(40)}\n`, 40, null]) {
      expect(isCommit(sha), String(sha)).toBe(false);
    }
  });
});
