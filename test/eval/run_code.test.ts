// Programs in namespaces and a root of their own, and tests in a second interpreter. Where no namespaces can be made (in some
// containers), the tests of isolation are skipped.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import {
  chmod,
  mkdir,
  mkdtemp,
  open as openFile,
  rm,
  rmdir,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { UnsupportedError } from '../../lib/errors.ts';
import { type CodeRunner, openCodeRunner } from '../../lib/eval/run_code.ts';
import { runPrograms, samplesOf } from '../../lib/eval/run_programs.ts';
import type { ItemRecord } from '../../lib/eval/scoring.ts';
import { readItems } from '../../lib/eval/task_data.ts';
import { scoringTask } from '../../lib/eval/tasks/registry.ts';
import type { CodeTask } from '../../lib/eval/tasks/task.ts';
import { fixturePath } from '../support/fixtures.ts';

const kPython = spawnSync('python3', ['--version']).status === 0;
const kNewUser = ['--user', '--map-root-user'];
const kNamespaces =
  kPython &&
  spawnSync('unshare', [...kNewUser, '--mount', '--net', '--pid', '--fork', 'true']).status === 0;
const kGrouped = kNamespaces && (await openCodeRunner()).missing.length === 0;

/** Seconds for a program that ends by itself, also on a busy machine. */
const kPatience = 60;

/** Calls a function with a PATH whose python3 is a script, with the folder of that. */
async function withPython<R>(script: string, use: (folder: string) => Promise<R>): Promise<R> {
  const { PATH } = process.env;
  const folder = await mkdtemp(join(tmpdir(), 'own-python-'));
  await writeFile(join(folder, 'python3'), `#!/bin/sh\n${script}\n`);
  await chmod(join(folder, 'python3'), 0o755);
  process.env.PATH = `${folder}:${PATH}`;
  try {
    return await use(folder);
  } finally {
    process.env.PATH = PATH;
    await rm(folder, { recursive: true });
  }
}

/** Calls a function with a PATH whose python3 can make no namespaces. */
async function withoutNamespaces<R>(use: () => Promise<R>): Promise<R> {
  if (!kNamespaces) return use();
  const code = 'import sys; print(sys.executable)';
  const python = spawnSync('python3', ['-c', code], { encoding: 'utf8' }).stdout.trim();
  const script = `exec unshare ${kNewUser.join(' ')} sh -c 'echo 0 > /proc/sys/user/max_user_namespaces && exec ${python} "$@"' sh "$@"`;
  return withPython(script, use);
}

describe.skipIf(!kPython)('a program', () => {
  const open = (seconds = kPatience) => openCodeRunner({ unsafe: true, seconds });

  it('passes by its end alone', async () => {
    const { run } = await open();
    expect(await run('x = 1\nassert x == 1')).toBe('passed');
    expect(await run('assert False')).toBe('failed');
    expect(await run('def broken(:')).toBe('failed');
    for (const exit of ['raise SystemExit(0)', 'import os; os._exit(0)', 'exit()']) {
      expect(await run(exit), exit).toBe('failed');
    }
    expect(await run('print("ready")\nprint("x" * 10**6)')).toBe('passed');
    expect(await run('if __name__ == "__main__":\n    raise ValueError')).toBe('passed');
  });

  it('is ended when its time is over', async () => {
    const { run } = await open(1);
    const begun = performance.now();
    expect(await run('while True: pass')).toBe('timed out');
    expect(await run('import time; time.sleep(60)')).toBe('timed out');
    expect(performance.now() - begun).toBeLessThan(10_000);
  });

  it('has no more memory than it may', async () => {
    const { run } = await open();
    expect(await run('x = bytearray(2 * 2**30)')).toBe('failed');
    expect(await run('x = bytearray(2**27)')).toBe('passed');
  });

  it('writes no large file, and sees no environment', async () => {
    const { run } = await open();
    process.env.BALORA_TEST_SECRET = 'secret';
    try {
      expect(await run('import os; assert "BALORA_TEST_SECRET" not in os.environ')).toBe('passed');
    } finally {
      delete process.env.BALORA_TEST_SECRET;
    }
    expect(await run('open("small", "w").write("x" * 1000)')).toBe('passed');
    expect(
      await run('f = open("large", "wb")\nfor _ in range(40): f.write(b"x" * 2**20)\nf.flush()'),
    ).toBe('failed');
  });

  it('ends with the signal of the caller', async () => {
    const { run } = await open();
    const abort = new AbortController();
    setTimeout(() => abort.abort(new Error('stop')), 300);
    const { signal } = abort;
    await expect(run('import time; time.sleep(9)', { signal })).rejects.toThrow('stop');
    const before = AbortSignal.abort(new Error('before'));
    await expect(run('', { signal: before })).rejects.toThrow('before');
  });
});

