// Detection of build folders that CMake would refuse or misuse, by the machine and the place in their cache.
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { isAbsolute, join } from 'node:path';

/** The entries of a CMakeCache.txt, by name. */
export function parseCache(text) {
  const entries = [...text.matchAll(/^([^#/\s][^:=]*):[A-Z]+=(.*)$/gm)];
  return Object.fromEntries(entries.map(([, name, value]) => [name, value]));
}

/**
 * The reason why a build folder must be made anew, or null.
 * @param cache the entries of its CMakeCache.txt
 * @param source where the sources are now
 * @param folder where the build folder is now
 * @param exists whether a file exists
 */
export function staleReason({ cache, source, folder, exists = existsSync }) {
  const home = cache.CMAKE_HOME_DIRECTORY;
  if (home !== undefined && home !== source) return `it was made for ${home}`;
  const made = cache.CMAKE_CACHEFILE_DIR;
  if (made !== undefined && made !== folder) return `it was made in ${made}`;
  const tools = [cache.CMAKE_CXX_COMPILER, cache.CMAKE_MAKE_PROGRAM, cache.CMAKE_COMMAND];
  const gone = tools.find((tool) => tool && isAbsolute(tool) && !exists(tool));
  return gone === undefined ? null : `${gone} is gone`;
}

/** Removes a build folder that cannot be used here; the reason, or null where it stays. */
export function removeStale(folder, source) {
  const file = join(folder, 'CMakeCache.txt');
  if (!existsSync(file)) return null;
  const reason = staleReason({ cache: parseCache(readFileSync(file, 'utf8')), source, folder });
  if (reason !== null) rmSync(folder, { recursive: true, force: true });
  return reason;
}
