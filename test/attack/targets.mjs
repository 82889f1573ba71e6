// The targets of the attack. Each is the default export of a small file in targets/:
//
// - what: what it attacks
// - open(context): made once in each process; its result is the `state` of the functions below
// - input(random, state, index): one input, which the choices alone determine. `files` of it are written into a folder
// - run(input, state, folder): does with balora what a user does with such an input, and throws a Finding where the result is wrong.
//   An ArgumentError, UnsupportedError or FormatError is a good answer to a bad input
// - accepts: further codes of errors that are good answers
// - mentions(input): texts of which an error's message must have one
// - quotes: a pattern of messages that quote the text of a library, or of an input that is made in run()
// - share: its part of the time, 1 unless given
// - perProcess: how many inputs run in one process
// - hangSeconds, slowSeconds, peakMiB, growthMiB: limits, where the general ones do not fit
// - elsewhere: whether balora runs in processes of their own, so that the open files of this one say nothing
// - missing(): why this machine cannot run it, or null

/** The names of all targets, in the order in which they are listed. */
export const kTargets = [
  ...['safetensors', 'gguf', 'gguf_model', 'shards', 'nf4', 'config', 'adapter', 'tokenizer', 'chat_template'],
  ...['rows', 'run_config', 'checkpoint', 'teacher_cache', 'hub', 'links', 'generate', 'long_prefill', 'serve', 'ops', 'calls', 'options'],
  ...['kills', 'disk', 'full_disk', 'workers', 'programs', 'exports'],
];

/** Loads a target by its name; a path is that of another file with one, for the tests of the attack itself. */
export async function loadTarget(name) {
  const file = name.endsWith('.mjs') ? new URL(`file://${name}`) : new URL(`targets/${name}.mjs`, import.meta.url);
  return { name, ...(await import(file)).default };
}