/** Lines of Python. */
const lines = (...all: string[]): string => all.join('\n');

describe.skipIf(!kPython)('a test in an interpreter of its own', () => {
  let runner: CodeRunner;
  beforeAll(async () => {
    runner = await openCodeRunner({ unsafe: true, seconds: kPatience });
  });

  /** Programs and tests that pass in one interpreter, by what they need. */
  const kRight: Record<string, [program: string, test: string]> = {
    values: [
      lines(
        'from collections import *',
        'from fractions import Fraction',
        'from decimal import Decimal',
        'import datetime',
        'def same(*all, **named): return all[0] if not named else named',
        'def bag(text): return Counter(text)',
        'Pair = namedtuple("Pair", "a b")',
        'def pair(): return [Pair(1, (2, 3))]',
        'class Text(str): pass',
        'def text(): return Text("own")',
        'def ordered(): return OrderedDict([("b", 1), ("a", 2)])',
        'def many(): return Fraction(1, 3), Decimal("0.1"), datetime.date(2020, 2, 29), deque([1]), {"k": 1}.keys()',
      ),
      lines(
        'import datetime, math',
        'from collections import *',
        'from fractions import Fraction',
        'from decimal import Decimal',
        'for one in (None, True, 0, -2**70, 1.5, -0.0, math.inf, 2 + 3j, "a\\ud800\\0é", b"\\xff", (), [[]], {1: {2}, (3, "x"): None},',
        '            frozenset([(1,)]), range(3, 9, 2), bytearray(b"x"), {"a": [1, {"b"}]}, slice(1), ..., int, [1, (2, [3])]):',
        '    found = same(one)',
        '    assert type(found) is type(one) and found == one and repr(found) == repr(one), (found, one)',
        'assert math.isnan(same(math.nan)) and same(True) is True and same(1) is not True',
        'assert same(0, a=1, b=[2]) == {"a": 1, "b": [2]}',
        'assert bag("aab") == {"a": 2, "b": 1} and bag("aab").most_common(1) == [("a", 2)]',
        'assert pair() == [(1, (2, 3))] and text() == "own" and list(ordered()) == ["b", "a"]',
        'assert many() == (Fraction(1, 3), Decimal("0.1"), datetime.date(2020, 2, 29), deque([1]), {"k"})',
      ),
    ],
    'what is done to its arguments': [
      lines(
        'def sort(items): items.sort()',
        'def first(items): return items[0]',
        'def same(items): return items',
        'def grow(a, b):',
        '    a.append(b); b["self"] = b; a.append(a)',
        '    return a is not b',
      ),
      lines(
        'items = [3, 1, 2]',
        'assert sort(items) is None and items == [1, 2, 3]',
        'assert same(items) is items and first([items, items]) == items',
        'a, b = [], {}',
        'assert grow(a, b) and a[0] is b and b["self"] is b and a[1] is a',
      ),
    ],
    'objects of its classes': [
      lines(
        'class Node:',
        '    def __init__(self, value): self.value, self.left, self.right = value, None, None',
        '    def __len__(self): return 1 + sum(len(one) for one in (self.left, self.right) if one)',
        'def total(node): return node.value + total(node.left) + total(node.right) if node else 0',
        'def add(node): node.left = Node(7); return node',
        'def numbers():',
        '    yield from (1, 2)',
      ),
      lines(
        'root = Node(1)',
        'root.left, root.right = Node(2), Node(4)',
        'root.left.left = Node(8)',
        'assert total(root) == 15 and len(root) == 4 and isinstance(root.left, Node) and not isinstance(1, Node)',
        'assert add(root) is root and root.left.value == 7 and total(None) == 0',
        'assert list(numbers()) == [1, 2] and sum(numbers()) == 3 and 2 in numbers()',
        'one = numbers()',
        'assert next(one) == 1 and next(one) == 2 and next(one, None) is None',
      ),
    ],
    'functions and objects of the test': [
      lines(
        'def twice(f, x): return f(f(x))',
        'def ordered(items, key): return sorted(items, key=key)',
        'def take(numbers): return [next(numbers), next(numbers)]',
        'def swap(point): point.x, point.y = point.y, point.x',
        'def make(kind, x): return kind(x)',
        'def same(a, b): return a == b',
      ),
      lines(
        'assert twice(lambda x: x + [1], []) == [1, 1]',
        'assert ordered(["bb", "a"], len) == ["a", "bb"] and ordered([1, -2], key=lambda x: x) == [-2, 1]',
        'assert take(x * x for x in range(2, 9)) == [4, 9]',
        'class Point: pass',
        'point = Point(); point.x, point.y = 1, 2',
        'swap(point)',
        'assert (point.x, point.y) == (2, 1)',
        'assert same(point, point) and not same(point, Point())',
        'from decimal import Decimal',
        'class Pair:',
        '    def __init__(self, x): self.x = x',
        'assert make(Decimal, "2") == 2 and make(int, "3") == 3 and make(Pair, 4).x == 4 and make(abs, -5) == 5',
      ),
    ],
    'its errors': [
      lines(
        'class Own(ValueError): pass',
        'def fails(kind):',
        '    if kind == 0: raise Own("zero")',
        '    return {}["key"] if kind == 1 else 1 / 0',
      ),
      lines(
        'for kind, expected in enumerate((ValueError, KeyError, ZeroDivisionError)):',
        '    try:',
        '        fails(kind)',
        '    except expected as error:',
        '        assert kind > 0 or str(error) == "zero"',
        '    else:',
        '        raise AssertionError(kind)',
      ),
    ],
    'many calls and large values': [
      'def add(a, b): return a + b\ndef zeros(n): return [0] * n',
      'for i in range(1000): assert add(i, 1) == i + 1\nassert len(zeros(10**6)) == 10**6 and add(10**5000, 1) % 10 == 1',
    ],
  };

  it.each(Object.keys(kRight))('passes a right program: %s', async (what) => {
    const [program, test] = kRight[what] as [string, string];
    expect(await runner.run(program, { test, reference: program })).toBe('passed');
    expect(await runner.run(program, { test: `${test}\nassert False` })).toBe('failed');
  });

  it('gives names of Python to the program alone where the reference defines them', async () => {
    const sum = 'def sum(a, b): return a + b';
    const test = 'assert sum(10, 15) == 25';
    expect(await runner.run(sum, { test, reference: sum })).toBe('passed');
    expect(await runner.run(sum, { test })).toBe('failed');
    const reference = 'import math\nfrom collections import deque as line\ndef f(x): pass';
    const root = { reference, test: 'assert f(4) == math.sqrt(4) and line([1]) == line([1])' };
    expect(await runner.run('def f(x): return 2', root)).toBe('passed');
    expect(await runner.run('class math: sqrt = 3\ndef f(x): return 2', root)).toBe('passed');
  });
});

