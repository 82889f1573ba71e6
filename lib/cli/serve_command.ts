/** `balora serve`: a model and its adapters behind OpenAI's API. */
import { once } from 'node:events';
import { basename } from 'node:path';
import { AdapterModel } from '../adapters/adapter_model.ts';
import { ArgumentError } from '../errors.ts';
import type { GeneratingModel } from '../generate/open_session.ts';
import { defaultsOf } from '../options/option.ts';
import { requestText } from '../serve/request_line.ts';
import { checkNames, type ServedModel } from '../serve/served_models.ts';
import { type ApiServer, openServer } from '../serve/server.ts';
import { printableStack } from '../shown.ts';
import { runWithOptions } from './command_options.ts';
import { type AdapterPath, loadGenerator } from './generator.ts';
import { abortable } from './interrupt.ts';
import { pick } from './option_table.ts';
import type { CliContext, CommandModule } from './program.ts';
import { Progress } from './progress.ts';
import { kServeOptions, type ServeCommandSettings } from './serve_options.ts';
import type { RunContext } from './tasks/cli_task.ts';
import { cliTaskOf } from './tasks/list.ts';

export const addServe: CommandModule = (program, context, run) => {
  const command = program
    .command('serve')
    .description("serve a model and its adapters by OpenAI's HTTP API");
  runWithOptions(command, kServeOptions, run, async (settings) => {
    if (settings.task === 'sequence-classification') {
      throw new ArgumentError('a classifier does not generate text, so that it is not served');
    }
    const progress = new Progress(context.stderr);
    await abortable(
      (signal) => serve(settings, { context, progress, signal }),
      () => progress.message('stopping (interrupt again to quit at once)'),
    );
    return 0;
  });
};

async function serve(
  settings: ServeCommandSettings,
  { context, progress, signal }: RunContext & { context: CliContext },
): Promise<void> {
  const { host, port, maxConcurrent, maxWaiting, maxPromptTokens, grace } = {
    ...defaultsOf(pick(kServeOptions, ['host', 'port', 'maxConcurrent', 'maxWaiting', 'grace'])),
    ...settings,
  };
  const adapters = Object.entries(settings.adapter ?? {}).map(([name, path]) => ({ name, path }));
  const own = settings.servedModelName ?? basename(settings.model as string);
  checkNames([own, ...adapters.map(({ name }) => name)].map((id) => ({ id, adapter: null })));
  // The port is taken before the model is loaded, which may take minutes.
  const server = await openServer({
    ...{ host, port, maxConcurrent, maxWaiting, maxPromptTokens, graceMs: 1000 * grace },
    apiKey: settings.apiKey ?? process.env.BALORA_API_KEY ?? null,
    onRequest: (line) => context.stderr.write(`${requestText(line)}\n`),
    onError: (error) => progress.message(...`warning: ${printableStack(error)}`.split('\n')),
  });
  try {
    await load(server, settings, { own, adapters, progress });
    progress.message(`ready at ${server.url}/v1`);
    if (!signal.aborted) await once(signal, 'abort');
  } finally {
    await server.close();
  }
}

/** Loads the model and the adapters, and serves them. */
async function load(
  server: ApiServer,
  settings: ServeCommandSettings,
  {
    own,
    adapters,
    progress,
  }: { own: string; adapters: readonly Required<AdapterPath>[]; progress: Progress },
): Promise<void> {
  const task = cliTaskOf(settings);
  const { model, tuned, tokenizer } = await loadGenerator(settings, { task, adapters, progress });
  const models: ServedModel[] = adapters.map(({ name }) => ({ id: name, adapter: name }));
  if (!(tuned instanceof AdapterModel)) models.unshift({ id: own, adapter: undefined });
  else if (tuned.hasTeacher) models.unshift({ id: own, adapter: null });
  else progress.warn(`${own} is a residual, which is not served without its adapter`);
  server.serve({ models, tokenizer, generator: tuned, model: model as GeneratingModel });
  progress.message(`models: ${models.map(({ id }) => id).join(', ')}`);
}
