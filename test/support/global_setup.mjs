// Programs that tests start as processes of their own run the compiled library: make sure dist/ is the current one.
import { ensureTypeScript } from '../../scripts/support/build_steps.mjs';

export async function setup() {
  await ensureTypeScript({ check: false });
}
