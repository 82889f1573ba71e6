/** The merged model for Ollama: a Modelfile with the chat format as TEMPLATE and stops, and the GGUF file that it names. */
import { join } from 'node:path';
import { UnsupportedError } from '../errors.ts';
import { writeFileAtomic } from '../io/files.ts';
import { chatFormatOf, type FoundFormat, goTemplate } from './chat_formats.ts';
import { writeGguf } from './gguf.ts';
import { fillFolder } from './output.ts';
import { defineTarget } from './target.ts';

const kModel = 'model.gguf';
const kModelfile = 'Modelfile';

export const modelfile = defineTarget({
  name: 'modelfile',
  title: 'a folder for Ollama: the merged model as a GGUF file, and its Modelfile',
  output: 'folder',
  types: ['f16', 'f32', 'bf16', 'q8_0', 'q4_k_m'],
  readers: [
    { program: "Go's text/template (the TEMPLATE)", read: '1.24' },
    { program: 'Ollama', read: null },
  ],
  namesOf: () => [kModel, kModelfile],
  write: async (input, output) => {
    const text = modelfileText(chatFormatOf(input.tokenizer));
    const fill = async (folder: string): Promise<readonly string[]> => {
      const lines = await writeGguf(input, join(folder, kModel));
      await writeFileAtomic(join(folder, kModelfile), text);
      return lines;
    };
    return fillFolder(output, fill, [kModel, kModelfile], input);
  },
  next: (output) => [`for Ollama: ollama create NAME -f ${shellWord(join(output, kModelfile))}`],
});

/** The text of a Modelfile. The BOS token, which Ollama adds by the file's own metadata, is in the template only where it does not. */
export function modelfileText({ format, start, defaultSystem }: FoundFormat): string {
  const lines = [
    `FROM ./${kModel}`,
    `TEMPLATE ${quoted(goTemplate(format, start))}`,
    ...(defaultSystem === null ? [] : [`SYSTEM ${quoted(defaultSystem)}`]),
    ...format.stops.map((stop) => `PARAMETER stop ${JSON.stringify(stop)}`),
  ];
  return `${lines.join('\n')}\n`;
}

/** A path as a word of a POSIX shell. */
const shellWord = (path: string): string =>
  /^[\w./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;

function quoted(text: string): string {
  if (!text.includes('"""')) return `"""${text}"""`;
  throw new UnsupportedError(
    'modelfile: the default system text of the chat template has """ in it, which a Modelfile cannot hold; change the template',
  );
}
