/**
 * The two interpreters of Python in which a model's program is tested, as source texts: one has the test and the verdict, the other the
 * program. They send each other values as JSON, and objects that are no plain values as numbers that stand for them.
 * docs/decisions/programs-of-models.md says why.
 */

/**
 * The part that both sides have: a connection over which a side calls the other's objects. A message is JSON behind its length.
 *
 * Its values: JSON's own for None, bool, str, float and small integers; `[kind, ...]` for the rest. Containers that can be changed stand
 * in a table beside the value, so that a container that occurs twice stays one, and the answer to a call says what it did to those that
 * it was given. An object that is no plain value stays where it is: `["mine", n]` is an object that the sender has, `["yours", n]` one
 * that the receiver has.
 */
const kPeer = `
import builtins, collections, datetime, decimal, fractions, json, os, types

class Ended(BaseException):
    """The other side has ended, or says what it cannot say. No test can catch it as an Exception."""

class Absent:
    """An object of the other side."""
    def __init__(self, peer, number):
        self.__dict__.update(_peer=peer, _number=number)
    def _do(self, what, *args, **named):
        return self._peer.ask(what, self, args, named)
    def __call__(self, *args, **named):
        return self._do('call', *args, **named)
    def __getattr__(self, name):
        # Python itself asks for these, in copies, base classes and conversions: an answer would be the other side's word.
        if name.startswith('__'):
            raise AttributeError(name)
        return self._do('get', name)
    def __setattr__(self, name, value):
        self._do('set', name, value)
    def __delattr__(self, name):
        self._do('del', name)
    def __iter__(self):
        return self._do('iter')
    def __next__(self):
        return self._do('next')
    def __len__(self):
        return self._do('len')
    def __getitem__(self, key):
        return self._do('item', key)
    def __setitem__(self, key, value):
        self._do('put', key, value)
    def __bool__(self):
        return self._do('bool') is True
    def __str__(self):
        return self._do('str')
    def __repr__(self):
        return self._do('repr')
    # An object of the other side equals nothing here, and whether two of its objects are equal would be its word.
    def __eq__(self, other):
        if isinstance(other, Absent):
            raise TypeError('two objects of the other side are not compared')
        return False
    __hash__ = object.__hash__
    def __reduce_ex__(self, protocol):
        raise TypeError('an object of the other side is not copied')
    def __instancecheck__(self, other):
        return isinstance(other, Absent) and self._do('isinstance', other) is True

kWork = {
    'call': lambda it, *args, **named: it(*args, **named),
    'get': getattr, 'set': setattr, 'del': delattr, 'iter': iter, 'next': next, 'len': len,
    'item': lambda it, key: it[key], 'put': lambda it, key, value: it.__setitem__(key, value),
    'bool': bool, 'str': str, 'repr': repr,
    'isinstance': lambda it, other: isinstance(other, it),
}

# The containers that can be changed: a maker of an empty one, what it has, and how it gets that.
def _mapping(make):
    def fill(it, pairs):
        dict.clear(it)
        for key, value in pairs:
            dict.__setitem__(it, key, value)
    return make, (lambda it: [[key, value] for key, value in dict.items(it)]), fill
def _fill_list(it, items):
    it[:] = items
def _refill(name, kind):
    def fill(it, items):
        kind.clear(it)
        getattr(kind, name)(it, items)
    return fill
kContainers = {
    list: ('list', (list, list.__iter__, _fill_list)),
    dict: ('dict', _mapping(dict)),
    set: ('set', (set, set.__iter__, _refill('update', set))),
    bytearray: ('bytearray', (bytearray, lambda it: [bytearray.hex(it)], lambda it, parts: it.__setitem__(slice(None), bytes.fromhex(*parts)))),
    collections.deque: ('deque', (collections.deque, collections.deque.__iter__, _refill('extend', collections.deque))),
    collections.OrderedDict: ('OrderedDict', (
        collections.OrderedDict, lambda it: [list(pair) for pair in it.items()], _refill('update', collections.OrderedDict),
    )),
    collections.Counter: ('Counter', _mapping(collections.Counter)),
    # Its factory stays on its side.
    collections.defaultdict: ('defaultdict', _mapping(collections.defaultdict)),
}
kByName = {name: form for name, form in kContainers.values()}

def _int(value):
    return value if -2**53 < value < 2**53 else ['int', '%x' % value]

# The values that cannot be changed: their parts, which are values too, and how one is made of them.
kPlain = {
    tuple: ('tuple', tuple.__iter__, lambda *parts: parts),
    frozenset: ('frozenset', frozenset.__iter__, lambda *parts: frozenset(parts)),
    bytes: ('bytes', lambda it: [it.hex()], bytes.fromhex),
    complex: ('complex', lambda it: [it.real, it.imag], complex),
    range: ('range', lambda it: [it.start, it.stop, it.step], range),
    slice: ('slice', lambda it: [it.start, it.stop, it.step], slice),
    fractions.Fraction: ('Fraction', lambda it: [it.numerator, it.denominator], fractions.Fraction),
    decimal.Decimal: ('Decimal', lambda it: [str(it)], decimal.Decimal),
    datetime.date: ('date', lambda it: [it.year, it.month, it.day], datetime.date),
    datetime.timedelta: ('timedelta', lambda it: [it.days, it.seconds, it.microseconds], datetime.timedelta),
    type({}.keys()): ('keys', lambda it: list(it), lambda *parts: dict.fromkeys(parts).keys()),
    type({}.items()): ('items', lambda it: list(it), lambda *parts: dict(parts).items()),
    type(...): ('...', lambda it: [], lambda: ...),
    type(NotImplemented): ('NotImplemented', lambda it: [], lambda: NotImplemented),
}
for _kind in (datetime.datetime, datetime.time):
    def _parts(it, names=('year', 'month', 'day', 'hour', 'minute', 'second', 'microsecond')[3 * (_kind is datetime.time):]):
        return [getattr(it, name) for name in names]
    kPlain[_kind] = (_kind.__name__, _parts, _kind)
kMakers = {name: make for name, _, make in kPlain.values()}
kMakers['int'] = lambda text: int(text, 16)
kMakers['type'] = lambda name: _builtin(name)
# The kinds whose parts are any values; those of others are numbers and texts.
kOfValues = ('tuple', 'frozenset', 'slice', 'keys', 'items')

def _builtin(name):
    found = getattr(builtins, name, None)
    if not is_builtin(found) or found.__name__ != name:
        raise ValueError('no type ' + name)
    return found

def is_builtin(it):
    """Whether this is one of Python's own types, which has a name on both sides."""
    return isinstance(it, type) and getattr(builtins, it.__name__, None) is it

# A value of a class of its own goes as one of the first of these that it is.
kBases = (
    (bool, bool), (int, int.__pos__), (float, float.__pos__), (complex, complex.__pos__), (str, str.__str__),
    (bytes, lambda it: bytes.__getitem__(it, slice(None))), (tuple, lambda it: tuple.__getitem__(it, slice(None))),
    (frozenset, lambda it: frozenset(frozenset.__iter__(it))),
    (decimal.Decimal, lambda it: decimal.Decimal(str(it))),
)

class Peer:
    """
    One side of the connection. may(what, object, args) says whether the other side may do that with an object that this side has given
    it; with others it may do nothing.
    """
    def __init__(self, fd, may):
        self.fd, self.may = fd, may
        self.given, self.numbers, self.absent = [], {}, {}
        self.ended = False

    def end(self):
        self.ended = True
        return Ended()

    def send(self, message):
        data = json.dumps(message).encode()
        data = len(data).to_bytes(8, 'big') + data
        try:
            while data:
                data = data[os.write(self.fd, data):]
        except OSError:
            raise self.end()

    def receive(self):
        try:
            return json.loads(self._read(int.from_bytes(self._read(8), 'big')))
        except (OSError, ValueError, RecursionError, MemoryError, OverflowError):
            raise self.end()

    def _read(self, count):
        parts = []
        while count > 0:
            part = os.read(self.fd, min(count, 1 << 20))
            if not part:
                raise self.end()
            parts.append(part)
            count -= len(part)
        return b''.join(parts)

    def number_of(self, it):
        number = self.numbers.get(id(it))
        if number is None:
            number = self.numbers[id(it)] = len(self.given)
            self.given.append(it)  # it lives as long as its number
        return number

    def encode(self, values, known=()):
        """The forms of values, and the table of the containers in them: first the known ones, then those that they have."""
        objects, places, table = list(known), {id(it): place for place, it in enumerate(known)}, []
        def of(it):
            kind = type(it)
            if it is None or kind is bool or kind is str or kind is float:
                return it
            if kind is int:
                return _int(it)
            if kind in kPlain:
                name, parts, _ = kPlain[kind]
                return [name, *map(of, parts(it))]
            if kind in kContainers or id(it) in places:
                return at(it)
            if kind is Absent and it._peer is self:
                return ['yours', it._number]
            if isinstance(it, type):
                if is_builtin(it):
                    return ['type', it.__name__]
                return ['mine', self.number_of(it)]
            for base, plain in kBases:
                if isinstance(it, base):
                    return of(plain(it))
            if isinstance(it, tuple(kContainers)):
                return at(it)
            # Numbers of numpy.
            if kind.__module__ == 'numpy' and getattr(it, 'ndim', None) == 0:
                return of(it.item())
            return ['mine', self.number_of(it)]
        def at(it):
            place = places.get(id(it))
            if place is None:
                place = places[id(it)] = len(objects)
                objects.append(it)
            return ['at', place]
        forms = [of(it) for it in values]
        while len(table) < len(objects):
            it = objects[len(table)]
            name, (_, items, _) = form_of(it)
            table.append([name, [[of(one[0]), of(one[1])] if type(one) is list and name in kPairs else of(one) for one in items(it)]])
        return forms, table, objects

    def decode(self, forms, table, known=()):
        """The values of their forms, and the containers of the table, of which the known ones are changed."""
        objects = list(known)
        for name, _ in table[len(objects):]:
            objects.append(kByName[name][0]())
        def of(form):
            if isinstance(form, dict):
                raise ValueError('no form of a value')
            if not isinstance(form, list):
                return form
            kind, *rest = form
            if kind == 'at':
                return objects[rest[0]]
            if kind == 'mine':
                return self.absent.setdefault(rest[0], Absent(self, rest[0]))
            if kind == 'yours':
                return self.given[rest[0]]
            parts = [of(one) for one in rest]
            if kind not in kOfValues and not all(type(one) in (int, float, str) for one in parts):
                raise ValueError('no parts of a value')
            return kMakers[kind](*parts)
        filled = [
            None if entry is None else [[of(one[0]), of(one[1])] for one in entry[1]] if entry[0] in kPairs else [of(one) for one in entry[1]]
            for entry in table
        ]
        for it, items in zip(objects, filled):
            if items is not None:
                form_of(it)[1][2](it, items)
        return [of(form) for form in forms], objects

    def ask(self, what, it, args, named):
        """Has the other side do something with one of its objects."""
        forms, table, objects = self.encode([it, *args, *named.values()])
        self.send(['do', what, forms, list(named), table])
        while True:
            kind, *rest = self.receive_form()
            if kind == 'do':
                self.serve(*rest)
                continue
            forms, table, name = rest
            try:
                values, _ = self.decode(forms, table, objects)
            except Exception:
                raise self.end()
            if kind == 'is':
                return values[0]
            error = error_of(name, values)
            # In a loop over map() or iter(), which call the function, this would end the loop, and with it what it tests.
            if isinstance(error, StopIteration) and what != 'next':
                error = RuntimeError('StopIteration')
            raise error

    def receive_form(self):
        message = self.receive()
        good = isinstance(message, list) and (len(message), *message[:1]) in ((5, 'do'), (4, 'is'), (4, 'raise'))
        if not good:
            raise self.end()
        return message

    def serve(self, what, forms, names, table):
        """Does what the other side has asked for, and answers."""
        known = ()
        try:
            (it, *args), known = self.decode(forms, table)
            named = {name: args.pop() for name in reversed(names)}
            if id(it) not in self.numbers or not self.may(what, it, args):
                raise TypeError(what + ' is not for the other side')
            result = kWork[what](it, *args, **named)
            self.answer('is', [result], known, table)
        except Ended:
            raise
        except BaseException as error:
            self.fail(error, known, table)

    def fail(self, error, known=(), table=()):
        """Answers with an error, as the nearest class that Python has."""
        name = next(kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind)
        plain = [one if isinstance(one, (type(None), bool, int, float, str)) else str(one) for one in error.args]
        self.answer('raise', plain, known, table, name)

    def answer(self, kind, values, known, table, name=None):
        forms, after, _ = self.encode(values, known)
        # What has not changed is not sent again.
        same = [None if i < len(table) and entry == table[i] else entry for i, entry in enumerate(after)]
        self.send([kind, forms, same, name])

kPairs = ('dict', 'OrderedDict', 'Counter', 'defaultdict')

def form_of(it):
    for kind in type(it).__mro__:
        if kind in kContainers:
            return kContainers[kind]
    raise TypeError()

def error_of(name, args):
    try:
        kind = _builtin(name)
        return kind(*args) if issubclass(kind, BaseException) else RuntimeError(name)
    except Exception:
        return RuntimeError(name)
`;

