// The oldest Node that the library and its tools work on: node-gyp asks for 20.17, and zlib.crc32 is there from 22.2 on, and
// in 20.15 and its successors, but not in 21. The npm scripts load this file ahead of everything else (`node -r`), so that
// an old Node says what it is instead of failing to parse the modules; hence its old-fashioned JavaScript.
'use strict';

var least = [20, 17];
var leastAfter21 = [22, 2];

/** The message about a Node that is too old, or null. */
function tooOld(version) {
  var parts = version.split('.').map(Number);
  if (parts[0] === least[0] && parts[1] >= least[1]) return null;
  if (parts[0] > leastAfter21[0]) return null;
  if (parts[0] === leastAfter21[0] && parts[1] >= leastAfter21[1]) return null;
  return (
    'balora needs Node ' +
    least.join('.') +
    ' or newer of Node ' +
    least[0] +
    ', or Node >= ' +
    leastAfter21.join('.') +
    '; this is Node ' +
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
