// The folder in which a page's code blocks run: the files that pages name are tiny models and a few rows.
import { cp, mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { tinyRows, writeTinyClassifier } from './tiny_classifier.ts';
import { writeTinySeq2Seq } from './tiny_seq2seq.ts';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));
const kCommit = '0123456789abcdef0123456789abcdef01234567';
const kNli = ['CONTRADICTION', 'NEUTRAL', 'ENTAILMENT'];

/** ChatML, which --to modelfile knows. */
const kChatTemplate =
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/** Names of model files on the pages -> the files in the folder of models that replace them. */
const kModels = {
  decoder: ['SmolLM2-135M', 'SmolLM2-135M-Instruct', 'path/to/model'],
  encoder: ['all-MiniLM-L6-v2', 'path/to/bert'],
  seq2seq: ['t5-small', 'path/to/t5-small'],
};
const kConversations = 'conversations.jsonl';
const kTexts = ['train.jsonl', 'test.jsonl', 'gsm8k/train.jsonl', 'gsm8k/test.jsonl'];

const kSums = '{"question": "What is 1 + 1?", "answer": "1 + 1 = 2\\n#### 2"}\n'.repeat(3);

/** Writes the models for all pages, once, since they are only read. `hub` is a cache as huggingface_hub leaves it. */
export async function writePageModels(folder: string): Promise<void> {
  const at = (...path: string[]) => join(folder, ...path);
  await cp(join(kRoot, 'examples', 'demo', 'checkpoint'), at('decoder'), { recursive: true });
  await writeFile(at('decoder', 'chat_template.jinja'), kChatTemplate);
  await writeTinyClassifier(at('encoder'), { head: false });
  await writeTinySeq2Seq(at('seq2seq'));
  const repository = at('hub', 'models--FacebookAI--roberta-large-mnli');
  const snapshot = join(repository, 'snapshots', kCommit);
  await writeTinyClassifier(snapshot);
  const config = JSON.parse(await readFile(join(snapshot, 'config.json'), 'utf8'));
  config.id2label = { ...kNli };
  config.label2id = Object.fromEntries(kNli.map((name, id) => [name, id]));
  await writeFile(join(snapshot, 'config.json'), JSON.stringify(config));
  await mkdir(join(repository, 'refs'));
  await writeFile(join(repository, 'refs', 'main'), kCommit);
}

/** Writes a project that has installed balora, with the files that pages name. */
export async function writePageFolder(folder: string, models: string): Promise<void> {
  const write = async (path: string, text: string) => {
    await mkdir(dirname(join(folder, path)), { recursive: true });
    await writeFile(join(folder, path), text);
  };
  await mkdir(join(folder, 'node_modules', '.bin'), { recursive: true });
  await symlink(kRoot, join(folder, 'node_modules', 'balora'));
  await symlink(join(kRoot, 'node_modules', 'openai'), join(folder, 'node_modules', 'openai'));
  const main = join(kRoot, 'dist', 'cli', 'main.js');
  await symlink(main, join(folder, 'node_modules', '.bin', 'balora'));
  for (const [model, names] of Object.entries(kModels)) {
    for (const name of names) {
      await mkdir(dirname(join(folder, name)), { recursive: true });
      await symlink(join(models, model), join(folder, name));
    }
  }
  for (const name of kTexts) await write(name, jsonLines());
  await write('benchmarks/gsm8k/test.jsonl', kSums);
  await write('benchmarks/crows_pairs.csv', 'sent_more,sent_less\nthe cat,the dog\na dog,a cat\n');
  for (const name of ['text.txt', 'benchmarks/documents.txt']) {
    await write(name, 'Call me Ishmael. Some years ago.\n');
  }
  const capitals = { country: 'France', first: 'Lyon', second: 'Paris', answer: 1 };
  await write('benchmarks/capitals.jsonl', JSON.stringify(capitals));
  await write('benchmarks/sums.jsonl', JSON.stringify({ a: 1, b: 2, sum: 3 }));
  await write(kConversations, conversations());
  const sentences = tinyRows(12)
    .map(({ text, label }) => `${label % 2}\t${text}\n`)
    .join('');
  for (const name of ['train', 'dev']) {
    await write(`${name}.tsv`, sentences);
    await write(`sst2/${name}.tsv`, `label\tsentence\n${sentences}`);
  }
  const pairs = tinyRows(6).map(({ text, label }) => `${text}\t${text}\t${kNli[label]}\n`);
  await write('mnli/dev_matched.tsv', `sentence1\tsentence2\tgold_label\n${pairs.join('')}`);
}

function conversations(): string {
  const rows = ['Ishmael', 'Ahab', 'Queequeg'].map((name) => ({
    messages: [
      { role: 'user', content: `Who is ${name}?` },
      { role: 'assistant', content: `${name} is on the Pequod.` },
    ],
  }));
  return rows.map((row) => `${JSON.stringify(row)}\n`).join('');
}

function jsonLines(): string {
  const rows = ['Call me Ishmael.', 'There she blows!', 'From hell’s heart I stab at thee.'].map(
    (text) => {
      const [first = '', second = '', ...rest] = text.split(' ');
      const [question, answer] = [`${first} ${second}`, rest.join(' ')];
      return { question, answer, source: 'the cat', target: 'cat the' };
    },
  );
  return rows.map((row) => `${JSON.stringify(row)}\n`).join('');
}
