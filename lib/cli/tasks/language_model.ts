/** The command-line code that causal language models and encoder-decoders share. */
import { AdapterModel } from '../../adapters/adapter_model.ts';
import { FullModel } from '../../adapters/full_model.ts';
import type { TunedModel } from '../../adapters/tuned_model.ts';
import type { BatchSource } from '../../data/batch_source.ts';
import type { DataStatistics } from '../../data/batches.ts';
import { BATCH_SIZES } from '../../data/data_options.ts';
import type { Example } from '../../data/example.ts';
import { type FormatOptions, rowPrompts } from '../../data/example_format.ts';
import type { Row, RowSource } from '../../data/rows.ts';
import { ArgumentError } from '../../errors.ts';
import { type EvaluatedBatch, type EvaluatedModel, evaluate } from '../../eval/evaluate.ts';
import type { EvaluationResult } from '../../eval/types.ts';
import { formatBytes } from '../../io/format_bytes.ts';
import type { CausalLM, Seq2SeqLM } from '../../models/index.ts';
import type { Tokenizer } from '../../text/tokenizer.ts';
import type { AnyTrainerOptions } from '../../train/trainer_options.ts';
import type { EvaluateSettings } from '../evaluate_options.ts';
import {
  adapterOptions,
  type DataCallbacks,
  type DataOptions,
  type DataPaths,
  loadOptions,
  type ModelLoadOptions,
  openBatches,
  openData,
  openModel,
  showWarnings,
  tellQuantization,
} from '../load.ts';
import { newAdapter } from '../new_adapter.ts';
import { listOf, pick } from '../option_table.ts';
import { fixed, formatSeconds } from '../terminal.ts';
import type { TrainSettings } from '../train_options.ts';
import type { CliTask, Evaluated, RunContext, TrainSetup } from './cli_task.ts';

/** The settings that determine the form of the rows, and what of them is trained on. */
export const kFormatKeys = [
  'dataFormat',
  'promptTemplate',
  'promptField',
  'responseField',
  'messagesField',
  'textField',
  'roleMap',
  'trainOnTurns',
] as const satisfies readonly (keyof FormatOptions & keyof TrainSettings)[];

/** The form, the template and the field names of rows, those that were given. */
export function formatOptions(settings: DataSettings): FormatOptions {
  return pick(settings, kFormatKeys) as FormatOptions;
}

/** Properties in which the kinds of language models differ. Types: M of the model, D of its data options, E of an example. */
export interface LanguageModelCli<M extends CausalLM | Seq2SeqLM, D extends object, E>
  extends Pick<CliTask, 'task' | 'taskType' | 'ownOptions'> {
  check(folder: string, options: ModelLoadOptions): Promise<void>;
  load(folder: string, options: ModelLoadOptions): Promise<M>;
  /** Options of the data of a run: template, fields and lengths. */
  shared(settings: DataSettings): D;
  /** Options that apply to training data only, in addition to the shared ones. */
  training(settings: TrainSettings): Partial<D>;
  batches(input: {
    readonly rows: RowSource;
    readonly tokenizer: Tokenizer;
    readonly model: M;
    readonly options: D & DataCallbacks & { signal: AbortSignal };
  }): Promise<LanguageModelData<M, E>>;
  /** The tokens of an example, those of both sides one after the other. */
  shown(example: E): Example;
}

/** The settings of `train` and `evaluate` that determine how examples are made. */
export type DataSettings = Pick<
  TrainSettings,
  (typeof kFormatKeys)[number] | 'maxLength' | 'maxSourceLength' | 'maxTargetLength'
>;

/** Micro-batches with their statistics for the plan. */
interface LanguageModelData<M extends CausalLM | Seq2SeqLM, E>
  extends BatchSource<EvaluatedBatch<M>> {
  readonly statistics: DataStatistics;
  readonly format: string;
  readonly firstRows: readonly number[];
  example(row: number): Promise<E>;
  where(row: number): Promise<string>;
}

