// Asks a tuned model and the model before tuning the same prompt, in the template that rows of prompt and response are trained in.
//
//   node examples/generate.mjs [ADAPTER] [PROMPT] [MODEL]   after node examples/train.mjs [ADAPTER] [MODEL]
import { AdapterModel, AutoModelForCausalLM, demoCheckpoint, generate, Tokenizer } from 'balora';
import { PromptTemplate } from 'balora/data';

const [folder = 'output/adapter', asked = 'There she', path = demoCheckpoint] =
  process.argv.slice(2);

const tuned = await AdapterModel.fromPretrained(
  await AutoModelForCausalLM.fromPretrained(path),
  folder,
);
const tokenizer = await Tokenizer.fromPretrained(path);
const prompt = new PromptTemplate('alpaca').fillWith(asked);
for (const [name, adapter] of [
  ['before', null],
  ['after', tuned.active],
]) {
  const [{ text }] = await generate(tuned, { tokenizer, prompt, adapter, maxNewTokens: 20 }).result;
  console.log(`${name}: ${text.trim()}`);
}
