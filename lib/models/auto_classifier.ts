/** Loading of models with a classification or regression head: the checkpoint's, or a new one on a pre-trained model. */
import { findModel } from '../io/hub.ts';
import { type CallTable, checkArgument, checkCall, kCall, wholeNumber } from '../options/call.ts';
import { labelTable } from '../options/labels.ts';
import { DEFAULT_SEED } from '../options/option.ts';
import {
  buildOn,
  configTable,
  type FromConfigOptions,
  type FromPretrainedOptions,
  finishLoading,
  loadTable,
  refuseBlocks,
} from './auto.ts';
import type { ClassifierKind, MakeClassifier } from './classifier_kind.ts';
import { initializerRange, modelTypeOf } from './config_keys.ts';
import type { ModelOrigin } from './model.ts';
import { configured, type OpenedModel, openModel, requireDevice } from './opened.ts';
import { RandomWeights } from './random_weights.ts';
import { classifierKind, classifierKindOfGguf } from './registry.ts';
import { CompletedWeights, RenamedWeights } from './renamed_weights.ts';
import {
  type HeadOrigin,
  type LabelOptions,
  labelNamesOf,
  resolveLabels,
  type SequenceClassifier,
} from './sequence_classifier.ts';
import { WeightLoader, type WeightReadOptions, type WeightSource } from './weights.ts';

/** Options of {@link AutoModelForSequenceClassification.fromPretrained}. */
export interface ClassifierOptions extends FromPretrainedOptions, LabelOptions {
  /** Whether to initialise a new head even if the checkpoint has one. Default false. */
  newHead?: boolean;
  /** Seed of the weights that the checkpoint lacks. Default 42. */
  seed?: number;
}

/** The kinds of the options. */
const kTable: CallTable<ClassifierOptions> = {
  ...loadTable,
  ...labelTable,
  newHead: kCall.boolean,
  seed: wholeNumber({ least: 0 }),
};

/** Loads classifiers and regressors; see {@link AutoModelForSequenceClassification.fromPretrained}. */
export const AutoModelForSequenceClassification = {
  /**
   * Loads a model with one row of outputs for each sequence. A head (and a pooler) that the checkpoint lacks is initialised at
   * random, as in transformers, and named in `newlyInitialized`. Dropout of the configuration is not applied.
   * @param nameOrPath a Hugging Face folder with safetensors, a GGUF file (or a folder with one), or an id on the Hub
   * @throws UnsupportedError for a model_type without a classifier, or a config key that is not known;
   *   ArgumentError for labels that contradict the head; FormatError and others as AutoModelForCausalLM does
   * @example
   * const model = await AutoModelForSequenceClassification.fromPretrained('./all-MiniLM-L6-v2', { numLabels: 2 });
   * const logits = model.logits(model.forward(batch), batch); // (B,2)
   */
  async fromPretrained(
    nameOrPath: string,
    options: ClassifierOptions = {},
  ): Promise<SequenceClassifier> {
    checkCall('fromPretrained', options, kTable);
    refuseBlocks(options);
    const { dtype = 'f32', device, trainable = false, checkFinite = true } = options;
    const opened = await openClassifier(nameOrPath, options);
    const { folder, path, json, family: kind, stored } = opened;
    try {
      const make = configured(opened, options, (own) => kind.fromJson(json, own));
      const { onProgress } = options;
      const read = { dtype, checkFinite, share: !trainable, onProgress };
      const { source, head } = withHead(kind, stored, { json, path, options, make, read });
      const model = buildOn(device, () =>
        WeightLoader.build(source, read, (weights) =>
          make(weights, { nameOrPath, folder, dtype }, head),
        ),
      );
      await finishLoading(model, stored, { trainable });
      return model;
    } finally {
      stored.close();
    }
  },

  /**
   * Makes a classifier of a configuration with random weights, for measurements and tests, by the same rules as
   * {@link AutoModelForCausalLM.fromConfig}. Every weight is named in `newlyInitialized`.
   * @param config the keys of config.json
   * @param options labels as fromPretrained takes them; dtype (default f32), seed (default 42), trainable, device
   * @throws UnsupportedError for a model_type without a classifier, a key that is not known or a baseFormat in blocks; FormatError for
   *   sizes that do not fit together; ArgumentError for labels that contradict each other
   * @example
   * const model = await AutoModelForSequenceClassification.fromConfig({ model_type: 'bert', ... }, { numLabels: 2 });
   */
  async fromConfig(
    config: Readonly<Record<string, unknown>>,
    options: FromConfigOptions & LabelOptions = {},
  ): Promise<SequenceClassifier> {
    checkArgument('fromConfig: the configuration', kCall.object, config);
    checkCall('fromConfig', options, { ...configTable, ...labelTable });
    refuseBlocks(options);
    const { dtype = 'f32', seed = DEFAULT_SEED, trainable = false, device } = options;
    requireDevice({ device });
    const path = 'the configuration';
    const json = { ...config };
    const make = classifierKind(modelTypeOf(json, path), path).fromJson(json, {
      ...options,
      path,
    });
    const read: WeightReadOptions = { dtype, checkFinite: false, share: false };
    const resolved = resolveLabels(json, options, { path, head: null });
    // The configuration is the caller's own, and so are the names in it.
    const labelNames = resolved.labelNames ?? labelNamesOf(json, resolved.numLabels);
    const labels = { ...resolved, labelNames };
    const plan = WeightLoader.plan(read, (weights) =>
      make(weights, kNoOrigin, { ...labels, newlyInitialized: [] }),
    );
    const deviation = initializerRange(json, path);
    const origin: ModelOrigin = { nameOrPath: 'random weights', folder: '', dtype };
    const head = { ...labels, newlyInitialized: [...plan.keys()] };
    const source = new RandomWeights(plan, { seed, deviation });
    const model = buildOn(device, () =>
      WeightLoader.build(source, read, (weights) => make(weights, origin, head)),
    );
    await finishLoading(model, source, { trainable });
    return model;
  },
};