/** Makes the command-line task of a kind of language model. Held-out data keeps its order and is never packed. */
export function languageModelCli<M extends CausalLM | Seq2SeqLM, D extends object, E>(
  kind: LanguageModelCli<M, D, E>,
): CliTask<{ data: D; evalData: D }> {
  const { task, taskType, ownOptions } = kind;
  return {
    ...{ task, taskType, ownOptions },
    examples: (settings, { batchSize, evalBatchSize, seed, shuffle, corruption }) => ({
      data: {
        ...kind.shared(settings),
        ...kind.training(settings),
        ...{ batchSize, seed, shuffle },
        ...(corruption && { corruption }),
      },
      evalData: { ...kind.shared(settings), batchSize: evalBatchSize, shuffle: false },
    }),
    prepare: async (settings, setup, context) => {
      const modelOptions = loadOptions(settings, context.progress);
      const { folder, tokenizer } = await openModel(
        settings.model as string,
        kind.check,
        modelOptions,
      );
      const load = (options: ModelLoadOptions) => kind.load(folder, options);
      // They are read before the weights, so that what is wrong with them is known at once.
      const samples = await samplePromptsOf(settings, {
        ...{ tokenizer, columns: setup.columns, isSource: kind.taskType === 'SEQ_2_SEQ_LM' },
        signal: context.signal,
      });
      const model = await load({ ...modelOptions, trainable: setup.adapter === null });
      tellQuantization(model, context.progress);
      // The plan of a budget chooses the share of the base that stays in memory, and until then the start of an adapter needs room.
      const { memoryBudget = 'max' } = settings;
      if (model.offload !== null && memoryBudget !== 'max') model.offload.residentBytes = 0;
      // Reading the data may take as long as loading the model, so an interrupt is checked for in between.
      context.signal.throwIfAborted();
      const opened: (() => Promise<void>)[] = [];
      const closeAll = async () => {
        for (const close of opened) await close();
      };
      const open = async (files: DataPaths, given: D, dataWeights?: readonly number[]) => {
        try {
          const { batches, close } = await openBatches(
            files,
            (rows, callbacks) => {
              const options = { ...given, ...callbacks, signal: context.signal };
              return kind.batches({ rows, tokenizer, model, options });
            },
            { columns: setup.columns, dataWeights, ...context },
          );
          opened.push(close);
          return batches;
        } catch (error) {
          await closeAll();
          throw error;
        }
      };
      const files = settings.data as DataPaths;
      const data = await open(files, setup.examples.data, setup.dataWeights);
      const evalData =
        settings.evalData === undefined
          ? {}
          : { evalData: await open(settings.evalData, setup.examples.evalData) };
      const { signal } = context;
      const { calibrationData } = settings;
      const read =
        calibrationData === undefined ? data : await open(calibrationData, setup.examples.data);
      const tuned = await tunedOf(model, { load, data: read, settings, setup, ...context }).catch(
        async (error: unknown) => {
          await closeAll();
          throw error;
        },
      );
      return {
        run: setup.run,
        input: {
          ...{ tuned, data, ...evalData, ...samples, signal },
        } as AnyTrainerOptions,
        tokenizer,
        statistics: data.statistics,
        format: data.format,
        examples: () =>
          Promise.all(
            data.firstRows.map(async (row) => ({
              where: await data.where(row),
              ...kind.shown(await data.example(row)),
            })),
          ),
        close: closeAll,
      };
    },
    loadBase: async (path, { adapter: _, progress: __, ...modelOptions }) => {
      const { folder, tokenizer } = await openModel(path, kind.check, modelOptions);
      return { model: await kind.load(folder, modelOptions), tokenizer };
    },
    evaluate: async (settings, context) => {
      const modelOptions = loadOptions(settings, context.progress);
      const { folder, tokenizer } = await openModel(
        settings.model as string,
        kind.check,
        modelOptions,
      );
      const model = await kind.load(folder, modelOptions);
      const batchSize = settings.perDeviceEvalBatchSize ?? BATCH_SIZES.command;
      const { batches, close } = await openBatches(
        settings.data as string,
        (rows, callbacks) => {
          const { signal } = context;
          const shared = kind.shared(settings);
          const options = { ...shared, batchSize, shuffle: false, ...callbacks, signal };
          return kind.batches({ rows, tokenizer, model, options });
        },
        { columns: listOf(settings.columns), ...context },
      );
      try {
        return await evaluateModel(model, batches, settings, context);
      } finally {
        await close();
      }
    },
  };
}

