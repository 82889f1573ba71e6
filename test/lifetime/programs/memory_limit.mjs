// Joins a control group and asks for more memory than its limit, as one tensor, as many, and as weights. Prints the messages as JSON.
//
//   node memory_limit.mjs GROUP
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AutoModelForCausalLM, deviceInfo, synchronize } from 'balora';
import { ones, zeros } from 'balora/ops';

writeFileSync(join(process.argv[2], 'cgroup.procs'), String(process.pid));
const messageOf = (work) =>
  work().then(
    () => 'it was given',
    ({ code, message }) => `${code} ${message}`,
  );

const { freeBytes: free, totalBytes: total } = deviceInfo('cpu');
const tensor = await messageOf(() => zeros([2 ** 28]).data());
const kept = [];
const many = await messageOf(async () => {
  for (let i = 0; i < 1000; i++) kept.push(zeros([2 ** 18]));
  await synchronize();
});
for (const part of kept) part.dispose();
const config = {
  model_type: 'llama',
  ...{ vocab_size: Math.floor((1.5 * free) / 4 / 1024), hidden_size: 1024, intermediate_size: 16 },
  ...{ num_hidden_layers: 1, num_attention_heads: 16, tie_word_embeddings: true },
};
const weights = await messageOf(() => AutoModelForCausalLM.fromConfig(config));
const after = [...(await ones([2]).data())];
console.log(JSON.stringify({ total, free, tensor, many, weights, after }));