/** The statement by which a program finds its side of the connection. */
const kPeerOf = 'import sys\npeer = sys._getframe(1).f_locals["peer"]';

/** A program that makes a class in the interpreter of the test, whose objects equal everything. @param bases in Python, as `args` */
const inTest = (bases: string, args = ''): string =>
  lines(
    kPeerOf,
    'def yes(*all): return True',
    'def zero(*all): return 0',
    'def f(x):',
    `    kind = peer.ask("call", type, ["Any", ${bases}, {"__eq__": yes, "__sub__": zero, "__hash__": None}], {})`,
    `    return peer.ask("call", kind, [${args}], {})`,
  );

/** Programs that are wrong, and try to pass by other ways than being right; f(1) should be 2. */
const kForgeries: Record<string, string> = {
  'the end of the process': 'import os\ndef f(x): os._exit(0)',
  'the end of the interpreter': 'def f(x): raise SystemExit(0)',
  'an early end': 'import os; os._exit(0)',
  'the handlers of the end': lines(
    'import atexit, os',
    'atexit.register(lambda: [os.write(fd, b"passed\\n") for fd in (1, 2)])',
    'def f(x): raise SystemExit',
  ),
  'the words of the harness in its frames, written to each descriptor': lines(
    'import gc, os, sys',
    'def words():',
    '    frame = sys._getframe()',
    '    while frame:',
    '        for one in list(frame.f_locals.values()) + list(frame.f_globals.values()):',
    '            if isinstance(one, (str, bytes)) and len(one) < 100: yield one if isinstance(one, bytes) else one.encode()',
    '        frame = frame.f_back',
    'def f(x=0):',
    '    for fd in range(64):',
    '        for word in [b"passed\\n", b"ready\\npassed\\n", *words()]:',
    '            try: os.write(fd, word)',
    '            except OSError: pass',
    '    os._exit(0)',
    'import threading',
    'f()',
  ),
  'the harness, changed in its frames': lines(
    'import sys',
    'frame = sys._getframe()',
    'while frame:',
    '    for name, one in list(frame.f_globals.items()):',
    '        if callable(one) and not isinstance(one, type): frame.f_globals[name] = lambda *all, **named: True',
    '    frame = frame.f_back',
    'def f(x): return 3',
  ),
  "Python's own functions, replaced": lines(
    'import builtins',
    'builtins.AssertionError = builtins.abs = builtins.bool = builtins.isinstance = lambda *all: 0',
    'abs = sum = len = all = AssertionError = lambda *all: 0',
    '__builtins__["abs"] = abs',
    'def check(f): pass',
    'def f(x): return 3',
  ),
  'an object that equals everything': lines(
    'class Any:',
    '    def __eq__(self, other): return True',
    '    def __ne__(self, other): return False',
    '    __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __eq__',
    '    def __sub__(self, other): return self',
    '    __rsub__ = __add__ = __radd__ = __sub__',
    '    def __abs__(self): return 0',
    '    def __hash__(self): return hash(2)',
    'def f(x): return Any()',
  ),
  'a number that equals everything': lines(
    'class Any(int):',
    '    def __eq__(self, other): return True',
    '    def __hash__(self): return 2',
    '    def __sub__(self, other): return 0',
    'def f(x): return Any(3)',
  ),
  'messages of its own': lines(
    'import json, os',
    'def say(message):',
    '    data = json.dumps(message).encode()',
    '    for fd in range(3, 64):',
    '        try: os.write(fd, len(data).to_bytes(8, "big") + data)',
    '        except OSError: pass',
    'say(["is", [["at", 0]], [["dict", [["f", ["type", "int"]], ["check", ["type", "int"]], ["__builtins__", {}]]]], None])',
    'os._exit(0)',
  ),
  'what the test gives it': lines(
    'def f(x):',
    '    if callable(x):',
    '        x.__globals__["f"] = x.__builtins__["AssertionError"] = x',
    '    return 3',
  ),
  'a class that it makes in the interpreter of the test': inTest('()'),
  'a subclass of a plain type that it makes there': inTest('(int,)'),
  'an exception that it makes there': inTest('(Exception,)'),
  'a class of classes that it makes there': inTest('(type,)', '"Y", (), {}'),
  'a look at what it is compared with': lines(
    kPeerOf,
    'seen = []',
    'def look(other): seen.append(other); return True',
    'def take(other): seen.append(other); return 0',
    'def f(x):',
    '    if seen: return seen[-1]',
    '    kind = peer.ask("call", type, ["Any", (), {"__eq__": look, "__sub__": take, "__hash__": None}], {})',
    '    return peer.ask("call", kind, [], {})',
  ),
  'the death of all others':
    'import os\nfor pid in (-1, 1, os.getppid()):\n    try: os.kill(pid, 9)\n    except OSError: pass\ndef f(x): os.kill(-1, 9)',
};
const kTest = lines(
  'def check(candidate):',
  '    try: candidate(lambda x: 2)',
  '    except Exception: pass',
  '    assert abs(candidate(1) - 2) < 1e-6',
  '    assert candidate(1) == 2',
  'check(f)',
);

