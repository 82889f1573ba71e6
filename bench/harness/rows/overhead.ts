/** Cost of LoRA pairs in relation to the frozen linears that they adapt: all groups of a layer, forward and backward. */
import { groupsOf } from '../flops.ts';
import { disposeOperands, type MicroContext } from '../kernels/kit.ts';
import { type LinearVariant, linearCase } from '../kernels/linears.ts';
import { shapeNamed, sizesOf } from '../shapes.ts';
import { median } from '../statistics.ts';
import { timeOps } from '../timing.ts';
import type { BenchDType, RatioRow } from '../types.ts';

export interface OverheadInput {
  readonly name: string;
  readonly shape: string;
  readonly dtype: BenchDType;
  readonly rank: number;
  /** Rows of the micro-batch. Default 2048. */
  readonly rows?: number;
}

export async function overheadRow(input: OverheadInput): Promise<RatioRow> {
  const { name, shape, dtype, rank, rows = 2048 } = input;
  const sizes = sizesOf(shapeNamed(shape));
  const context: MicroContext = {
    ...{ sizes, dtype, rows, sequences: 4, lossRows: rows / 2, rank },
    large: { rows, v: sizes.v },
  };
  const seconds = async (variant: LinearVariant): Promise<number> => {
    let total = 0;
    for (const index of groupsOf(sizes).keys()) {
      const { run, prepare } = linearCase(context, index, variant);
      const ops = [variant.backward ? 'linear_backward' : 'linear'];
      total += median(await timeOps(run, { prepare, ops, most: 20 }));
      disposeOperands();
    }
    return total;
  };
  const base = (await seconds({})) + (await seconds({ backward: true }));
  const lora = (await seconds({ lora: true })) + (await seconds({ lora: true, backward: true }));
  const ms = (value: number): string => (value * 1e3).toFixed(3);
  return {
    ...{ kind: 'ratio', name, dtype, value: lora / base },
    meaning:
      `time of a layer's linears with LoRA (r ${rank}) over that of the frozen ones alone, forward and backward, ` +
      `${rows} rows: ${ms(lora)} over ${ms(base)} ms`,
  };
}
