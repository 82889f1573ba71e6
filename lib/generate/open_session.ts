/** The session that generate() decodes a model's sequences with. */
import type { CausalLM, Seq2SeqLM } from '../models/index.ts';
import type { DecodeSession, SessionOptions } from './session.ts';
import { openUncachedSession } from './uncached_session.ts';

/** A model that generates text. */
export type GeneratingModel = CausalLM | Seq2SeqLM;

/** Opens a session for a model. */
export type OpenSession = (model: GeneratingModel, options: SessionOptions) => DecodeSession;

export const openSession: OpenSession = openUncachedSession;
