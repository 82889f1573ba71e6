/**
 * OLoRA (Büyükakyüz 2024): with W = Q R, B is the first r columns of Q and A the first r rows of R. It is not divided by the scale:
 * the initial update is s Q_r R_r.
 */
import { matmul, qr, slice } from '../../ops/index.ts';
import { defineMethod, defineNamedStart } from './method.ts';

const start = defineNamedStart('olora', {
  title: 'B the first r columns of Q, A the first r rows of R, where W = Q R',
  fromWeight: true,
  pairs: (modules) =>
    modules.map(({ weight, r }) => {
      // The first r columns of Q depend on those of W alone, and R = Q^T W, so the others need not be orthogonalised.
      const w = weight.to('f64');
      const { q: b } = qr(slice(w, 1, { stop: r }));
      return { a: matmul(b, w, { transposeA: true }), b };
    }),
});

export const olora = defineMethod({
  name: 'olora',
  title: 'OLoRA: LoRA that starts from the QR decomposition of each weight',
  about:
    "The part of W that is trained spans its first r columns, in an orthonormal B. Take it where PiSSA's search for singular " +
    'vectors takes too long: it is one product a weight. The update is not divided by the scale, so that the learning rate ' +
    'depends on loraAlpha more than elsewhere.',
  differs:
    'it edits the base, and gives the matrices a smaller rank without a word where r is larger than the weight allows, which is ' +
    'refused here',
  source: 'arXiv 2406.01775',
  since: '0.2.0',
  adapter: { initLoraWeights: 'olora' },
  starts: [start],
});
