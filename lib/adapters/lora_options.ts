/**
 * The options of an adapter, one entry each: PEFT's LoraConfig. An option's key in adapter_config.json is its name in snake case.
 * The switches of the methods are declared in their files (methods/).
 */
import { z } from 'zod';
import {
  choice,
  indices,
  json,
  modules,
  nameList,
  number,
  numbersByKey,
  onOff,
  patterns,
  text,
  value,
  whole,
} from '../options/kinds.ts';
import {
  type Check,
  defaultOf,
  group,
  isObject,
  normalized,
  type Option,
  type OptionTable,
  type ResolvedOf,
} from '../options/option.ts';
import { shown } from '../shown.ts';
import { LORA_TYPE } from './methods/method.ts';
import {
  type InitLoraWeights,
  METHOD_OPTION_NAMES,
  METHOD_OPTIONS,
  type MethodOptions,
  type MethodSwitches,
  PEFT_TYPES,
  START_NAMES,
  selectedVariants,
  startNamed,
  TYPE_OPTIONS,
  typeOf,
} from './methods/registry.ts';
import { compareCodePoints, PythonFloat, type PythonJson } from './python_json.ts';
import type { StartFunction } from './starts.ts';

/** The value of `targetModules` that stands for every linear module of the blocks. */
export const ALL_LINEAR = 'all-linear';

const kDefaultRank = 8;

/** The part of an option's entry that describes its form in adapter_config.json. */
export interface PeftForm {
  /** Converts a value to the form that the file holds. Default: unchanged. */
  toPeft?(value: never): PythonJson;
  /** Schema of the values that the file may hold, where it allows more than a caller may give. */
  readonly inPeft?: z.ZodType;
  /** The value for a file that does not have the key. Default: the option's default. */
  readonly absentInPeft?: unknown;
}

function inPeft<O extends Option>(option: O, form: PeftForm): O & PeftForm {
  return { ...option, ...form };
}

function orNull<O extends Option>(option: O): O {
  return { ...option, schema: option.schema.nullable() };
}

const kSorted: PeftForm = {
  toPeft: (names: readonly string[] | string | null) =>
    typeof names === 'string' || names === null ? names : [...names].sort(compareCodePoints),
};
const kPatterns: PeftForm = {
  toPeft: (pairs: readonly (readonly [string, number])[]) => Object.fromEntries(pairs),
};

/** The switches of PEFT's LoraConfig that every file of PEFT has, and every run's identity, in this order. */
export const PEFT_SWITCHES: readonly (keyof MethodSwitches)[] = [
  'useRslora',
  'useDora',
  'loraBias',
];

/** The part of an option that was added later in an identity: none for its default, so that checkpoints from before it still fit. */
const onlyWhereSet =
  (absent: unknown) =>
  (value: unknown): unknown =>
    value === absent ? undefined : value;

const switches = Object.fromEntries(
  [...PEFT_SWITCHES, ...METHOD_OPTION_NAMES.filter((name) => !PEFT_SWITCHES.includes(name))].map(
    (name) => {
      const option: Option = METHOD_OPTIONS[name];
      if (PEFT_SWITCHES.includes(name)) return [name, option];
      return [name, { identity: onlyWhereSet(option.default), ...option }];
    },
  ),
) as unknown as MethodOptions;

const kStartWords = ['lora', ...START_NAMES.filter((name) => startNamed(name) !== null)];
/** Names of starts with a number, for which N stands in their list. */
const kNumberedStarts = START_NAMES.filter((name) => name.endsWith('_N'))
  .map((name) => name.replace(/N$/, '[0-9]+'))
  .join('|');

const init = z.union([
  z.boolean(),
  z.string().refine((name) => name === 'lora' || startNamed(name) !== null),
  z.custom<StartFunction>((given) => typeof given === 'function'),
]);

