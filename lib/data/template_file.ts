/** A prompt template that is given by its name, as a text or as a file. */
import { ArgumentError, fileError } from '../errors.ts';
import { isMissing, readBytes } from '../io/regular_file.ts';
import { shown } from '../shown.ts';
import { decodeUtf8 } from './json_rows.ts';
import { kChatTemplateName, kNamedTemplates } from './prompt_template.ts';
import { kEncodingAdvice } from './rows.ts';

/** Largest size of a template in bytes. */
const kMaxBytes = 2 ** 20;

/**
 * The text of a template: that of a file, unless it is a name or has a {field}. Line ends become `\n`, and a byte-order mark and the
 * line end that editors write behind the last line are left out.
 * @throws ArgumentError where it is none of these and no file of this name is there; FormatError for text that is not UTF-8, and as readBytes()
 */
export async function readTemplate(given: string): Promise<string> {
  if (given === kChatTemplateName || Object.hasOwn(kNamedTemplates, given)) return given;
  if (/[{}]/.test(given) || given === '') return given;
  let bytes: Uint8Array;
  try {
    bytes = await readBytes(given, { limit: kMaxBytes });
  } catch (error) {
    if (!isMissing(error)) throw error;
    const names = [kChatTemplateName, ...Object.keys(kNamedTemplates)].join(', ');
    throw new ArgumentError(
      `promptTemplate must be one of the names ${names}, a text with a {field}, or a file, got ${shown(given)}`,
    );
  }
  const { text } = decodeUtf8(bytes);
  if (text === null) {
    throw fileError(given, 'not valid UTF-8', kEncodingAdvice);
  }
  const template = text
    .replace(/^\ufeff/, '')
    .replaceAll('\r\n', '\n')
    .replace(/\n$/, '');
  if (/[{}]/.test(template)) return template;
  throw new ArgumentError(
    `${given}: the prompt template names no {field}; write one, such as {prompt}`,
  );
}
