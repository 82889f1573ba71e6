// Merges an adapter into its base and writes a model folder with the tokenizer, for a runtime without support for adapters.
//
//   node examples/merge.mjs [ADAPTER] [OUTPUT] [MODEL]   after node examples/train.mjs [ADAPTER] [MODEL]
import { AdapterModel, AutoModelForCausalLM, demoCheckpoint, saveMerged, Tokenizer } from 'balora';

const args = process.argv.slice(2);
const [adapter = 'output/adapter', output = 'output/merged', path = demoCheckpoint] = args;

const model = await AutoModelForCausalLM.fromPretrained(path);
const tuned = await AdapterModel.fromPretrained(model, adapter);
const { maxAbsError, module } = await saveMerged(tuned, output);
await (await Tokenizer.fromPretrained(path)).savePretrained(output);
console.log(`written to ${output}; largest rounding error ${maxAbsError} in ${module}`);