/** Programs that are wrong, with tests of which each needs another way to be passed by them, and what passes it rightly. */
const kOtherForgeries: Record<string, { program: string; test: string; right: string }> = {
  'the end of a loop of the test': {
    program: 'def f(x): raise StopIteration',
    test: 'assert all(map(lambda x: f(x) == x + 1, [1, 2]))',
    right: 'def f(x): return x + 1',
  },
  'the words of the verdict, which the test prints': {
    program: 'def f(x): return "passed\\n" * 5000',
    test: 'print(f(1))\nassert f(1) == 2',
    right: 'def f(x): return 2',
  },
  'one object for all': {
    program: lines(
      'class Node:',
      '    def __new__(cls, *all): return one',
      'one = object.__new__(Node)',
      'def f(x): return one',
    ),
    test: 'try: assert f(Node(1)) == Node(2)\nexcept TypeError: assert f(Node(1)).x == 2',
    right: 'def f(x): return Node(2)\nclass Node:\n    def __init__(self, x): self.x = x',
  },
  'objects of its own that are equal': {
    program: lines(
      'class Node:',
      '    def __init__(self, x): pass',
      '    def __eq__(self, other): return True',
      'def f(x): return x',
    ),
    test: 'assert f(Node(1)) == Node(2)',
    right: 'Node = int\ndef f(x): return x + 1',
  },
  'a method that it puts before that of the test': {
    program: 'def f(point): point.has = lambda *all: True',
    test: lines(
      'class Point:',
      '    x = 1',
      '    def has(self, x): return self.x == x',
      'point = Point()',
      'try: f(point)',
      'except TypeError: pass',
      'assert point.has(2)',
    ),
    right: 'def f(point): point.x = 2',
  },
  'what else the test copies': {
    program: lines(
      'seen = []',
      'class Copied:',
      '    def __deepcopy__(self, memo): seen.extend(one for one in memo.values() if type(one) is list)',
      'def f(x):',
      '    for all in seen:',
      '        for one in all:',
      '            if type(one) is list: return one[0]',
      '    return Copied() if x == 0 else 3',
    ),
    test: lines(
      'import copy',
      'try: copy.deepcopy([[987654], f(0)])',
      'except TypeError: pass',
      'assert f(1) == 987654',
    ),
    right: 'def f(x): return 987654',
  },
  'a base of a class of the test': {
    program: lines(
      'class Base:',
      '    def __mro_entries__(self, bases): return (int,)',
      'base = Base()',
    ),
    test: 'class Number(base): pass\nassert Number(3) + 1 == 4',
    right: 'base = int',
  },
  'a class in the place of a module that is missing': {
    program: 'class no_module:\n    def close(*all): return True\ndef f(x): return 3',
    test: 'try: assert no_module.close(f(1), 2)\nexcept NameError: assert f(1) == 2',
    right: 'def f(x): return 2',
  },
};

