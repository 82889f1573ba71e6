/** The list of tasks that a language model is scored on. A new one is a file beside this one and a line here. */
import { ArgumentError } from '../../errors.ts';
import { arcChallenge, arcEasy } from './arc.ts';
import { bbq } from './bbq.ts';
import { crowsPairs } from './crows_pairs.ts';
import { gsm8k, gsm8kAlpaca, gsm8kPeft } from './gsm8k.ts';
import { hellaswag } from './hellaswag.ts';
import { humaneval } from './humaneval.ts';
import { hendrycksMath, math } from './math.ts';
import { mbpp } from './mbpp.ts';
import { mmlu } from './mmlu.ts';
import { documents, wikitext } from './perplexity.ts';
import { stereoset } from './stereoset.ts';
import type { ScoringTask } from './task.ts';
import { truthfulqaMc1, truthfulqaMc2 } from './truthfulqa.ts';
import { winogender } from './winogender.ts';

/** The tasks in the order in which messages list them. */
export const SCORING_TASKS: readonly ScoringTask[] = [
  gsm8k,
  gsm8kAlpaca,
  gsm8kPeft,
  math,
  hendrycksMath,
  humaneval,
  mbpp,
  mmlu,
  arcEasy,
  arcChallenge,
  hellaswag,
  truthfulqaMc1,
  truthfulqaMc2,
  crowsPairs,
  bbq,
  stereoset,
  winogender,
  wikitext,
  documents,
];

/** The task with a name. @throws ArgumentError listing the names for any other */
export function scoringTask(name: string): ScoringTask {
  const found = SCORING_TASKS.find((task) => task.name === name);
  if (found !== undefined) return found;
  const names = SCORING_TASKS.map((task) => task.name).join(', ');
  throw new ArgumentError(`score: there is no task "${name}"; known: ${names}`);
}