/** Options for the shape of the pair and the modules that get one. */
const shape = {
  /**
   * PEFT's name for the tensors that are trained: `LORA` for a pair A, B, or that of a method with tensors of its own, such as `VERA`.
   * Default `LORA`.
   */
  peftType: choice({
    choices: PEFT_TYPES,
    default: LORA_TYPE as string,
    help: 'what is trained beside each weight',
    identity: onlyWhereSet(LORA_TYPE),
  }),
  /** Rank of the pair. Default 8, as in PEFT. */
  r: whole({
    least: 1,
    default: kDefaultRank,
    help: 'rank; default: 8, or that of the method',
    aliases: ['rank', 'lora-r', 'lora-rank', 'lora-dim'],
  }),
  /** Alpha, which sets the scale of the update: alpha / r, unless a method scales otherwise. May be fractional. Default 8. */
  loraAlpha: inPeft(
    number({
      least: 0,
      default: kDefaultRank,
      help: 'scale: alpha / r, with rslora alpha / sqrt(r); default: 8, or that of the method',
      aliases: ['alpha'],
    }),
    { inPeft: z.number() },
  ),
  /** Dropout probability of the pair's inputs in training. Default 0. */
  loraDropout: inPeft(
    number({
      least: 0,
      below: 1,
      default: 0,
      help: 'share of the inputs of A that training drops',
      aliases: ['dropout'],
    }),
    { toPeft: (share: number) => new PythonFloat(share) },
  ),
  /** Modules to adapt: trailing names, one regular expression for the whole path, or "all-linear". Default "all-linear". */
  targetModules: inPeft(
    // A file may leave it open, and a configuration that was read from a file may be passed in again.
    orNull(
      modules({
        words: [ALL_LINEAR],
        default: ALL_LINEAR as string | null,
        help: 'trailing module names, a regular expression, or all-linear',
        aliases: ['lora-target-modules', 'lora-target', 'target', 'targets', 'modules'],
      }),
    ),
    { ...kSorted, absentInPeft: null },
  ),
  /** Modules to leave out, in the same forms as `targetModules`. Default, and null: none. */
  excludeModules: inPeft(
    modules({ default: null, help: 'modules to leave out, given in the same ways' }),
    kSorted,
  ),
  /** Ranks of single modules, by regular expression of the path; the first match in the order given counts. Default none. */
  rankPattern: inPeft(
    patterns({
      of: whole({ least: 1, help: '' }),
      default: {},
      help: 'ranks of single modules, such as {"down_proj": 16}',
    }),
    kPatterns,
  ),
  /** Alphas of single modules, in the same form as `rankPattern`. Default none. */
  alphaPattern: inPeft(
    patterns({
      of: number({ least: 0, help: '' }),
      default: {},
      help: 'alphas of single modules, in the same form',
    }),
    { ...kPatterns, inPeft: numbersByKey(z.number()) },
  ),
};

const start = {
  /** Trailing names of modules that are trained and saved whole, replacing the base's. Default, and null: none. */
  modulesToSave: nameList({ default: null, help: 'modules that are trained and saved whole' }),
  /** Initial values of A and B: the name of a start (docs/adapters.md), or a function that is given all modules. Default true. */
  initLoraWeights: inPeft(
    value<
      InitLoraWeights | StartFunction,
      boolean,
      InitLoraWeights | StartFunction | (string & {})
    >({
      schema: init as unknown as z.ZodType<InitLoraWeights | StartFunction>,
      wanted: `one of ${START_NAMES.join(', ')} or a function`,
      placeholder: 'name',
      choices: START_NAMES,
      fromText: (given) => (given === 'true' ? true : given === 'false' ? false : given),
      // The words are the choices that an editor offers.
      fileSchema: z.union([
        z.boolean(),
        z.enum(kStartWords),
        z.string().regex(new RegExp(`^(${kNumberedStarts})$`)),
      ]),
      normalize: (given: unknown) => (given === 'lora' ? true : (given as InitLoraWeights)),
      default: true,
      help: 'start of the adapter',
      aliases: ['init', 'init-weights', 'lora-init'],
    }),
    {
      // PEFT has no name for a caller's own start, and needs none: the file holds the resulting tensors.
      toPeft: (given: string | boolean | StartFunction) =>
        typeof given === 'function' ? true : given,
      // The file's tensors replace the first values, so a start that only PEFT implements is accepted as well.
      inPeft: z.union([z.boolean(), z.string()]),
    },
  ),
  /** Block numbers to adapt; `layersPattern` names the module list that they index. Default, and null: all. */
  layersToTransform: indices({
    default: null,
    help: 'adapt these blocks only',
    aliases: ['layers'],
  }),
  /** Name of the module list that `layersToTransform` indexes. Default, and null: any. */
  layersPattern: inPeft(
    {
      ...modules({ default: null, help: 'name of the module list that they index; default: any' }),
      // A single name stays a text, as PEFT writes it: here it is no expression that would match nothing.
      fromText: (given: string) =>
        given.includes(',') ? given.split(',').map((name) => name.trim()) : given,
      fromFile: (given: unknown) => given,
    },
    kSorted,
  ),
};

const about = {
  /** PEFT's name for the task, such as `CAUSAL_LM`. Default, and null: that of the model. */
  taskType: text({ default: null, help: "PEFT's word for the task", only: 'library' }),
  /** Name or path by which PEFT finds the base. Default, and null: where the model came from. */
  baseModelNameOrPath: text({
    default: null,
    help: 'where the base is',
    only: 'library',
    // A run is identified by the contents of its base, not by their location.
    identity: false,
  }),
  /** The base's revision on the Hub. Default, and null: none. */
  revision: text({ default: null, help: "the base's revision", only: 'library' }),
};

/** Keys that PEFT writes for its own use. */
const inFile = {
  /** Whether the base's weights are transposed. */
  fanInFanOut: onOff({ default: false, help: 'transposed weights', only: 'library' }),
  /** Whether the adapter was saved for inference, which is how PEFT saves every one. */
  inferenceMode: inPeft(onOff({ default: true, help: 'saved for inference', only: 'library' }), {
    absentInPeft: false,
  }),
  /** Keys of its file that change nothing in what the adapter computes, with the values that are written again. Null: none. */
  keptKeys: json<Readonly<Record<string, PythonJson>>, null>({
    of: 'an object of keys of adapter_config.json',
    schema: z.custom<Readonly<Record<string, PythonJson>>>(isObject),
    default: null,
    help: 'idle keys of its file',
    only: 'library',
    identity: onlyWhereSet(null),
  }),
};

