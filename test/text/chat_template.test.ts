// Chat templates that never end, or make texts and lists without bound, are errors by name; published ones stay far below the limits.
import { describe, expect, it } from 'vitest';
import { FormatError } from '../../lib/errors.ts';
import { ChatTemplate } from '../../lib/text/chat_template.ts';
import { processorMs } from '../support/limits.ts';

const kMessages = [{ role: 'user', content: 'hi' }];
const render = (
  template: string,
  messages: readonly { role: string; content: unknown }[] = kMessages,
) => new ChatTemplate(template, { bos_token: '<s>' }).render(messages);

/** Doubles a value n times. */
const doubled = (first: string, sum: string, n: number) =>
  `{% set ns = namespace(x=${first}) %}{% for i in range(${n}) %}{% set ns.x = ${sum} %}{% endfor %}`;

const kSteps =
  /chat template: it takes more than \d+ steps, as a loop without end does; correct chat/;
const kSize = /makes a text or a list of more than \d+ characters and values/;

describe('a template', () => {
  it.each<[string, string, RegExp]>([
    ['range(1000000000)', '{% for i in range(1000000000) %}x{% endfor %}', kSize],
    ['a range of negative steps', '{{ range(0, -10 ** 15, -1)|length }}', kSize],
    [
      'nested loops',
      '{% for i in range(10000) %}{% for j in range(10000) %}{% for k in range(10000) %}{% endfor %}{% endfor %}{% endfor %}',
      kSteps,
    ],
    [
      'a macro that calls itself twice',
      '{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}',
      kSteps,
    ],
    [
      'a macro that calls itself',
      '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
      /its parts nest deeper than 500/,
    ],
    ['a text that doubles', `${doubled("'x'", 'ns.x ~ ns.x', 60)}{{ ns.x|length }}`, kSize],
    ['a sum of texts that doubles', `${doubled("'x'", 'ns.x + ns.x', 60)}`, kSize],
    ['a list that doubles', `${doubled('[1]', 'ns.x + ns.x', 60)}`, kSize],
    ['lists of the same list', `${doubled('[1]', '[ns.x, ns.x]', 60)}{{ ns.x }}`, kSize],
    [
      'mappings of the same mapping',
      `${doubled("{'a': 1}", "{'a': ns.x, 'b': ns.x}", 60)}{{ ns.x|tojson }}`,
      kSize,
    ],
    [
      'namespaces of namespaces',
      `${Array.from({ length: 40 }, (_, i) => `{% set n${i} = namespace(x=1) %}`).join('')}${Array.from({ length: 39 }, (_, i) => `{% set n${i}.x = [n${i + 1}, n${i + 1}] %}`).join('')}{{ n0 }}`,
      kSize,
    ],
    [
      'a namespace in itself',
      '{% set n = namespace() %}{% set n.x = [n] %}{{ n }}',
      /nests too deeply/,
    ],
    ['a deep list', `${doubled('[1]', '[ns.x]', 5000)}{{ ns.x }}`, /nest deeper than 128/],
    ['indent', "{{ 'a\nb'|indent(1000000000) }}", kSize],
    ['indent by a variable', "{% set w = 10 ** 8 %}{{ 'a\nb'|indent(width=w) }}", kSize],
    ['indent around a block', '{% filter indent(100000000) %}a\nb{% endfilter %}', kSize],
    ['tojson', '{{ [[1, 2], [3]]|tojson(indent=100000000) }}', kSize],
    [
      'join',
      `{% set s = ${"'".concat('x'.repeat(5000), "'")} %}{{ range(100000)|join(s) }}`,
      kSize,
    ],
    ['replace', "{% set s = range(20000)|join('a') %}{{ s|replace('', s) }}", kSize],
    ['the method replace', "{% set s = range(20000)|join('a') %}{{ s.replace('', s) }}", kSize],
    [
      'work on a long text in a loop',
      "{% set s = range(100000)|join('a') %}{% for i in range(100000) %}{{ (s|upper|trim)[0] }}{% endfor %}",
      kSteps,
    ],
  ])('with %s is refused within seconds', (_, template, message) => {
    const begin = processorMs();
    expect(() => render(template)).toThrow(message);
    expect(() => render(template)).toThrow(FormatError);
    expect(processorMs() - begin).toBeLessThan(30_000);
  });

  it('that is too long, or takes too long to parse, is refused', () => {
    expect(() => render('x'.repeat(2 ** 20 + 1))).toThrow(
      /'default' has 1048577 characters, more than/,
    );
    expect(() => render('{{'.repeat(1000))).toThrow(/does not parse/);
  });

  it('that is neither a text nor a list of named ones is refused', () => {
    for (const source of [5, [], [{ name: 'a' }], [null], { name: 'a', template: '' }]) {
      expect(() => new ChatTemplate(source as never, {})).toThrow(
        /must be a text, or a list of templates/,
      );
    }
  });

  it('may use the filters that could grow, within reason', () => {
    expect(render("{{ 'a\nb'|indent(2) }}")).toBe('a\n  b');
    expect(render("{{ 'a\nb'|indent(first=true, width=1) }}")).toBe(' a\n b');
    expect(render('{{ [1, [2]]|tojson(indent=1) }}')).toBe('[\n 1,\n [\n  2\n ]\n]');
    expect(render("{{ ['a', 'b']|join(', ') }} {{ ['a', 'b']|join }}")).toBe('a, b ab');
    expect(render("{{ 'aXbX'.replace('X', '--') }} {{ 'aXb'|replace('X', '') }}")).toBe(
      'a--b-- ab',
    );
    expect(render("{% set a = ['X', '-'] %}{{ 'aXb'.replace(*a) }}")).toBe('a-b');
    expect(render('{% filter indent(1) %}a\nb{% endfilter %}')).toBe('a\n b');
    expect(
      render('{{ range(3)|list }}{{ range(1, 6, 2) }}{{ range(3, 0, -1) }}{{ range(2, 2) }}'),
    ).toBe('[0, 1, 2][1, 3, 5][3, 2, 1][]');
    expect(render('{{ True and not False }}{{ none is none }}{{ None is none }}')).toBe(
      'truetruetrue',
    );
    expect(render("{{ strftime_now('%Y-%m-%d %H:%M:%S %b %B %%') }}")).toMatch(
      /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [A-Z][a-z]{2} [A-Z][a-z]+ %$/,
    );
    expect(() => render("{{ raise_exception('no') }}")).toThrow(/it refuses the messages \(no\)/);
    expect(() => render('{{ range(0.5) }}')).toThrow(
      /range\(\) takes 1 to 3 whole numbers, got 0.5/,
    );
  });

  it('renders long conversations: the limits grow with them', () => {
    const turn =
      "{% for m in messages %}{% if loop.index0 > 0 and messages[loop.index0 - 1].role == m.role %}{{ raise_exception('roles') }}{% endif %}" +
      "{% set c = m['content'] | trim %}{{ '<start>' + m['role'] + '\n' + c + '<end>\n' }}{% if messages | length == loop.index %}!{% endif %}{% endfor %}";
    const long = Array.from({ length: 5000 }, (_, i) => ({
      role: i % 2 === 0 ? 'user' : 'assistant',
      content: 'word '.repeat(100),
    }));
    const text = render(turn, long);
    expect(text.length).toBeGreaterThan(2.4e6);
    const single = [{ role: 'user', content: 'x'.repeat(5e6) }];
    expect(render(turn, single).length).toBe(5e6 + '<start>user\n<end>\n!'.length);
  });
});
