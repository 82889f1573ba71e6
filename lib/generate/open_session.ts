/** The session that generate() decodes a model's sequences with. */
import type { CausalLM, Seq2SeqLM } from '../models/index.ts';
import { openCachedSession } from './cached_session.ts';
import type { DecodeSession, SessionOptions } from './session.ts';
import { openUncachedSession } from './uncached_session.ts';

/** A model that generates text. */
export type GeneratingModel = CausalLM | Seq2SeqLM;

/** Opens a session for a model. */
export type OpenSession = (model: GeneratingModel, options: SessionOptions) => DecodeSession;

/** Opens a session with a cache; a model of one's own that does not say what its layers keep computes whole sequences at each token. */
export const openSession: OpenSession = (model, options) =>
  model.cachedLayers === null
    ? openUncachedSession(model, options)
    : openCachedSession(model, options);