describe.skipIf(!kNamespaces)('namespaces', () => {
  const kErrno = { absent: 2, readOnly: 30, noNetwork: 101, noProcess: 3 };
  let runner: CodeRunner;
  let folder: string;
  beforeAll(async () => {
    runner = await openCodeRunner({ seconds: kPatience });
    folder = await mkdtemp(join(tmpdir(), 'not-mine-'));
  });
  afterAll(() => rm(folder, { recursive: true }));

  /** Expects that a program fails by an error of the system. */
  async function expectError(program: string, errno: number): Promise<void> {
    const whole = `try:\n    exec(${JSON.stringify(program)})\nexcept OSError as e:\n    assert e.errno == ${errno}, e\nelse:\n    raise ValueError`;
    expect(await runner.run(whole), program).toBe('passed');
  }
  const quoted = (path: string): string => JSON.stringify(path);

  it('have no network, no other process, and nothing to write to but the own folder', async () => {
    expect(runner.isIsolated).toBe(true);
    const connect = 'import socket\nsocket.create_connection(("192.0.2.1", 9), 1)';
    await expectError(connect, kErrno.noNetwork);
    await expectError('open("/x", "w")', kErrno.readOnly);
    await expectError(`open("/usr/x", "w")`, kErrno.readOnly);
    await expectError(`import os; os.kill(${process.pid}, 9)`, kErrno.noProcess);
    expect(await runner.run('import os; assert os.getpid() == 1')).toBe('passed');
    const own = 'open("x", "w").write("y"); assert open("/tmp/x").read() == "y"';
    expect(await runner.run(own)).toBe('passed');
  });

  it('have no file of the user, no socket and no pipe of others, and devices without a state alone', async () => {
    const file = join(folder, 'file');
    await writeFile(file, 'mine');
    await expectError(`open(${quoted(file)})`, kErrno.absent);
    await expectError(`import os; os.listdir(${quoted(process.cwd())})`, kErrno.absent);
    const socket = join(folder, 'socket');
    let reached = 0;
    const server = createServer(() => ++reached);
    await new Promise<void>((done) => void server.listen(socket, done));
    const connect = `import socket\nsocket.socket(socket.AF_UNIX).connect(${quoted(socket)})`;
    await expectError(connect, kErrno.absent);
    await new Promise((done) => server.close(done));
    expect(reached).toBe(0);
    const pipe = join(folder, 'pipe');
    expect(spawnSync('mkfifo', [pipe]).status).toBe(0);
    const reader = await openFile(pipe, 'r+');
    await expectError(`open(${quoted(pipe)}, "w").write("x")`, kErrno.absent);
    await reader.close();
    const devices = lines(
      'import os, stat',
      'names = sorted(os.listdir("/dev"))',
      'assert names == ["full", "null", "random", "shm", "urandom", "zero"], names',
      'for top in os.listdir("/"):',
      '    for place, _, files in os.walk("/" + top) if top not in ("dev", "proc") else ():',
      '        for mode in (os.lstat(os.path.join(place, name)).st_mode for name in files[:50]):',
      '            assert not (stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode) or stat.S_ISBLK(mode)), place',
      'os.urandom(8), open("/dev/zero", "rb").read(1), open("/dev/null", "w").write("x")',
    );
    expect(await runner.run(devices)).toBe('passed');
  });

  it('have a /proc, /run and /tmp of their own, without the command lines of others', async () => {
    const own = lines(
      'import os',
      'assert set(name for name in os.listdir("/proc") if name.isdigit()) <= {"1"}, os.listdir("/proc")',
      'assert not os.path.exists("/proc/cmdline") and not os.path.exists("/proc/sys")',
      'assert os.listdir("/run") == [] and os.listdir("/tmp") == [] and not os.path.exists("/sys")',
      'assert os.uname().nodename == "program"',
    );
    expect(await runner.run(own)).toBe('passed');
  });

  it('hold so many processes and no more, also for root', async () => {
    const fork = lines(
      'import os, time',
      'count = 0',
      'try:',
      '    while count < 300:',
      '        if os.fork() == 0: time.sleep(60)',
      '        count += 1',
      'except BlockingIOError: assert 10 < count <= 64, count',
      'else: raise ValueError',
      // Nor is it root outside, whom the system does not count the processes of.
      'import ctypes',
      `assert os.getuid() == ${process.getuid?.() || 65534}`,
    );
    expect(await runner.run(fork)).toBe('passed');
  });

  it.skipIf(!kGrouped)('have one limit of memory for all processes of a program', async () => {
    const small = await openCodeRunner({ memoryBytes: 2 ** 28, seconds: kPatience });
    const children = (count: number) =>
      lines(
        'import os, time',
        'def child():',
        '    try:',
        '        held = b"x" * (100 * 2**20)',
        '        time.sleep(1)',
        '        os._exit(0)',
        '    except MemoryError: os._exit(1)',
        `pids = [os.fork() or child() for _ in range(${count})]`,
        'assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)',
      );
    expect(await small.run(children(1))).toBe('passed');
    expect(await small.run(children(5))).toBe('failed');
  });

  /** Reads a file of a process in /proc. */
  const of = (pid: string, name: string): string => {
    try {
      return readFileSync(`/proc/${pid}/${name}`, 'latin1');
    } catch {
      return ''; // it has ended
    }
  };
  /** The processes that run a program of a process with this temporary folder, which is named in their arguments. */
  const started = () =>
    readdirSync('/proc').filter(
      (pid) =>
        /^\d+$/.test(pid) && of(pid, 'cmdline').includes(`"folder":${quoted(folder).slice(0, -1)}`),
    );
  /** Their control groups. */
  const groups = () =>
    started().flatMap((pid) =>
      [...of(pid, 'cgroup').matchAll(/^\d+:(?:name=)?(.*?):(.*\/balora-[^/]*)$/gm)].map(
        ([, controller = '', path = '']) => join('/sys/fs/cgroup', controller, path),
      ),
    );
  const others: ChildProcess[] = [];
  afterAll(() => {
    for (const node of others) node.kill('SIGKILL');
  });
  /** Starts another process, in which a program runs, and waits until it does. @returns it, and the control groups of the program */
  async function startOther() {
    const url = new URL('../../dist/eval/run_code.js', import.meta.url);
    const code = lines(
      `import { openCodeRunner } from ${quoted(url.href)};`,
      'const runner = await openCodeRunner({ seconds: 600 });',
      "await runner.run('import os, time; os.fork(); time.sleep(600)');",
    );
    const node = spawn(process.execPath, ['--input-type=module', '-e', code], {
      env: { ...process.env, TMPDIR: folder },
    });
    others.push(node);
    // A process that starts both sides, and one that waits for each.
    while (started().length < 3 || (kGrouped && groups().length === 0)) await wait(20);
    return { node, made: groups() };
  }

  it('end with the process that made them, however that ends', async () => {
    const { node, made } = await startOther();
    node.kill('SIGKILL');
    while (started().length > 0) await wait(20);
    for (const group of made) while (existsSync(group)) await wait(20);
  });

  it.skipIf(!kGrouped)(
    'remove the groups of others that were killed before they could',
    async () => {
      const { node, made } = await startOther();
      const [group = ''] = made;
      const pid = Number(/balora-(\d+)-/.exec(group)?.[1]);
      process.kill(pid, 'SIGKILL');
      node.kill('SIGKILL');
      while (started().length > 0) await wait(20);
      const mine = join(group, '..', `balora-${process.pid}-00000000`);
      try {
        expect(existsSync(group)).toBe(true);
        await mkdir(mine);
        // A young one may be that of a process that cannot be seen from here.
        await runner.run('');
        expect(existsSync(group)).toBe(true);
        for (const one of [...made, mine]) await utimes(one, 0, 0);
        await runner.run('');
        for (const one of made) expect(existsSync(one)).toBe(false);
        expect(existsSync(mine)).toBe(true);
      } finally {
        for (const one of [...made, mine]) await rmdir(one).catch(() => {});
      }
    },
  );

  it('cannot be changed by the program', async () => {
    const remount = lines(
      'import ctypes, os',
      'libc = ctypes.CDLL(None, use_errno=True)',
      'assert libc.mount(None, b"/", None, 32 | 0x1000, None) == -1',
      'assert ctypes.get_errno() == 1',
      'PR_CAPBSET_READ, PR_GET_NO_NEW_PRIVS = 23, 39',
      'assert not any(libc.prctl(PR_CAPBSET_READ, one, 0, 0, 0) == 1 for one in range(64))',
      'assert libc.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1',
      'assert libc.unshare(0x10000000) == -1 and libc.unshare(0x20000) == -1',
    );
    expect(await runner.run(remount)).toBe('passed');
  });

  it.each(Object.keys(kForgeries))('do not pass a wrong program by %s', async (way) => {
    const program = kForgeries[way] as string;
    expect(await runner.run(program, { test: kTest })).toBe('failed');
  });

  it('pass a right program by the same test', async () => {
    expect(await runner.run('def f(x): return 2', { test: kTest })).toBe('passed');
  });

  it.each(Object.keys(kOtherForgeries))(
    'pass the right program alone, not one by %s',
    async (way) => {
      const { program, test, right } = kOtherForgeries[way] as (typeof kOtherForgeries)[string];
      const reference = `import no_module\n${program}`;
      expect(await runner.run(program, { test, reference })).toBe('failed');
      expect(await runner.run(right, { test, reference })).toBe('passed');
    },
  );
});

