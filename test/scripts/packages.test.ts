// Package managers: the printed commands, the packages that apt offers, and network errors in its log.
import { describe, expect, it } from 'vitest';

interface Module {
  installCommand(manager: string, packages: string[], sudo?: string): string;
  commandsFor(
    names: Record<string, string[]>,
    machine: { manager: string | null; root?: boolean; sudo?: boolean },
  ): string;
  parsePolicy(text: string): Record<string, string>;
  proxies(env: Record<string, string>): string[];
  networkTrouble(log: string): string | null;
  systemName(text: string): string;
}
// The script has no types.
const path = '../../scripts/support/packages.mjs';
const { installCommand, commandsFor, parsePolicy, proxies, networkTrouble, systemName } =
  (await import(path)) as Module;

describe('the command to install', () => {
  it.each([
    ['apt', 'sudo apt-get update && sudo apt-get install -y --no-install-recommends g++ cmake'],
    ['dnf', 'sudo dnf install -y g++ cmake'],
    ['pacman', 'sudo pacman -S --needed g++ cmake'],
    ['apk', 'sudo apk add g++ cmake'],
  ])('is exact for %s', (manager, command) => {
    expect(installCommand(manager, ['g++', 'cmake', 'g++'])).toBe(command);
    expect(installCommand(manager, ['g++', 'cmake'], '')).toBe(command.replaceAll('sudo ', ''));
  });

  const names = {
    apt: ['libdnnl-dev'],
    dnf: ['onednn-devel'],
    pacman: ['onednn'],
    apk: ['onednn-dev'],
  };
  it("is that of the machine's manager, for root, with sudo and without", () => {
    const said = (root: boolean, sudo: boolean) =>
      commandsFor(names, { manager: 'dnf', root, sudo });
    expect(said(false, true)).toBe('  sudo dnf install -y onednn-devel');
    expect(said(true, true)).toBe('  dnf install -y onednn-devel');
    expect(said(false, false)).toBe('as root:\n  dnf install -y onednn-devel');
  });

  it('is given for all four managers where the machine has none of them', () => {
    const lines = commandsFor(names, { manager: null, root: false, sudo: true }).split('\n');
    expect(lines.map((line) => line.trim().split(/ +/)[0])).toEqual([
      'apt',
      'dnf',
      'pacman',
      'apk',
    ]);
    expect(lines[3]).toBe('  apk     sudo apk add onednn-dev');
  });
});

it('reads the candidates in the output of apt-cache policy', () => {
  const text = `g++:
  Installed: (none)
  Candidate: 4:12.2.0-3
  Version table:
     4:12.2.0-3 500
        500 http://mirror.example/debian bookworm/main amd64 Packages
clang-format-18:
  Installed: (none)
  Candidate: (none)
  Version table:
cmake:
  Installed: 3.25.1-1
  Candidate: 3.25.1-1
`;
  expect(parsePolicy(text)).toEqual({ 'g++': '4:12.2.0-3', cmake: '3.25.1-1' });
  expect(parsePolicy('')).toEqual({});
});

it('passes proxies on under the names that apt reads', () => {
  expect(proxies({ HTTP_PROXY: 'http://p:1', https_proxy: 'http://p:2', OTHER: 'x' })).toEqual([
    'http_proxy=http://p:1',
    'https_proxy=http://p:2',
  ]);
  expect(proxies({})).toEqual([]);
});

it.each([
  ["W: Failed to fetch http://x/InRelease  Temporary failure resolving 'x'", true],
  [
    'Err:1 http://x bookworm InRelease\n  Could not connect to x:80 (1.2.3.4). - connect (111: Connection refused)',
    true,
  ],
  ['E: Unable to locate package clang-format-18', false],
  ['', false],
])('sees a network that does not answer in %j', (log, is) => {
  expect(networkTrouble(log) !== null).toBe(is);
});

it('reads the name of the system', () => {
  const text = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_CODENAME=bookworm\n';
  expect(systemName(text)).toBe('Debian GNU/Linux 12 (bookworm)');
  expect(systemName('')).toBe('this system');
});
