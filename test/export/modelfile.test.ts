/**
 * Modelfiles for Ollama: chat formats recognised by what templates render, and their Go templates rendered by Go's text/template, by
 * which Ollama executes them.
 */
import { spawnSync } from 'node:child_process';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import {
  CHAT_FORMATS,
  chatFormatOf,
  goTemplate,
  renderFormat,
  withoutStart,
} from '../../lib/export/chat_formats.ts';
import { modelfileText } from '../../lib/export/modelfile.ts';
import { GgufFile } from '../../lib/io/index.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { balora } from '../support/run_cli.ts';
import { describeShared, sharedPath } from '../support/shared.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { tinyTokenizerJson } from '../support/tiny_tokenizer.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-modelfile-'));
});
afterAll(() => rm(folder, { recursive: true }));

const kUser = (content: string) => ({ role: 'user', content });
const kAssistant = (content: string) => ({ role: 'assistant', content });
const kSystem = (content: string) => ({ role: 'system', content });
const kConversations = {
  one: [kUser('Hi "you" <b>&</b> {{ x }}\n\nthere')],
  three: [kUser('a'), kAssistant('b'), kUser('c')],
  withSystem: [kSystem('Be brief.'), kUser('a')],
  five: [kSystem('s'), kUser('a'), kAssistant('b'), kUser('c'), kAssistant('d'), kUser('e')],
};

/** Jinja templates as models publish them, each written here for its format; with the text that it adds before a conversation. */
const kTemplates: Record<string, { source: string; bos?: true; refusesSystem?: true }> = {
  chatml: {
    source:
      "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}" +
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
  },
  'llama-3': {
    bos: true,
    source:
      "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}" +
      "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
  },
  'llama-2': {
    bos: true,
    source:
      "{% if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}{% set s = messages[0].content %}" +
      '{% else %}{% set loop_messages = messages %}{% set s = false %}{% endif %}' +
      '{% for m in loop_messages %}{% if loop.index0 == 0 and s %}' +
      "{% set content = '<<SYS>>\\n' + s + '\\n<</SYS>>\\n\\n' + m.content %}{% else %}{% set content = m.content %}{% endif %}" +
      "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}" +
      "{% else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}{% endfor %}",
  },
  gemma: {
    bos: true,
    refusesSystem: true,
    source:
      "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" +
      "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_of_turn>\\n' }}" +
      "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
  },
  'mistral (0.2, no space)': {
    bos: true,
    refusesSystem: true,
    source:
      "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('Only user and assistant') }}" +
      "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
  },
  'mistral (0.3)': {
    bos: true,
    source:
      "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set ms = messages[1:] %}" +
      '{% else %}{% set ms = messages %}{% endif %}{% for m in ms %}' +
      "{% if m.role == 'user' %}{{ '[INST] ' }}{% if loop.last and s is defined %}{{ s + '\\n\\n' }}{% endif %}{{ m.content + '[/INST]' }}" +
      "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
  },
  'phi-3': {
    source:
      "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}" +
      "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
  },
};

