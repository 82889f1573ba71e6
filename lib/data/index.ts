// `balora/data`: the single steps from rows to examples and micro-batches; Batches and its siblings, which do all of them,
// are in `balora`.
export { type CollateOptions, collate, type Segments } from './collate.ts';
export { DelimitedFile, type DelimitedOptions } from './delimited.ts';
export {
  type Example,
  encodeConversation,
  encodePromptResponse,
  supervisedCount,
  truncate,
} from './example.ts';
export { GLUE_TASKS, type GlueTask, glueTask } from './glue.ts';
export { JsonlFile, type JsonlOptions } from './jsonl.ts';
export { ParquetFile, type ParquetOptions } from './parquet.ts';
export { kNamedTemplates, kRecipeTemplate, PromptTemplate } from './prompt_template.ts';
export {
  collateSeq2Seq,
  encodeSeq2Seq,
  type Seq2SeqExample,
  type Seq2SeqLengths,
} from './seq2seq_example.ts';
