// The rows that docs/kernels.md is written from: a family's header with structures of operands.
import { describe, expect, it } from 'vitest';

const { operandsOf } = (await import(
  new URL('../../scripts/support/kernel_operands.mjs', import.meta.url).href
)) as {
  operandsOf: (file: string, source: string) => { name: string; text: string; tensors: string }[];
};

const kScale = `// Rows times a factor, |x| < 1:
//   y = x * factor
//   z = |y|
// The factor is of a row.
typedef struct balora_scale {
  const balora_view* x;       // (N,C)
  const balora_view* factor;  // (N) f32 (f64 for f64)
  const balora_view* y;
  double eps;
} balora_scale;
`;

describe('operandsOf', () => {
  it('joins comments, with formulas as code, and lists tensors with their shapes', () => {
    const source = `${kScale}\n#define BALORA_TEST_KERNELS(KERNEL) KERNEL(scale)\n`;
    expect(operandsOf('test.h', source)).toEqual([
      {
        name: 'scale',
        text: 'Rows times a factor, \\|x\\| \\< 1: `y = x * factor`, `z = \\|y\\|`. The factor is of a row.',
        tensors: 'x (N,C), factor (N), y',
      },
    ]);
  });

  it('names a row whose structure is missing, or has no comment right above it', () => {
    const rows = '#define BALORA_TEST_KERNELS(KERNEL) KERNEL(scale)\n';
    const message =
      'test.h: the row KERNEL(scale) needs a structure balora_scale with a comment right above it';
    expect(() => operandsOf('test.h', rows)).toThrow(message);
    const bare = kScale.replace(/^\/\/.*\n/gm, '');
    expect(() => operandsOf('test.h', `${bare}\n${rows}`)).toThrow(message);
  });
});
