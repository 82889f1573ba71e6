// The oldest Node that the library and its tools work on: node-gyp and vitest's bundler ask for it, and zlib.crc32 and
// util.styleText are there from 20.15 on. The npm scripts load this file ahead of everything else (`node -r`), so that an
// old Node says what it is instead of failing to parse the modules; hence its old-fashioned JavaScript.
'use strict';

var least = [20, 17];

/** The message about a Node that is too old, or null. */
function tooOld(version) {
  var parts = version.split('.').map(Number);
  if (parts[0] > least[0] || (parts[0] === least[0] && parts[1] >= least[1])) return null;
  return (
    'balora needs Node >= ' +
    least.join('.') +
    ', this is Node ' +
    version +
    '. Install a newer one from https://nodejs.org and run this again.'
  );
}

module.exports = { tooOld: tooOld };

var message = tooOld(process.versions.node);
if (message !== null) {
  process.stderr.write('\nerror ' + message + '\n');
  process.exit(1);
}
