// The oldest Node that each part works on. The npm scripts load this file ahead of everything else (`node -r`), so that an
// old Node says what it is instead of failing to parse the modules; hence its old-fashioned JavaScript.
'use strict';

// What runs and builds from any Node 20 on; what node-gyp and vitest's bundler, the tools of the tests, ask for on top.
var least = { build: [20, 0], test: [20, 17] };

/** The message about a Node that is too old for a part ('build' or 'test'), or null. */
function tooOld(part, version) {
  var parts = version.split('.').map(Number);
  var wanted = least[part];
  if (parts[0] > wanted[0] || (parts[0] === wanted[0] && parts[1] >= wanted[1])) return null;
  var who = part === 'test' ? "balora's tests need" : 'balora needs';
  return who + ' Node >= ' + wanted.join('.') + ', this is Node ' + version + '.';
}

module.exports = { tooOld: tooOld };

var message = tooOld('build', process.versions.node);
if (message !== null) {
  process.stderr.write('\nerror ' + message + '\n');
  process.exit(1);
}