/** Source of the interpreter that has the program: it runs it, and then does what the other side asks for. Its argument: paths. */
export const kProgramSide = `
import sys
sys.path[:], sys.argv[1:] = sys.argv[1:], []
${kPeer}
def main():
    peer = Peer(3, lambda what, it, args: True)
    # It may say itself which objects of the test are one.
    Absent.__eq__ = object.__eq__
    peer.send(['is', [], [], None])
    program, names = peer.receive()
    space = {}
    try:
        exec(compile(program, 'program', 'exec', dont_inherit=True), space)
    except BaseException as error:
        return peer.fail(error)
    found = {name: space[name] for name in names if name in space and not isinstance(space[name], types.ModuleType)}
    peer.answer('is', [found], (), ())
    while True:
        kind, *rest = peer.receive_form()
        if kind == 'do':
            peer.serve(*rest)
try:
    main()
except Ended:
    pass
finally:
    os._exit(0)
`;

/**
 * Source of the interpreter that has the test: it reads it from its input, has the other side run the program, runs the test with what
 * the program has defined, and writes the verdict. Its argument: paths.
 */
export const kTestSide = String.raw`
import ast, symtable, sys
sys.path[:], sys.argv[1:] = sys.argv[1:], []
${kPeer}
def names_in(code):
    """All names that a piece of code looks up."""
    inner = (one for one in code.co_consts if isinstance(one, types.CodeType))
    return set(code.co_names).union(*map(names_in, inner))

def names_of(reference):
    """The names that a program defines in its outermost level, and its statements there that import others."""
    imports = [one for one in ast.parse(reference).body if isinstance(one, (ast.Import, ast.ImportFrom))]
    bound = {(one.asname or one.name).split('.')[0] for statement in imports for one in statement.names}
    table = symtable.symtable(reference, 'reference', 'exec')
    names = {one.get_name() for one in table.get_symbols() if one.is_assigned() or one.is_imported()}
    return names - bound, [ast.Module([one], []) for one in imports if getattr(one, 'module', None) != '__future__']

# Those of Python's own functions that the program may call where the test gives them to it: they reach nothing but their arguments.
kFunctions = {
    getattr(builtins, name) for name in (
        'abs all any ascii bin callable chr divmod format hash hex isinstance issubclass iter len max min next oct ord pow print repr '
        'round sorted sum'
    ).split()
}

def may(what, it, args):
    """Whether the program may do this with an object that the test has given it."""
    if what == 'call':
        # By a class of others it could make what only the test should have: type makes classes, whose objects equal what they like.
        if isinstance(it, type):
            return (it.__module__ == kTest and not issubclass(it, type)) or it in kPlain or it in kContainers
        return callable(it) and (getattr(it, '__self__', None) is not builtins or it in kFunctions)
    if what in ('iter', 'next'):
        return hasattr(it, '__next__')
    own = type(it)
    if what not in ('get', 'set') or own.__module__ != kTest or type(args[0]) is not str or args[0].startswith('_'):
        return False
    # A method stays the test's.
    return what == 'get' or not callable(getattr(own, args[0], None))

kTest = 'balora_test'

def hide():
    """Keeps other processes of the user from the memory of this one, where they see it."""
    if sys.platform == 'linux':
        import ctypes
        PR_SET_DUMPABLE = 4
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)

def take_output():
    """The output, which has the verdict: from here on what the test prints, with the program's words in it, goes nowhere."""
    output = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    return output

def passes(output):
    hide()
    given = json.loads(sys.stdin.read())
    peer = Peer(3, may)
    peer.receive_form()
    os.write(output, b'ready\n')
    space = {'__name__': kTest}
    test = compile(given['test'], 'test', 'exec', dont_inherit=True)
    # The program cannot give another meaning to what the test has from Python itself.
    wanted = {name for name in names_in(test) if not name.startswith('__')}
    try:
        own, imports = names_of(given['reference'])
    except SyntaxError:
        own, imports = set(), []
    wanted = sorted(wanted & own if own else {name for name in wanted if not hasattr(builtins, name)})
    for one in imports:
        try:
            exec(compile(one, 'reference', 'exec', dont_inherit=True), space)
        except ImportError:
            pass
    peer.send([given['program'], wanted])
    kind, forms, table, name = peer.receive_form()
    if kind != 'is':
        return False
    (found,), _ = peer.decode(forms, table)
    if type(found) is not dict:
        return False
    for name in wanted:
        if name in found:
            space.setdefault(name, found[name])
    exec(test, space)
    # A test that catches everything has not seen the end of the program.
    return not peer.ended

output = take_output()
try:
    passed = passes(output)
except BaseException:
    passed = False
os.write(output, b'passed\n' if passed else b'failed\n')
os._exit(0)
`;
