// GET /health of a server whose base is changed on disk.
import { appendFileSync, cpSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { demoCheckpoint } from '../../lib/models/demo_checkpoint.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { openServer } from '../../lib/serve/server.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { send } from '../support/api_server.ts';

it('says 503 once a file with weights that are its pages has changed, and no answer comes from it', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'balora-changed-base-'));
  try {
    cpSync(demoCheckpoint, folder, { recursive: true });
    using model = await AutoModelForCausalLM.fromPretrained(folder, { dtype: 'bf16' });
    const tokenizer = await Tokenizer.fromPretrained(folder);
    const server = await openServer({
      ...{ host: '127.0.0.1', port: 0, apiKey: null, maxConcurrent: 1, maxWaiting: 0 },
    });
    server.serve({ generator: model, model, tokenizer, models: [{ id: 'm', adapter: undefined }] });
    const ask = () =>
      send(server, '/v1/completions', { body: { model: 'm', prompt: [1, 2], max_tokens: 1 } });
    expect((await ask()).status).toBe(200);
    expect(await send(server, '/health')).toMatchObject({ status: 200, json: { status: 'ok' } });
    const [weights] = readdirSync(folder).filter((name) => name.endsWith('.safetensors'));
    appendFileSync(join(folder, weights as string), 'x');
    const changed = { status: 503, json: { status: 'base changed' } };
    expect(await send(server, '/health')).toMatchObject(changed);
    const refused = await ask();
    expect(refused).toMatchObject({ status: 500, json: { error: { code: 'ERR_FILE_CHANGED' } } });
    expect(await send(server, '/health')).toMatchObject(changed);
    await server.close();
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