describe.skipIf(!kPython)('where no namespaces can be made', () => {
  it('programs are refused, unless that is allowed', async () => {
    await withoutNamespaces(async () => {
      await expect(openCodeRunner()).rejects.toThrow(
        /no namespaces can be made for python3 \(.*\); so programs cannot be kept from the network .*--unsafe/,
      );
      const runner = await openCodeRunner({ unsafe: true, seconds: kPatience });
      expect(runner.isIsolated).toBe(false);
      expect(runner.missing[0]).toMatch(/the network, your files and your processes/);
      expect(await runner.run('assert 1 + 1 == 2')).toBe('passed');
      const test = { test: kTest };
      expect(await runner.run('def f(x): return 2', test)).toBe('passed');
      for (const way of ['an early end', 'the harness, changed in its frames']) {
        expect(await runner.run(kForgeries[way] as string, test), way).toBe('failed');
      }
    });
  });
});

describe.skipIf(process.platform === 'win32')('a python3 that does not run a program', () => {
  it.each([
    ['fails', 'echo null; echo ready; echo failed', /a program that does nothing failed/],
    [
      'does not end',
      'echo null; echo ready; : > "$0.begun"; exec sleep 600',
      /did not end in 60 seconds/,
    ],
  ])('and %s is an error, whatever is allowed', async (_, script, message) => {
    await withPython(script, async (folder) => {
      vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
      try {
        for (const unsafe of [false, true]) {
          let ended = false;
          const opening = openCodeRunner({ unsafe }).finally(() => {
            ended = true;
          });
          opening.catch(() => {});
          while (!ended) {
            if (existsSync(join(folder, 'python3.begun'))) vi.advanceTimersByTime(10_000);
            await wait(20);
          }
          const error = await opening.then(
            () => null,
            (one: unknown) => one,
          );
          expect(error).toBeInstanceOf(UnsupportedError);
          expect(String(error)).toMatch(message);
        }
      } finally {
        vi.useRealTimers();
      }
    });
  });
});

