// The report of ptxas: kernels, registers, spills, violations of the project's limits, and occupancy, the share of a
// multiprocessor's warps that registers and shared memory allow.
import { describe, expect, it } from 'vitest';

interface PtxasRow {
  kernel: string;
  architecture: string;
  registers: number;
  stack: number;
  spilled: number;
  shared: number;
}
const support = (name: string): string =>
  new URL(`../../scripts/support/${name}.mjs`, import.meta.url).href;
const { parsePtxas, latestRows, occupancy } = (await import(support('ptxas'))) as {
  parsePtxas: (text: string) => PtxasRow[];
  latestRows: (text: string) => PtxasRow[];
  occupancy: (
    row: Pick<PtxasRow, 'registers' | 'architecture'> & { shared?: number },
    threads: number,
    dynamic?: number,
  ) => number;
};
const { forbiddenSpills, overLimits } = (await import(support('cuda_build'))) as {
  forbiddenSpills: (rows: PtxasRow[]) => PtxasRow[];
  overLimits: (rows: PtxasRow[]) => { kernel: string; takes: string }[];
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
  it('names file and function, and adds up the spilled bytes', () => {
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

describe('latestRows', () => {
  it('has the last build of each kernel', () => {
    const again = kText.replaceAll('Used 44', 'Used 40').replace('12 bytes spill', '0 bytes spill');
    expect(latestRows(kText + again)).toEqual(parsePtxas(again));
  });
});

describe('the limits', () => {
  const row = (change: Partial<PtxasRow>): PtxasRow => ({
    ...{ kernel: 'norm: normalise_rows If', architecture: 'sm_90', registers: 128, stack: 0 },
    ...{ spilled: 0, shared: 26 * 1024, ...change },
  });

  it('allow no kernel to spill, except one in f64', () => {
    expect(forbiddenSpills([row({})])).toEqual([]);
    expect(forbiddenSpills([row({ spilled: 4 })])).toHaveLength(1);
    expect(forbiddenSpills([row({ kernel: 'head_rows: head_rows Id', spilled: 216 })])).toEqual([]);
    expect(forbiddenSpills([row({ kernel: 'head_rows: head_rows If', spilled: 4 })])).toHaveLength(
      1,
    );
  });

  it('of registers and static shared memory apply, except to kernels with tiles in registers', () => {
    expect(overLimits([row({})])).toEqual([]);
    expect(overLimits([row({ registers: 129 })])[0]?.takes).toContain('129 registers');
    expect(overLimits([row({ shared: 26 * 1024 + 1 })])[0]?.takes).toContain('26625 bytes');
    const tile = { kernel: 'attention: forward Li64E', registers: 244 };
    expect(overLimits([row(tile)])).toEqual([]);
    expect(overLimits([row({ ...tile, shared: 30000 })])).toHaveLength(1);
  });
});

describe('occupancy', () => {
  it('counts whole blocks of whole warps', () => {
    // 64 registers x 32 lanes = 2048 per warp: 32 warps in 4 blocks of 8, of the 64 warps of sm_80.
    expect(occupancy({ registers: 64, architecture: 'sm_80' }, 256)).toBe(0.5);
    expect(occupancy({ registers: 32, architecture: 'sm_86' }, 256)).toBe(1);
    // 255 registers: 8192 per warp, so 8 warps, of which one block uses 6.
    expect(occupancy({ registers: 255, architecture: 'sm_90' }, 192)).toBe(6 / 64);
  });

  it('counts shared memory, including the reserve for each block', () => {
    const row = { registers: 200, architecture: 'sm_89' }; // 6400 per warp: two blocks of 4 warps
    expect(occupancy(row, 128)).toBe(8 / 48);
    expect(occupancy(row, 128, 55_296)).toBe(4 / 48); // attention, D = 64
    expect(occupancy({ ...row, architecture: 'sm_80' }, 128, 55_296)).toBe(8 / 64);
    expect(occupancy({ ...row, shared: 1024 }, 128, 49 * 1024)).toBe(8 / 48 / 2);
    expect(occupancy({ ...row, shared: 0 }, 128, 49 * 1024)).toBe(8 / 48);
  });

  it('is limited by the number of blocks, and refuses an unknown architecture', () => {
    expect(occupancy({ registers: 16, architecture: 'sm_86' }, 32)).toBe(16 / 48);
    expect(() => occupancy({ registers: 16, architecture: 'sm_70' }, 32)).toThrow('sm_70');
  });
});
