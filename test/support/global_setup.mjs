// Programs that tests start as processes of their own run the compiled library and the compiled benchmark: make sure that dist/ and
// build/harness are the current ones.
import { ensureBench } from '../../scripts/support/bench_build.mjs';

export async function setup() {
  await ensureBench();
}