/** A tokenizer with a BOS and an EOS token, which puts BOS before texts where `adds`. */
function tokenizerWith(
  source: string | null,
  { adds = true, bos = '<s>', eos = '</s>' } = {},
): Tokenizer {
  const json = JSON.parse(
    JSON.stringify(tinyTokenizerJson()).replaceAll('<start>', bos).replaceAll('<end>', eos),
  );
  const single = [{ SpecialToken: { id: bos, type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }];
  const id = json.added_tokens[0].id as number;
  const post = {
    type: 'TemplateProcessing',
    ...{ single, pair: [...single, { Sequence: { id: 'B', type_id: 0 } }] },
    special_tokens: { [bos]: { id: bos, ids: [id], tokens: [bos] } },
  };
  return Tokenizer.fromJson(
    { ...json, post_processor: adds ? post : null },
    {
      ...{ bos_token: bos, eos_token: eos },
      ...(source !== null && { chat_template: source }),
    },
  );
}

describe.each(Object.entries(kTemplates))(
  '%s',
  (name, { source, bos = false, refusesSystem = false }) => {
    it('is recognised, and renders conversations as the template of the tokenizer does', () => {
      const tokenizer = tokenizerWith(source);
      const found = chatFormatOf(tokenizer);
      expect(found).toMatchObject({ format: { name }, start: '', defaultSystem: null });
      for (const [which, messages] of Object.entries(kConversations)) {
        if (refusesSystem && messages[0]?.role === 'system') continue;
        const own = renderFormat(found.format, messages);
        const rendered = tokenizer.renderChat(messages, { addGenerationPrompt: true });
        expect((bos ? '<s>' : '') + own, which).toBe(rendered);
      }
      // A BOS that the tokenizer does not add by itself belongs into the template.
      const silent = chatFormatOf(tokenizerWith(source, { adds: false }));
      expect(silent).toMatchObject({ format: { name }, start: bos ? '<s>' : '' });
    });
  },
);

/** SmolLM2's template, whose turns begin with its BOS token and end with its EOS token. */
const kSmolLm2Template =
  "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" +
  "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}" +
  "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const kSmolLm2System = 'You are a helpful AI assistant named SmolLM, trained by Hugging Face';
const kSmolLm2Modelfile = [
  'FROM ./model.gguf',
  'TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"""',
  `SYSTEM """${kSmolLm2System}"""`,
  'PARAMETER stop "<|im_start|>"',
  'PARAMETER stop "<|im_end|>"',
  '',
].join('\n');

/** Templates whose turns begin with the BOS token, with that token, their EOS token and their format. */
const kBosInTurns: readonly [
  name: string,
  tokens: { bos: string; eos: string },
  template: string,
][] = [
  ['chatml', { bos: '<|im_start|>', eos: '<|im_end|>' }, kSmolLm2Template],
  [
    ...(['llama-3', { bos: '<|start_header_id|>', eos: '<|eot_id|>' }] as const),
    (kTemplates['llama-3'] as { source: string }).source.replace('{{ bos_token }}', ''),
  ],
  [
    ...(['gemma', { bos: '<start_of_turn>', eos: '<end_of_turn>' }] as const),
    (kTemplates.gemma as { source: string }).source.replace('{{ bos_token }}', ''),
  ],
  [
    ...(['phi-4', { bos: '<|im_start|>', eos: '<|im_end|>' }] as const),
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}" +
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
  ],
];

describe.each(kBosInTurns)('%s with the BOS token as the mark of turns', (name, tokens, source) => {
  const conversations = Object.entries(kConversations).filter(
    ([, messages]) => name !== 'gemma' || messages[0]?.role !== 'system',
  );

  it('is recognised as it is where the tokenizer adds no BOS', () => {
    const tokenizer = tokenizerWith(source, { adds: false, ...tokens });
    const { format, start, defaultSystem } = chatFormatOf(tokenizer);
    expect(format).toBe(CHAT_FORMATS.find((known) => known.name === name));
    expect([start, defaultSystem]).toEqual(['', name === 'chatml' ? kSmolLm2System : null]);
  });

  it('is without the first BOS where the tokenizer adds it, which is then there once', () => {
    const tokenizer = tokenizerWith(source, { adds: true, ...tokens });
    const { format, start, defaultSystem } = chatFormatOf(tokenizer);
    expect([format.name, start]).toEqual([name, '']);
    for (const [which, messages] of conversations) {
      const all =
        defaultSystem === null || messages[0]?.role === 'system'
          ? messages
          : [kSystem(defaultSystem), ...messages];
      const rendered = tokenizer.renderChat(messages, { addGenerationPrompt: true });
      expect(tokens.bos + renderFormat(format, all), which).toBe(rendered);
    }
  });

  it('is told from a BOS before the first turn', () => {
    const before = `{{ bos_token }}${source}`;
    for (const [adds, start] of [
      [true, ''],
      [false, tokens.bos],
    ] as const) {
      const found = chatFormatOf(tokenizerWith(before, { adds, ...tokens }));
      expect(found).toMatchObject({ format: { name }, start });
      expect(CHAT_FORMATS).toContain(found.format);
    }
  });
});

