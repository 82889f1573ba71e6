// Writes THIRD_PARTY.md: everything by others that the npm package needs or contains, with version, licence and source, from
// package-lock.json, the installed packages and the list of native libraries below. `--check` only compares, and fails when the file is
// stale. A package whose licence is not known to be compatible with Apache-2.0 is an error.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { kOldestOneDnn } from './support/onednn.mjs';
import { inRoot, main, SetupError } from './support/shell.mjs';

const kFile = 'THIRD_PARTY.md';
/** Licences under which a package may be used beside, or compiled into, one under Apache-2.0. */
const kCompatible = [
  'MIT',
  'ISC',
  'Apache-2.0',
  'BSD-2-Clause',
  'BSD-3-Clause',
  '0BSD',
  'BlueOak-1.0.0',
];
/** Packages for development whose headers are compiled into the addon. */
const kHeaders = ['node-addon-api', 'node-api-headers'];

/** Native libraries: what is in the package's folder prebuilds/, or compiled into the addon. */
const kNative = [
  {
    name: 'oneDNN',
    version: `${kOldestOneDnn.join('.')} or newer, by the machine that builds`,
    licence: 'Apache-2.0',
    source: 'https://github.com/uxlfoundation/oneDNN',
    how: 'a shared library in prebuilds/, or in the addon; it contains Xbyak and ittnotify (BSD-3-Clause) and lists its other parts in THIRD-PARTY-PROGRAMS, which is copied beside it',
  },
  {
    name: 'Eigen',
    version: '3.4 or newer, by the machine that builds',
    licence: 'MPL-2.0 (EIGEN_MPL2_ONLY)',
    source: 'https://gitlab.com/libeigen/eigen',
    how: 'headers, compiled into the addon unchanged',
  },
  {
    name: 'libgomp',
    version: 'that of the compiler',
    licence: 'GPL-3.0-or-later with the GCC Runtime Library Exception 3.1',
    source: 'https://gcc.gnu.org',
    how: 'a shared library in prebuilds/, unchanged',
  },
];

const cell = (text) => String(text).replaceAll('|', '\\|');

/** The address of a package's sources, as a person opens it. */
function sourceOf({ repository, homepage }, name) {
  const url = typeof repository === 'string' ? repository : repository?.url;
  const plain = url
    ?.replace(/^git\+/, '')
    .replace(/^(git:\/\/|ssh:\/\/git@|git@)github\.com[/:]/, 'https://github.com/')
    .replace(/^github:/, 'https://github.com/')
    .replace(/\.git$/, '');
  if (plain?.startsWith('http')) return plain;
  if (/^[\w.-]+\/[\w.-]+$/.test(plain ?? '')) return `https://github.com/${plain}`;
  return homepage ?? `https://www.npmjs.com/package/${name}`;
}

/** The rows of the npm packages: those that an installation of balora brings, and those whose headers are compiled. */
function packages() {
  const { packages: locked } = JSON.parse(readFileSync(inRoot('package-lock.json'), 'utf8'));
  const wanted = Object.entries(locked).flatMap(([path, entry]) => {
    const name = path.slice(path.lastIndexOf('node_modules/') + 'node_modules/'.length);
    const headers = kHeaders.includes(name);
    return path !== '' && (!entry.dev || headers) ? [{ path, name, headers, ...entry }] : [];
  });
  return wanted
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .map(({ path, name, version, license, headers }) => {
      const file = inRoot(path, 'package.json');
      if (!existsSync(file)) throw new SetupError(`${path} is not installed: run npm run setup`);
      if (!kCompatible.includes(license)) {
        throw new SetupError(
          `${name} has the licence ${license}, which scripts/gen_third_party.mjs does not list as compatible with Apache-2.0`,
        );
      }
      const how = headers ? 'headers, compiled into the addon' : 'installed by npm beside balora';
      const source = sourceOf(JSON.parse(readFileSync(file, 'utf8')), name);
      return { name, version, licence: license, source, how };
    });
}

function text() {
  const rows = [...packages(), ...kNative].map(({ name, version, licence, source, how }) =>
    [name, version, licence, source, how].map(cell).join(' | '),
  );
  return `# Third-party software

What the npm package needs or contains by others. \`npm run gen:third-party\` writes this file.
Tools for development and tests are not in it; package-lock.json has them.

| name | version | licence | source | use |
| --- | --- | --- | --- | --- |
${rows.map((row) => `| ${row} |`).join('\n')}

The licence texts of the native libraries are beside them in prebuilds/; those of the npm packages are in the packages.
`;
}

await main(async ([flag]) => {
  const target = inRoot(kFile);
  const wanted = text();
  if (flag !== '--check') {
    writeFileSync(target, wanted);
  } else if (!existsSync(target) || readFileSync(target, 'utf8') !== wanted) {
    throw new SetupError(`${kFile} is stale: run npm run gen:third-party`);
  }
});