// Named types, because a declaration file would lose the doc comments of spread properties.
type CommonOptions = typeof shape & typeof start & typeof inFile & typeof about;
type LoraOptions = CommonOptions & MethodOptions;

/** The options of the adapters of all types, in the order in which a run's identity lists them: each has the common ones and its type's. */
export const loraOptions: LoraOptions = group('Method and adapter', {
  ...shape,
  ...switches,
  ...start,
  ...inFile,
  ...about,
});

/** The options that a caller may set. */
export type LoraInputOptions = typeof shape & MethodOptions & typeof start & typeof about;

/** A checked configuration: the common options, and those of its type. */
export type AdapterValues = Readonly<ResolvedOf<CommonOptions>> & MethodSwitches;

/** The configuration without the options of other types. */
export function withoutOthers(values: Readonly<ResolvedOf<LoraOptions>>): AdapterValues {
  const own = TYPE_OPTIONS[values.peftType] as OptionTable;
  const kept = Object.entries(values).filter(
    ([name]) => Object.hasOwn(own, name) || !Object.hasOwn(METHOD_OPTIONS, name),
  );
  return Object.freeze(Object.fromEntries(kept)) as unknown as AdapterValues;
}

const refusal = (config: Values): readonly [option: string, wanted: string] | null => {
  for (const { option, refuses } of selectedVariants(config)) {
    const wanted = refuses(config.initLoraWeights);
    if (wanted !== null) return [option ?? 'peftType', wanted];
  }
  return null;
};

type Values = ResolvedOf<LoraOptions>;

/** The option that selects another variant than plain LoRA beside a start that quantises the base; null: there is none. */
function quantizedVariant(config: Values): string | null {
  if (startNamed(config.initLoraWeights)?.quantizes === undefined) return null;
  const [variant] = selectedVariants(config);
  return variant === undefined ? null : (variant.option ?? 'peftType');
}

/** Common options that adapters of some types do not have. */
const kOfSomeTypes = [
  'loraAlpha',
  'loraDropout',
  'excludeModules',
  'rankPattern',
  'alphaPattern',
] as const;

/** Whether the adapters of a type have an option that others lack. */
function hasOption(peftType: string, name: string): boolean {
  const { keys } = typeOf({ peftType });
  const isKey = Object.values(keys).some((key) => 'option' in key && key.option === name);
  return isKey || Object.hasOwn(TYPE_OPTIONS[peftType] as OptionTable, name);
}

/** An option that is set and that the adapter's type does not have; undefined: there is none. */
function foreignOption(config: Values): string | undefined {
  return [...kOfSomeTypes, ...METHOD_OPTION_NAMES].find(
    (name) => !hasOption(config.peftType, name) && !isDefault(name, config[name]),
  );
}

function isDefault(name: keyof Values, value: unknown): boolean {
  const option: Option = loraOptions[name];
  return JSON.stringify(value) === JSON.stringify(normalized(option, defaultOf(option)));
}

/** Combinations that are refused, as PEFT refuses them. */
export const loraChecks: readonly Check<Values>[] = [
  {
    when: (config) => selectedVariants(config).length > 1,
    message: (config, name) => {
      const [first, second] = selectedVariants(config).map(({ option }) =>
        name(option ?? 'peftType'),
      );
      return `${first} cannot go with ${second}; switch one of them off`;
    },
  },
  {
    when: (config) => foreignOption(config) !== undefined,
    message: (config, name) => {
      const foreign = foreignOption(config) as string;
      const owners = PEFT_TYPES.filter((peftType) => hasOption(peftType, foreign)).join(', ');
      return `${name(foreign)} is an option of ${name('peftType')} ${owners}, not of ${config.peftType}; leave it out`;
    },
  },
  {
    when: (config) => refusal(config) !== null,
    message: (config, name) => {
      const [option, wanted] = refusal(config) as [string, string];
      const init = name('initLoraWeights');
      return `${name(option)} needs ${init} ${wanted}, got ${shown(config.initLoraWeights)}`;
    },
  },
  {
    when: (config) => quantizedVariant(config) !== null,
    message: (config, name) =>
      `${name(quantizedVariant(config) as string)} cannot go with ${name('initLoraWeights')} ${shown(config.initLoraWeights)}, whose base ` +
      'is quantised; take another start',
  },
  {
    when: ({ targetModules, layersToTransform, layersPattern }) =>
      typeof targetModules === 'string' &&
      targetModules !== ALL_LINEAR &&
      (layersToTransform !== null || layersPattern !== null),
    message: (_, name) =>
      `${name('layersToTransform')} and ${name('layersPattern')} need a list of ${name('targetModules')}; ` +
      'name the layers in the regular expression itself',
  },
  {
    when: ({ layersToTransform, layersPattern }) =>
      layersPattern !== null && layersPattern.length > 0 && layersToTransform === null,
    message: (_, name) => `${name('layersPattern')} needs ${name('layersToTransform')}`,
  },
];
