// Reading ptxas' report: kernels, registers, spills, and the share of a multiprocessor's warps that registers allow.
import { describe, expect, it } from 'vitest';

interface PtxasRow {
  kernel: string;
  architecture: string;
  registers: number;
  stack: number;
  spilled: number;
  shared: number;
}
const module = new URL('../../scripts/support/ptxas.mjs', import.meta.url).href;
const { parsePtxas, occupancyByRegisters } = (await import(module)) as {
  parsePtxas: (text: string) => PtxasRow[];
  occupancyByRegisters: (
    row: Pick<PtxasRow, 'registers' | 'architecture'>,
    threads: number,
  ) => number;
};

const kText = `
ptxas info    : 17 bytes gmem
ptxas info    : Compiling entry function '_ZN6balora4cuda46_GLOBAL__N__dfbb5691_13_accumulate_cu_4e55a9dc17accumulate_groupsIfEEvNS0_7OperandES3_lT_' for 'sm_90'
ptxas info    : Function properties for _ZN6balora4cuda46_GLOBAL__N__dfbb5691_13_accumulate_cu_4e55a9dc17accumulate_groupsIfEEvNS0_7OperandES3_lT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 44 registers, used 0 barriers
ptxas info    : Compiling entry function 'other' for 'sm_80'
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes stack, 4096 bytes smem, 400 bytes cmem[0]
`;

describe('parsePtxas', () => {
  it('names file and function, and adds up what spills', () => {
    expect(parsePtxas(kText)).toEqual([
      {
        ...{ kernel: 'accumulate: accumulate_groups IfEEvNS0_7OperandES3_lT_', registers: 44 },
        ...{ architecture: 'sm_90', stack: 0, spilled: 0, shared: 0 },
      },
      {
        ...{ kernel: 'other', architecture: 'sm_80', registers: 255 },
        ...{ stack: 16, spilled: 20, shared: 4096 },
      },
    ]);
  });
});

describe('occupancyByRegisters', () => {
  it('counts whole blocks of whole warps', () => {
    // 64 registers x 32 lanes = 2048 a warp: 32 warps, 4 blocks of 8; sm_80 holds 64 warps.
    expect(occupancyByRegisters({ registers: 64, architecture: 'sm_80' }, 256)).toBe(0.5);
    expect(occupancyByRegisters({ registers: 32, architecture: 'sm_86' }, 256)).toBe(1);
    // 255 registers: 8192 a warp, 8 warps, so one block of 6 warps.
    expect(occupancyByRegisters({ registers: 255, architecture: 'sm_90' }, 192)).toBe(6 / 64);
  });
});
