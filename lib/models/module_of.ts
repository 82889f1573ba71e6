/** Modules without a class of their own. */
import { Module } from '../nn/index.ts';

/** A module that only holds others, under the names of the checkpoint. */
export function moduleOf<C extends Readonly<Record<string, Module | readonly Module[] | null>>>(
  held: C,
): Module & C {
  return Object.assign(new Module(), held);
}
