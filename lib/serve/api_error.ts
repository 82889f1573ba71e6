/** Errors of the server as OpenAI's API has them: a status, and a body with a message, a type, the field at fault and a code. */
import { ArgumentError, BaloraError } from '../errors.ts';
import { ContextLengthError } from '../generate/prompts.ts';
import { oneLine } from '../shown.ts';

/** The facts of an {@link ApiError} besides its message. */
interface ApiErrorOptions {
  readonly status: number;
  /** The field of the request that is at fault. */
  readonly param?: string | null;
  /** A word for programs. */
  readonly code?: string | null;
  readonly headers?: Readonly<Record<string, string>>;
}

/** An error that the client is told. Its message is one line, and shows invisible characters of what the client sent. */
export class ApiError extends Error {
  readonly status: number;
  readonly param: string | null;
  readonly code: string | null;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    message: string,
    { status, param = null, code = null, headers = {} }: ApiErrorOptions,
  ) {
    super(oneLine(message));
    this.name = 'ApiError';
    this.status = status;
    this.param = param;
    this.code = code;
    this.headers = headers;
  }

  get body() {
    const { message, param, code } = this;
    return { error: { message, type: typeOf(this.status), param, code } };
  }
}

/** OpenAI's type of an error, by its status. */
const kTypes: Readonly<Record<number, string>> = {
  401: 'authentication_error',
  403: 'permission_error',
  429: 'rate_limit_error',
};

function typeOf(status: number): string {
  return kTypes[status] ?? (status < 500 ? 'invalid_request_error' : 'server_error');
}

/** The error for a field of a request that is wrong. */
export function wrongField(param: string, message: string): ApiError {
  return new ApiError(message, { status: 400, param, code: 'invalid_value' });
}

/**
 * The error that a client is told, for any error. What the library says of the request or the model is passed on; of other errors, which
 * are bugs, nothing but that there was one.
 * @param param the field with the prompt
 */
export function apiErrorOf(error: unknown, param: string | null = null): ApiError {
  if (error instanceof ApiError) return error;
  if (error instanceof ContextLengthError) {
    return new ApiError(error.message, { status: 400, param, code: 'context_length_exceeded' });
  }
  if (error instanceof ArgumentError) {
    return new ApiError(error.message, { status: 400, param, code: 'invalid_value' });
  }
  if (error instanceof BaloraError) {
    return new ApiError(error.message, { status: 500, code: error.code });
  }
  return new ApiError('the server failed to answer; its log has the error', {
    ...{ status: 500, code: 'internal_error' },
  });
}
