/** The demo's model with a chat template, for tests of conversations: a tokenizer, and a folder. */

import { readFileSync } from 'node:fs';
import { cp, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { demoCheckpoint } from '../../lib/models/index.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';

/** A template of one line for each message, whose answers end in a line break. */
export const kChatTemplate =
  "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";

const read = (name: string): object =>
  JSON.parse(readFileSync(join(demoCheckpoint, name), 'utf8')) as object;

/** The demo's tokenizer with a chat template. */
export function chatTokenizer(template: string = kChatTemplate): Tokenizer {
  return Tokenizer.fromJson(read('tokenizer.json'), {
    ...read('tokenizer_config.json'),
    chat_template: template,
  });
}

/** Writes the demo's model with the template into a folder. */
export async function writeChatModel(folder: string): Promise<void> {
  await cp(demoCheckpoint, folder, { recursive: true });
  await writeFile(join(folder, 'chat_template.jinja'), kChatTemplate);
}
