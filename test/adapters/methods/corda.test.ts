import { it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import { add, eigh, gram, matmul, mul, reshape, svd, transpose } from '../../../lib/ops/index.ts';
import { noGrad, scope, type Tensor, tensor } from '../../../lib/tensor.ts';
import { calibrate } from '../../../lib/train/calibrate.ts';
import { expectNear } from '../../support/tiny_adapters.ts';
import { TinyModel, tinyBatches, tinySource } from '../../support/tiny_model.ts';

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float64Array);
const data = tinySource(tinyBatches({ rows: 24 }));

/** The identity of a size, f64. */
const identity = (n: number): Tensor =>
  tensor(
    Float64Array.from({ length: n * n }, (_, at) => (at % (n + 1) === 0 ? 1 : 0)),
    { shape: [n, n] },
  );

it.each(['corda', 'corda_kpm'] as const)(
  '%s is V^T C^-1 with the inverse, as the paper has it',
  async (init) => {
    const [r, loraAlpha] = [3, 6];
    const model = new TinyModel({ layers: 1 });
    // The inputs of the first layer depend on the embedding and the norm alone.
    const embedded = scope(() =>
      noGrad(() => {
        const covariances = tinyBatches({ rows: 24 }).flatMap(({ inputIds, cuSeqlens }) =>
          [0, 1].map((b) => {
            const ids = inputIds.slice(cuSeqlens[b], cuSeqlens[b + 1]);
            const rows = model.layers[0]?.norm.forward(embeddingOf(model, ids)) as Tensor;
            const largest = Math.max(...numbers(rows.to('f64')));
            return mul(gram(rows), 1 / largest ** 2);
          }),
        );
        return mul(
          covariances.reduce((sum, one) => add(sum, one)),
          1 / covariances.length,
        );
      }),
    );
    const config = { r, loraAlpha, initLoraWeights: init, targetModules: ['gate_proj'] };
    const calibration = await calibrate(model, config, { data });
    const tuned = await AdapterModel.create(model, config, { calibration });
    const [{ pair, linear, scale }] = tuned.modules as [(typeof tuned.modules)[number]];
    const { a, b } = scope(() =>
      noGrad(() => {
        const trace = numbers(embedded)
          .filter((_, at) => at % 9 === 0)
          .reduce((x, y) => x + y, 0);
        const damped = add(embedded, mul(identity(8), (0.01 * trace) / 8));
        const { values, vectors } = eigh(damped);
        const inverse = matmul(
          mul(
            vectors,
            reshape(
              tensor(
                numbers(values).map((v) => 1 / v),
                { dtype: 'f64' },
              ),
              [1, 8],
            ),
          ),
          vectors,
          { transposeB: true },
        );
        const { u, s, vt } = svd(matmul(linear.weight.to('f64'), damped));
        const chosen = Array.from({ length: r }, (_, i) => (init === 'corda' ? i : 8 - r + i));
        const rows = numbers(matmul(vt, inverse));
        const columns = numbers(transpose(u));
        const roots = numbers(s).map((value) => Math.sqrt(value / scale));
        return {
          a: chosen.flatMap((i) =>
            rows.slice(8 * i, 8 * i + 8).map((v) => v * (roots[i] as number)),
          ),
          b: chosen.map((i) =>
            columns.slice(16 * i, 16 * i + 16).map((v) => v * (roots[i] as number)),
          ),
        };
      }),
    );
    // Signs of a row of A and its column of B are free together.
    const found = scope(() => ({ a: numbers(pair.a), b: numbers(transpose(pair.b)) }));
    for (let i = 0; i < r; i++) {
      const column = found.b.slice(16 * i, 16 * i + 16);
      const expected = b[i] as number[];
      const sign = Math.sign((column[0] as number) * (expected[0] as number));
      expectNear(
        column.map((v) => sign * v),
        expected,
        1e-5,
      );
      expectNear(
        found.a.slice(8 * i, 8 * i + 8).map((v) => sign * v),
        a.slice(8 * i, 8 * i + 8),
        1e-4,
      );
    }
  },
);

function embeddingOf({ embed_tokens }: TinyModel, ids: Int32Array): Tensor {
  const table = numbers(embed_tokens.to('f64'));
  const rows = Array.from(ids, (id) => table.slice(8 * id, 8 * id + 8)).flat();
  return tensor(Float32Array.from(rows), { shape: [ids.length, 8] });
}
