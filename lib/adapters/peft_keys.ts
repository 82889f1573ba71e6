/** Keys of PEFT's LoraConfig, which its AdaLoraConfig inherits, that are no options here. */
import type { PythonJson } from './python_json.ts';

/** Keys that change the mathematics and have no implementation here, with the value that switches them off. */
export const UNSUPPORTED_KEYS: Readonly<Record<string, PythonJson>> = {
  alora_invocation_tokens: null,
  arrow_config: null,
  bias: 'none',
  ensure_weight_tying: false,
  kasa_config: null,
  layer_replication: null,
  megatron_config: null,
  monteclora_config: null,
  target_parameters: null,
  trainable_token_indices: null,
  use_bdlora: null,
  use_qalora: false,
  velora_config: null,
};

/** Keys that change nothing in what an adapter computes that has been made, with what PEFT writes where they are not set. */
export const IDLE_KEYS: Readonly<Record<string, PythonJson>> = {
  corda_config: null,
  eva_config: null,
  loftq_config: {},
  lora_ga_config: null,
  megatron_core: 'megatron.core',
  qalora_group_size: 16,
};