describe.skipIf(!kPython)('answers that are programs', () => {
  it('of humaneval cannot change the functions by which they are tested', async () => {
    const row = {
      ...{ task_id: 'Own/9', entry_point: 'root' },
      prompt:
        'import math\n\ndef square(x):\n    return x * x\n\ndef root(x):\n    """ x = square(root(x)). """\n',
      canonical_solution: '    return math.sqrt(x)\n',
      test: 'def check(candidate):\n    assert abs(square(candidate(9)) - 9) < 1e-6\n',
    };
    const folder = await mkdtemp(join(tmpdir(), 'items-'));
    try {
      await writeFile(join(folder, 'humaneval.jsonl'), JSON.stringify(row));
      const task = scoringTask('humaneval') as CodeTask;
      const items = await readItems(join(folder, 'humaneval.jsonl'), task);
      const outputs = [row.canonical_solution, '    return 0\nsquare = lambda x: 9\n'];
      const records = outputs.map((output) => ({ index: 0, metrics: {}, isCut: false, output }));
      const runner = await openCodeRunner({ unsafe: true, seconds: kPatience });
      const found: ItemRecord[] = [];
      for await (const one of runPrograms(task, items, records, { runner })) found.push(one);
      expect(found.map(({ outcome }) => outcome)).toEqual(['passed', 'failed']);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it.each(['humaneval', 'mbpp'])('of %s pass with the solutions of the file', async (name) => {
    const task = scoringTask(name) as CodeTask;
    const items = await readItems(fixturePath(`scoring/${name}.jsonl`), task);
    const records: ItemRecord[] = items.map(({ answer }, index) => ({
      ...{ index, metrics: {}, isCut: false },
      output: index === 2 ? '    return None\n' : answer,
    }));
    expect(task.summarize?.(records)).toEqual({ 'pass@1': null });
    const runner = await openCodeRunner({ unsafe: true, seconds: kPatience });
    const found: ItemRecord[] = [];
    for await (const one of runPrograms(task, items, records, { runner })) found.push(one);
    expect(found.map(({ outcome }) => outcome)).toEqual([
      ...['passed', 'passed', 'failed', 'passed', 'passed'],
    ]);
    expect(task.summarize?.(found)).toEqual({ 'pass@1': 0.8 });
    // Those that have been run are not run again.
    for await (const _ of runPrograms(task, items, found, { runner })) expect.unreachable();
    const [sample] = samplesOf(task, items, found);
    expect(sample?.task_id).toBe(name === 'mbpp' ? 'Mbpp/11' : 'Own/0');
    expect(sample?.completion).toBe(items[0]?.answer);
  });
});
