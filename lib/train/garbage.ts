/** The garbage of JavaScript, which V8 lets lie as long as it finds memory to be plentiful. */

/**
 * Collects all of it, in some 30 ms: loading a model and measuring its passes leaves about 25 MiB. It goes by the inspector's
 * protocol, since V8's own call needs a flag of the process. Where Node.js has no inspector, or may not use it (its permission
 * model), V8 collects when it likes.
 */
export async function collectGarbage(): Promise<void> {
  if (!process.features.inspector) return;
  const { Session } = await import('node:inspector');
  const session = new Session();
  try {
    session.connect();
  } catch {
    return;
  }
  try {
    await new Promise<void>((resolve, reject) => {
      session.post('HeapProfiler.collectGarbage', (error) => (error ? reject(error) : resolve()));
    });
  } finally {
    session.disconnect();
  }
  // Tensors that were collected are released in a later turn.
  await new Promise<void>((resolve) => setImmediate(resolve));
}