/** The prompts of --sample-prompts, as an option of the trainer. */
async function samplePromptsOf(
  settings: TrainSettings,
  {
    tokenizer,
    columns,
    isSource,
    signal,
  }: DataOptions & { tokenizer: Tokenizer; isSource: boolean },
): Promise<Pick<AnyTrainerOptions, 'samplePrompts'>> {
  const { samplePrompts: path } = settings;
  if (path === undefined) return {};
  const rows = await openData(path, { columns, signal });
  try {
    const all: Row[] = [];
    for (let i = 0; i < rows.length; i++) all.push(await rows.row(i));
    const prompts = await rowPrompts(all, { ...formatOptions(settings), isSource });
    return { samplePrompts: { ...prompts, tokenizer } };
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    throw new ArgumentError(`${path}: ${error.message}`);
  } finally {
    await rows.close();
  }
}

/** The input of {@link tunedOf}: the settings of the run, the data for a start that needs some, and how the model is loaded a second time. */
interface Tuning<M> extends RunContext {
  readonly load: (options: ModelLoadOptions) => Promise<M>;
  readonly data: BatchSource<unknown>;
  readonly settings: TrainSettings;
  readonly setup: Pick<TrainSetup, 'run' | 'adapter'>;
}

/** Makes a model trainable: by a new adapter, by a loaded one, or in all of its weights. */
async function tunedOf<M extends CausalLM | Seq2SeqLM>(
  model: M,
  { load, data, settings, setup: { run, adapter }, progress, signal }: Tuning<M>,
): Promise<TunedModel<M>> {
  // Creating an adapter may take as long as loading the model, so an interrupt is checked for in between.
  signal.throwIfAborted();
  if (adapter === null) {
    if (run.regularizers.consistencyWeight === 0) return new FullModel<M>(model);
    const teacher = await load(loadOptions(settings, progress));
    const full = new FullModel<M>(model, { teacher });
    progress.message(
      `--consistency-weight with --method full needs a second copy of the model: ${formatBytes(full.teacherBytes)}`,
    );
    return full;
  }
  return settings.adapter === undefined
    ? newAdapter(model, adapter, { data, settings, progress, signal })
    : showWarnings(
        await AdapterModel.fromPretrained(model, settings.adapter, {
          ...adapterOptions(settings),
          seed: settings.seed,
          method: adapter.method,
        }),
        progress,
      );
}

/** Evaluates a model, with the adapter that the settings name if there is one. */
async function evaluateModel<M extends CausalLM | Seq2SeqLM>(
  model: M,
  data: BatchSource<EvaluatedBatch<M>>,
  settings: EvaluateSettings,
  { progress, signal }: RunContext,
): Promise<Evaluated> {
  const { adapter } = settings;
  const tuned =
    adapter === undefined
      ? withoutAdapter(model)
      : showWarnings(
          await AdapterModel.fromPretrained(model, adapter, adapterOptions(settings)),
          progress,
        );
  const result = await evaluate<M>(tuned, data.batches(0, 0), { signal });
  return { result, text: evaluationText(result) };
}

/** A model without adapter in the form that the evaluator takes; it has no base to be compared with. */
function withoutAdapter<M extends CausalLM | Seq2SeqLM>(model: M): EvaluatedModel<M> {
  return {
    model,
    hasTeacher: false,
    withTeacher: () => {
      throw new ArgumentError(
        'evaluate: a model without an adapter has no base to compare with; give --adapter',
      );
    },
  };
}

function evaluationText(result: EvaluationResult): string {
  const { loss, perplexity, kl, entropy, effectiveRank, examples, seconds } = result;
  return [
    `loss            ${loss.toFixed(6)}`,
    `perplexity      ${perplexity.toFixed(4)}`,
    `KL to the base  ${kl === null ? 'no adapter' : fixed(kl, 6)}`,
    `entropy         ${entropy.toFixed(6)}`,
    `effective rank  ${effectiveRank.toFixed(2)}`,
    `examples        ${examples.length}, ${result.tokens} tokens, ${result.supervisedTokens} supervised`,
    `time            ${formatSeconds(seconds)}`,
  ].join('\n');
}
