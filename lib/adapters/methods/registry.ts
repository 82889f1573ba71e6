/** The list of methods, and the parts of it that a configuration selects. */

import { onOff } from '../../options/kinds.ts';
import type { Option, OptionTable, ResolvedOf } from '../../options/option.ts';
import { adalora } from './adalora.ts';
import { balora } from './balora.ts';
import { corda } from './corda.ts';
import { dora } from './dora.ts';
import { eva } from './eva.ts';
import { full } from './full.ts';
import { gaussian } from './gaussian.ts';
import { hira } from './hira.ts';
import { hra } from './hra.ts';
import { loftq } from './loftq.ts';
import { lora, plain } from './lora.ts';
import { loraDash } from './lora_dash.ts';
import { loraFa } from './lora_fa.ts';
import { loraGa, loraGaPeft } from './lora_ga.ts';
import { loraXs } from './lora_xs.ts';
import {
  type AdapterType,
  LORA_TYPE,
  type Method,
  type MethodOption,
  type MethodPreset,
  type Scaling,
  type Start,
  type Variant,
  type VariantParameter,
} from './method.ts';
import { milora } from './milora.ts';
import { miss } from './miss.ts';
import { neat, peanut } from './neat.ts';
import { olora } from './olora.ts';
import { orthogonal } from './orthogonal.ts';
import { pissa } from './pissa.ts';
import { qpissa } from './qpissa.ts';
import { randlora } from './randlora.ts';
import { rslora } from './rslora.ts';
import { vera } from './vera.ts';

/**
 * Every method, in the order in which help and errors name them. The type is written out because a declaration file would lose the
 * doc comments of an inferred one.
 */
const kMethods: readonly [
  typeof lora,
  typeof rslora,
  typeof dora,
  typeof pissa,
  typeof balora,
  typeof full,
  typeof loraFa,
  typeof adalora,
  typeof loraDash,
  typeof gaussian,
  typeof orthogonal,
  typeof olora,
  typeof milora,
  typeof eva,
  typeof corda,
  typeof loraGa,
  typeof loraGaPeft,
  typeof qpissa,
  typeof loftq,
  typeof vera,
  typeof loraXs,
  typeof miss,
  typeof hra,
  typeof neat,
  typeof peanut,
  typeof hira,
  typeof randlora,
] = [
  lora,
  rslora,
  dora,
  pissa,
  balora,
  full,
  loraFa,
  adalora,
  loraDash,
  gaussian,
  orthogonal,
  olora,
  milora,
  eva,
  corda,
  loraGa,
  loraGaPeft,
  qpissa,
  loftq,
  vera,
  loraXs,
  miss,
  hra,
  neat,
  peanut,
  hira,
  randlora,
];

type Listed = (typeof kMethods)[number];

/** Names of the methods: `--method`, `resolveMethod`. */
export type MethodName = Listed['name'];

/** The intersection of all members of a union. */
type Intersection<T> = (T extends unknown ? (value: T) => void : never) extends (
  value: infer I,
) => void
  ? I
  : never;
type OptionsOf<M> = M extends { readonly options?: infer O } ? NonNullable<O> : never;
type AllOptions = Intersection<OptionsOf<Listed>>;
type StartsOf<M> = M extends { readonly starts?: infer S } ? NonNullable<S> : never;
type ValuesOf<S> = S extends readonly Start[]
  ? S[number] extends infer One
    ? One extends Start<infer Value>
      ? Value
      : never
    : never
  : never;

/** The options that the methods add, by name. */
export type MethodOptions = {
  readonly [K in keyof AllOptions]: AllOptions[K] extends Option
    ? AllOptions[K]
    : Option<boolean, boolean>;
};

/** The values of the options that the methods add, of which an adapter has those of its type. */
export type MethodSwitches = Readonly<Partial<ResolvedOf<MethodOptions>>>;

/** The values that select a variant. */
type Selection = MethodSwitches & { readonly peftType: string };

/** The values of `initLoraWeights` that name a start. */
export type InitLoraWeights = ValuesOf<StartsOf<Listed>>;

/** A method of the list, whose settings name starts of the list. */
export interface ListedMethod<Name extends MethodName> extends Method<Name> {
  readonly adapter: (MethodPreset & { readonly initLoraWeights?: InitLoraWeights }) | null;
}

/** The names of {@link METHODS}, in their order. */
export const METHOD_NAMES: readonly MethodName[] = kMethods.map(({ name }) => name);

