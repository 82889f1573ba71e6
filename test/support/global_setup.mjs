// Brings dist/ and build/harness up to date, since programs that tests start as processes run the compiled library and benchmark.
import { ensureBench } from '../../scripts/support/bench_build.mjs';

export async function setup() {
  await ensureBench();
}
