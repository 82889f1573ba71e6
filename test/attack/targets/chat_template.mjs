// Chat templates put together from the language's parts, and mutated; rendered with messages of any form.
import { ChatTemplate } from 'balora';
import { require } from '../finding.mjs';
import { anyJson, mutateText } from '../mutations.mjs';

const kExpressions = [
  ...["message['role']", 'message.content', 'message["content"] | trim', 'bos_token', 'loop.index', 'loop.first', 'messages | length'],
  ...['messages[0]', 'messages[-1].content', "'a' + 'b'", '1 // 0', '2 ** 64', 'range(5)', 'namespace(x=1)', 'tools', 'undefined_name'],
  ...['add_generation_prompt', "raise_exception('no')", "strftime_now('%Y')", 'message.content.split("x")', 'messages | tojson', 'true and false'],
  ...['[1, 2] * 3', '"x" * 100', 'message is mapping', 'message.content is string', 'none', '(1 if x else 2)', 'range(10 ** 9)', '"x" * 10 ** 9'],
];

function anyTemplate(random, depth = 0) {
  return random
    .several(1, 3, () => {
      const expression = random.pick(kExpressions);
      const inner = () => (depth > 3 ? 'x' : anyTemplate(random, depth + 1));
      return random.pick([
        () => `{{ ${expression} }}`,
        () => `{%- if ${expression} -%}${inner()}{% else %}${inner()}{% endif %}`,
        () => `{% for message in messages %}${inner()}{% endfor %}`,
        () => `{% for i in range(${random.pick([0, 3, 50])}) %}${inner()}{% endfor %}`,
        () => `{% set x = ${expression} %}`,
        () => `{% macro f(a) %}${inner()}{% endmacro %}{{ f(${expression}) }}`,
        () => '{% macro g(n) %}{{ g(n) }}{% endmacro %}{{ g(1) }}',
        () => random.text(),
        () => `{# ${random.text()} #}`,
      ])();
    })
    .join('');
}

function input(random) {
  const template = random.chance(0.4) ? mutateText(random, anyTemplate(random)) : anyTemplate(random);
  const good = () => ({ role: random.pick(['user', 'assistant', 'system', 'tool']), content: random.text() });
  const messages = random.several(0, 4, () => (random.chance(0.8) ? good() : anyJson(random)));
  const source = random.chance(0.9) ? template : [{ name: 'default', template }, { name: 'tool_use', template }];
  return { source, messages, options: { addGenerationPrompt: random.chance(0.5), ...(random.chance(0.2) && { tools: [anyJson(random)] }) } };
}

function run({ source, messages, options }) {
  const text = new ChatTemplate(source, { bos_token: '<s>', eos_token: '</s>' }).render(messages, options);
  require(typeof text === 'string', () => `a template gave ${typeof text}`);
}

export default {
  what: 'chat templates of any form, rendered with any messages',
  input,
  run,
  mentions: () => ['chat template'],
  quotes: /^chat template/,
};
