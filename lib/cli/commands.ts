/** The list of commands, in the order in which the help shows them. */
import { addCalibrate } from './calibrate_command.ts';
import { addChat } from './chat_command.ts';
import { addConvert } from './convert_command.ts';
import { addEvaluate } from './evaluate_command.ts';
import { addExport } from './export_command.ts';
import { addGenerate } from './generate_command.ts';
import { addInspect } from './inspect_command.ts';
import { addMerge } from './merge_command.ts';
import type { CommandModule } from './program.ts';
import { addPush } from './push_command.ts';
import { addQuantize } from './quantize_command.ts';
import { addSchema } from './schema_command.ts';
import { addServe } from './serve_command.ts';
import { addTrain } from './train_command.ts';

export const kCommands: readonly CommandModule[] = [
  addTrain,
  addCalibrate,
  addEvaluate,
  addGenerate,
  addChat,
  addServe,
  addInspect,
  addMerge,
  addExport,
  addConvert,
  addQuantize,
  addPush,
  addSchema,
];