/** Names of methods that are refused, with the reason and what to take. */
export const REFUSED_METHODS: Readonly<Record<string, string>> = {
  kasa:
    'is not offered: it cuts the smallest singular triplets off every weight, so that the model begins as another one than its base; take ' +
    'milora, which trains these triplets, or adalora, whose pairs have trained singular values',
  qlora: 'is lora on a base of 4 bits; take lora, and baseFormat nf4 where the model is loaded',
  bone: 'is offered in the form that followed it; take miss',
  ...Object.fromEntries(
    ['lokr', 'loha', 'ia3', 'oft', 'boft', 'fourierft', 'prefix_tuning', 'prompt_tuning'].map(
      (name) => [name, 'is not offered; take lora, or another method of docs/methods.md'],
    ),
  ),
};

/** Every method by its name. */
export const METHODS = Object.freeze(
  Object.fromEntries(kMethods.map((method) => [method.name, method])),
) as { readonly [Name in MethodName]: ListedMethod<Name> };

const kStarts: readonly Start[] = kMethods.flatMap(({ starts }): readonly Start[] => starts ?? []);
const kVariants: readonly Variant[] = kMethods.flatMap(({ variants }) => variants ?? []);
const kScalings: readonly Scaling[] = kMethods.flatMap(({ scaling }) => scaling ?? []);

/** The values of `initLoraWeights` as help and errors write them. */
export const START_NAMES: readonly string[] = kStarts.flatMap(({ shown }) => shown);

/** Names of the starts that are computed from the weights. */
export const STARTS_FROM_WEIGHT: readonly string[] = kStarts
  .filter(({ fromWeight }) => fromWeight)
  .flatMap(({ shown }) => shown);

/** The start that a value of `initLoraWeights` names; null: none is implemented here. */
export function startNamed(value: unknown): Start | null {
  if (typeof value !== 'boolean' && typeof value !== 'string') return null;
  return kStarts.find((start) => start.accepts(value)) ?? null;
}

/** Whether the tensors of an adapter with this start belong on the untouched base. */
export function keepsBase(value: unknown): boolean {
  const start = startNamed(value);
  return start !== null && !start.fromWeight;
}

/** The values of `peftType`. */
export const PEFT_TYPES: readonly string[] = [
  ...new Set(kVariants.map(({ type }) => type.peftType)),
];

/** The options that the adapters of a type have of their own. A switch is off unless it is set. */
function ownOptions(peftType: string): OptionTable {
  const methods = kMethods.filter(
    ({ adapter }: Method) => (adapter?.peftType ?? LORA_TYPE) === peftType,
  );
  const entries = methods.flatMap(({ name, options }) =>
    Object.entries<MethodOption>(options ?? {}).map(([key, given]) => {
      const option =
        given.schema === undefined ? onOff({ default: false, help: given.help }) : given;
      // LoRA's combine with the starts of all its methods.
      return [key, peftType === LORA_TYPE ? option : { ...option, group: `Method ${name}` }];
    }),
  );
  return Object.fromEntries(entries);
}

/** The options that the methods add, by the type whose adapters have them. */
export const TYPE_OPTIONS: Readonly<Record<string, OptionTable>> = Object.fromEntries(
  PEFT_TYPES.map((peftType) => [peftType, ownOptions(peftType)]),
);

/** The options of all methods. */
export const METHOD_OPTIONS: MethodOptions = Object.assign({}, ...Object.values(TYPE_OPTIONS));

/** The names of {@link METHOD_OPTIONS}. */
export const METHOD_OPTION_NAMES = Object.keys(METHOD_OPTIONS) as (keyof AllOptions)[];

/** The type that a value of `peft_type` names; null: none is implemented here. */
export function typeNamed(peftType: unknown): AdapterType | null {
  return kVariants.find(({ type }) => type.peftType === peftType)?.type ?? null;
}

/** The type of a checked configuration. */
export function typeOf({ peftType }: { readonly peftType: string }): AdapterType {
  return typeNamed(peftType) as AdapterType;
}

/** The variants that a configuration selects: none means plain LoRA, and more than one cannot run together. */
export function selectedVariants(switches: Selection): Variant[] {
  return kVariants.filter(
    ({ option, type }) =>
      isOn(switches, option) ||
      (option === null && type.pair === undefined && type.peftType === switches.peftType),
  );
}

/** The variant that a checked configuration runs. */
export function variantOf(switches: Selection): Variant {
  const [selected] = selectedVariants(switches);
  return selected ?? plain;
}

/** The scaling of a checked configuration. */
export function scalingOf(switches: MethodSwitches): Scaling {
  const selected = kScalings.find(({ option }) => isOn(switches, option));
  return selected ?? (kScalings.find(({ option }) => option === null) as Scaling);
}

/** The parameters of all variants: the tensors that a file may hold beside pairs. */
export const VARIANT_PARAMETERS: readonly VariantParameter[] = kVariants.flatMap(
  ({ parameters }) => parameters,
);

function isOn(switches: MethodSwitches, option: string | null): boolean {
  return option !== null && switches[option as keyof MethodSwitches] === true;
}