/** The head of a checkpoint. */
export interface CheckpointHead {
  /** Path of its last weight. */
  readonly weight: string;
  /** Rows of that weight; null where the checkpoint holds none. */
  readonly labels: number | null;
  /** Names of the labels by id, from the configuration; null where it has none, or there is no head. */
  readonly labelNames: readonly string[] | null;
}

/**
 * Describes the head of a classifier's checkpoint, from its configuration and the names and shapes of its tensors.
 * @throws as {@link AutoModelForSequenceClassification.fromPretrained} does before it reads weights
 */
export async function checkpointHead(
  nameOrPath: string,
  options: FromPretrainedOptions = {},
): Promise<CheckpointHead> {
  const { json, family: kind, stored } = await openClassifier(nameOrPath, options);
  try {
    const { shapes } = new RenamedWeights(stored, kind.rename);
    const labels = shapes.get(kind.headWeight)?.[0] ?? null;
    const labelNames = labels === null ? null : labelNamesOf(json, labels);
    return { weight: kind.headWeight, labels, labelNames };
  } finally {
    stored.close();
  }
}

async function openClassifier(
  nameOrPath: string,
  options: FromPretrainedOptions,
): Promise<OpenedModel<ClassifierKind>> {
  requireDevice(options);
  const families = { ofType: classifierKind, ofGguf: classifierKindOfGguf };
  return openModel(await findModel(nameOrPath, options), options, families);
}

interface HeadInput {
  readonly json: Record<string, unknown>;
  /** Path of the configuration, for messages. */
  readonly path: string;
  readonly options: ClassifierOptions;
  readonly make: MakeClassifier;
  readonly read: WeightReadOptions;
}

/** The tensors of a checkpoint completed by random ones for the modules that it lacks, and a description of the head. */
function withHead(
  kind: ClassifierKind,
  stored: WeightSource,
  { json, path, options, make, read }: HeadInput,
): { source: WeightSource; head: HeadOrigin } {
  const { newHead = false, seed = DEFAULT_SEED } = options;
  const headModule = kind.headWeight.slice(0, kind.headWeight.indexOf('.'));
  const source = new RenamedWeights(stored, (name) => {
    const renamed = kind.rename(name);
    return newHead && renamed !== null && isBelow(headModule, renamed) ? null : renamed;
  });
  const rows = source.shapes.get(kind.headWeight)?.[0];
  const found = rows === undefined ? null : { name: kind.headWeight, rows };
  const labels = resolveLabels(json, options, { path: source.path, head: found });
  const plan = WeightLoader.plan(read, (weights) =>
    make(weights, kNoOrigin, { ...labels, newlyInitialized: [] }),
  );
  const lacking = kind.mayLack.filter((module) =>
    [...source.shapes.keys()].every((name) => !isBelow(module, name)),
  );
  const fresh = new Map(
    [...plan].filter(([name]) => lacking.some((module) => isBelow(module, name))),
  );
  const deviation = initializerRange(json, path);
  return {
    source: new CompletedWeights(source, new RandomWeights(fresh, { seed, deviation })),
    head: { ...labels, newlyInitialized: [...fresh.keys()] },
  };
}

/** The origin of a model that is only planned. */
const kNoOrigin: ModelOrigin = { nameOrPath: '', folder: '', dtype: 'f32' };

function isBelow(module: string, name: string): boolean {
  return name.startsWith(`${module}.`);
}
