/**
 * Names of options in PEFT, transformers, TRL and mlx-lm, and what they are here, for the messages about unknown options (call.ts). Names
 * of an option with a flag are its own aliases (option.ts).
 */

/** Names in kebab case, separated by blanks, by what is said about them. */
type Names = Readonly<Record<string, string>>;

/** Options here, with their names elsewhere. A name may stand for several: the first of them that a call has is meant. */
export const kTwins: Names = {
  dtype: 'torch-dtype bf16 fp16 precision',
  device: 'device-map',
  accessToken: 'token use-auth-token',
  offline: 'local-files-only',
  batchSize: 'per-device-train-batch-size per-device-eval-batch-size micro-batch-size',
  maxNewTokens: 'max-length max-tokens',
  maxLength: 'max-seq-length max-seq-len cutoff-len',
  numLabels: 'num-classes',
  labelNames: 'id2label label2id',
  textField: 'dataset-text-field',
  promptTemplate: 'chat-template',
  tuned: 'model',
  data: 'train-dataset dataset train-data',
  evalData: 'eval-dataset',
  tokenizer: 'processing-class',
  loss: 'compute-loss-func loss-fn',
  learningRate: 'lr',
  maxSteps: 'iters',
  beta1: 'betas',
  r: 'rank lora-r lora-rank',
  loraAlpha: 'alpha',
  name: 'adapter-name',
  adapter: 'adapter-name adapter-path lora',
  system: 'system-prompt system-message',
  prompt: 'text inputs',
  ids: 'input-ids',
  axis: 'dim dims axes',
  keepDims: 'keepdim keep-dim',
};

/** Advice, with the names elsewhere that have no twin here. */
export const kAdvice: Names = {
  'write warmupSteps, of which a value below 1 is a share of the steps': 'warmup-ratio',
  "write baseFormat: 'nf4' where the model is loaded":
    'load-in-4bit quantization-config bnb-4bit-quant-type',
  "write compute: 'int8' for a run, which computes in 8 bits": 'load-in-8bit',
  'write memoryBudget, which decides what is computed again':
    'gradient-checkpointing grad-checkpoint',
  'run/metrics.jsonl of output has a line for each step, which callbacks are given, too':
    'report-to logging-dir run-name wandb',
  'evalSteps and saveSteps say how often, 0 being never':
    'eval-strategy evaluation-strategy save-strategy',
  'the data cuts examples at maxLength': 'truncation',
  'ids are a list, of which tensor() makes a tensor': 'return-tensors',
  'prompts are masked; trainOnTurns chooses what is trained on': 'mask-prompt',
  'layersToTransform lists the blocks to adapt': 'num-layers',
  'leave it out':
    'trust-remote-code low-cpu-mem-usage use-cache use-safetensors safe-serialization attn-implementation ' +
    'remove-unused-columns dataloader-num-workers do-train do-eval padding-side',
};

/** Calls, with options that belong to them. */
export const kHomes: Names = {
  'Batches.create()':
    'batch-size max-length packing padding prompt-template prompt-field response-field messages-field text-field shuffle',
  'AdapterModel.create()':
    'method r lora-alpha lora-dropout target-modules modules-to-save init-lora-weights',
  'AutoModelForCausalLM.fromPretrained()': 'dtype device base-format base-offload',
  'generate()': 'max-new-tokens do-sample top-p top-k',
  'the options of a Trainer':
    'learning-rate max-steps num-train-epochs output eval-steps save-steps optim regularizers',
  'regularizers, an option of a Trainer': 'consistency-weight diversity-weight svd-weight',
};

/** The entries of a table that have a name. */
export const namedIn = (table: Names, name: string): string[] =>
  Object.keys(table).filter((key) => table[key]?.split(' ').includes(name));

const kHalf = 'is not offered for weights; take bf16';

/** Names of dtypes in torch, with what to write here. */
export const TORCH_DTYPES: Readonly<Record<string, string>> = {
  ...{ bfloat16: 'is written bf16', float32: 'is written f32', float64: 'is written f64' },
  ...{ 'torch.bfloat16': 'is written bf16', 'torch.float32': 'is written f32' },
  ...{ float16: kHalf, 'torch.float16': kHalf, fp16: kHalf, f16: kHalf, half: kHalf },
  auto: 'is not offered; take bf16, or f32 for exact numbers',
};
