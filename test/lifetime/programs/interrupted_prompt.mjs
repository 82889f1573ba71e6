// Runs `balora generate` with a prompt of about 8,000 tokens, and says when the engine computes it, and how much
// processor time it used from SIGINT to its end.
const { opTimes } = await import('../../../dist/runtime.js');

const timer = setInterval(() => {
  if (!opTimes().some(({ op }) => op === 'attention')) return;
  process.stdout.write('begun\n');
  clearInterval(timer);
}, 50);
let interrupted;
process.once('SIGINT', () => {
  interrupted = process.cpuUsage();
});
process.once('exit', () => {
  const { user, system } = process.cpuUsage(interrupted);
  process.stdout.write(`ended ${(user + system) / 1000}\n`);
});
const prompt = 'one two three '.repeat(2600);
process.argv.splice(2, 1, 'generate', '--model', process.argv[2], '--raw', '--prompt', prompt);
await import('../../../dist/cli/main.js');
