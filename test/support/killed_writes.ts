/**
 * A process that is killed between two changes to the file system, without a process: from a given change on, every one fails, those
 * of clean-ups too, so that the files stay as a kill would have left them. Files that the engine writes are not among them: they
 * appear under their name in one step. Nothing waits for the disk, since a kill loses nothing that the system has accepted.
 */
import fs, { type FileHandle } from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';

const kChanges = ['mkdir', 'rename', 'rm', 'rmdir', 'link', 'writeFile'] as const;
const kHandleChanges = ['appendFile', 'writeFile'] as const;

/** The error of a change after the kill. */
export class Killed extends Error {}

type Call = (...args: never[]) => Promise<unknown>;

/**
 * Runs `body`, which makes at most `allowed` changes to the file system.
 * @returns the number of changes that it tried to make
 */
export async function withChanges(allowed: number, body: () => Promise<void>): Promise<number> {
  let made = 0;
  const counted = (call: Call): Call =>
    (async (...args) => {
      made++;
      if (made > allowed) throw new Killed();
      return call(...args);
    }) as Call;
  const originals = new Map<string, Call>();
  const replace = (name: string, by: Call): void => {
    originals.set(name, Reflect.get(fs, name));
    Reflect.set(fs, name, by);
  };
  for (const name of kChanges) replace(name, counted(Reflect.get(fs, name)));
  const { open } = fs;
  replace('open', (async (...args: Parameters<typeof open>) => {
    if (/[wa]/.test(String(args[1] ?? 'r'))) await counted(async () => {})();
    const handle = await open(...args);
    for (const name of kHandleChanges) {
      const call: Call = Reflect.get(handle, name).bind(handle);
      Reflect.set(handle, name, counted(call));
    }
    handle.sync = async () => {};
    return handle as FileHandle;
  }) as unknown as Call);
  syncBuiltinESMExports();
  try {
    await body();
  } finally {
    for (const [name, call] of originals) Reflect.set(fs, name, call);
    syncBuiltinESMExports();
  }
  return made;
}