describeShared('SmolLM2', ['models/smollm2-135m-instruct-gguf'], () => {
  const model = sharedPath('models/smollm2-135m-instruct-gguf');

  it('has a Modelfile', async () => {
    const output = join(folder, 'smollm2');
    const { code, err } = await balora([
      ...['export', '--model', model, '--to', 'modelfile', '--outtype', 'f16'],
      ...['--output', output],
    ]);
    expect(code, err).toBe(0);
    expect(await readFile(join(output, 'Modelfile'), 'utf8')).toBe(kSmolLm2Modelfile);
    const file = GgufFile.open(join(output, 'model.gguf'));
    expect(file.metadata.get('tokenizer.chat_template')).toBe(kSmolLm2Template);
    file.close();
  });
});

describe('a template', () => {
  it('that adds a system text of its own has it as SYSTEM', () => {
    const source =
      "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are \"tiny\".<|im_end|>\\n' }}{% endif %}" +
      (kTemplates.chatml as { source: string }).source;
    const found = chatFormatOf(tokenizerWith(source));
    expect(found).toMatchObject({ format: { name: 'chatml' }, defaultSystem: 'You are "tiny".' });
    expect(modelfileText(found)).toBe(
      [
        'FROM ./model.gguf',
        'TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"""',
        'SYSTEM """You are "tiny"."""',
        'PARAMETER stop "<|im_start|>"',
        'PARAMETER stop "<|im_end|>"',
        '',
      ].join('\n'),
    );
  });

  it('of another format, or none, is refused by name', () => {
    const other = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}";
    expect(() => chatFormatOf(tokenizerWith(other))).toThrow(
      /the model's chat template is none of chatml, llama-3, llama-2, gemma, mistral .*, phi-3, .* would be a guess; export to gguf/,
    );
    const dated = `{{ 'Today: 1 May\\n' }}${(kTemplates.chatml as { source: string }).source}`;
    expect(() => chatFormatOf(tokenizerWith(dated))).toThrow(/is none of/);
    expect(() => chatFormatOf(tokenizerWith(null))).toThrow(/has no chat template; put/);
  });
});

const kProgram = `package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type message struct{ Role, Content string }
type task struct {
	Template string
	Messages []message
}

func main() {
	var tasks []task
	if err := json.NewDecoder(os.Stdin).Decode(&tasks); err != nil {
		panic(err)
	}
	texts := []string{}
	for _, t := range tasks {
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(t.Template))
		var text textWriter
		if err := parsed.Execute(&text, map[string]any{"Messages": t.Messages, "System": "", "Prompt": "", "Response": ""}); err != nil {
			panic(err)
		}
		texts = append(texts, string(text))
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		panic(err)
	}
}

type textWriter []byte

func (w *textWriter) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}
`;

describe("Go's text/template", () => {
  it('renders every format as it is rendered here', async ({ skip }) => {
    if (spawnSync('go', ['version']).error !== undefined)
      skip('needs go (apt-get install golang-go)');
    const program = join(folder, 'main.go');
    await writeFile(program, kProgram);
    // Each also without what its turns begin with, as where that is the BOS token.
    const formats = CHAT_FORMATS.flatMap((format) => {
      const first = format.kind === 'turns' ? format.before.split('ROLE')[0] : format.user[0];
      const without = first === undefined || first === '' ? null : withoutStart(format, first);
      return without === null ? [format] : [format, without];
    });
    const tasks = formats.flatMap((format) =>
      ['', '<s>'].flatMap((start) =>
        Object.entries(kConversations).map(([which, messages]) => ({
          label: `${format.name}, ${which}`,
          Template: goTemplate(format, start),
          Messages: messages,
          expected: start + renderFormat(format, messages),
        })),
      ),
    );
    const env = {
      ...process.env,
      GOCACHE: join(folder, 'go'),
      GOFLAGS: '-mod=mod',
      GO111MODULE: 'off',
    };
    const { stdout, stderr, status } = spawnSync('go', ['run', program], {
      ...{ input: JSON.stringify(tasks), encoding: 'utf8', env, maxBuffer: 2 ** 26 },
    });
    expect(status, stderr).toBe(0);
    const texts = JSON.parse(stdout) as string[];
    expect(texts).toHaveLength(tasks.length);
    tasks.forEach(({ label, expected }, i) => {
      expect(texts[i], label).toBe(expected);
    });
  });
});

describe('balora export --to modelfile', () => {
  const run = (model: string, output: string) =>
    balora([
      ...['export', '--model', model, '--adapter', join(folder, 'adapter'), '--to', 'modelfile'],
      ...['--output', join(folder, output)],
    ]);

  it('writes a folder with the model; one of an unknown format is refused before anything is written', async () => {
    const model = join(folder, 'model');
    await mkdir(model);
    await writeTinyCheckpoint(model);
    const base = await AutoModelForCausalLM.fromPretrained(model);
    const tuned = await AdapterModel.create(base, { r: 2 });
    disturb(tuned, 1, 0.1);
    await tuned.savePretrained(join(folder, 'adapter'));
    const refused = await run(model, 'unknown');
    expect(refused.err).toMatch(/the model's chat template is none of/);
    expect(refused.code).toBe(1);
    await expect(readdir(join(folder, 'unknown'))).rejects.toThrow('ENOENT');

    const { source } = kTemplates.chatml as { source: string };
    await writeFile(join(model, 'chat_template.jinja'), source);
    const { code, err, out } = await run(model, 'ollama');
    expect(err).toBe('');
    expect(code).toBe(0);
    const at = join(folder, 'ollama');
    expect(out).toMatch(/^F16: root mean square error/);
    expect(out.split('\n').slice(-3)).toEqual([
      `written to ${at}`,
      `for Ollama: ollama create NAME -f ${join(at, 'Modelfile')}`,
      '',
    ]);
    const apart = await run(model, "my 'own");
    expect(apart.out).toContain(` -f '${join(folder, "my '\\''own", 'Modelfile')}'\n`);
    expect((await readdir(join(folder, 'ollama'))).sort()).toEqual([
      '.balora-export.json',
      'Modelfile',
      'model.gguf',
    ]);
    expect(await readFile(join(folder, 'ollama', 'Modelfile'), 'utf8')).toMatch(
      /^FROM \.\/model\.gguf\nTEMPLATE """/,
    );
    const file = GgufFile.open(join(folder, 'ollama', 'model.gguf'));
    expect(file.metadata.get('tokenizer.chat_template')).toBe(source);
    file.close();
  });

  it("writes SmolLM2's Modelfile of a Hugging Face folder, too", async () => {
    const model = join(folder, 'smollm2-hf');
    await mkdir(model);
    await writeTinyCheckpoint(model);
    for (const name of ['tokenizer.json', 'tokenizer_config.json']) {
      const text = await readFile(join(model, name), 'utf8');
      await writeFile(
        join(model, name),
        text.replaceAll('<start>', '<|im_start|>').replaceAll('<end>', '<|im_end|>'),
      );
    }
    await writeFile(join(model, 'chat_template.jinja'), kSmolLm2Template);
    const tokenizer = await Tokenizer.fromPretrained(model);
    expect(tokenizer.token(tokenizer.bosId as number)).toBe('<|im_start|>');
    expect(tokenizer.encode('a')).not.toContain(tokenizer.bosId);
    const output = join(folder, 'smollm2-hf-ollama');
    const { code, err } = await balora([
      ...['export', '--model', model, '--to', 'modelfile', '--output', output],
    ]);
    expect(code, err).toBe(0);
    expect(await readFile(join(output, 'Modelfile'), 'utf8')).toBe(kSmolLm2Modelfile);
  });
});
