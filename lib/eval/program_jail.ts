/**
 * The process that starts the two interpreters in which a model's program is tested (program_sides.ts), each in a root, namespaces and
 * limits of its own, and ends both.
 */

/**
 * Source of the process, in Python. Its input is the test side's; descriptor 3 is a pipe from the caller, at whose end everything ends.
 * Its first line of output is JSON: why there is no control group, or null. The test side writes the others.
 */
export const kJail = String.raw`
import binascii, json, os, resource, select, signal, socket, sys, time

kCaller = 3
given = json.loads(sys.argv[1])
isolated, folder = given['isolated'], given['folder']
linux = sys.platform == 'linux'
if linux:
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
kNobody = 65534

def descriptors():
    return {int(name) for name in os.listdir('/proc/self/fd' if linux else '/dev/fd')}

def close_all(fds):
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass  # the one by which they were listed

def check(result, what):
    if result != 0:
        raise OSError(what + ': ' + os.strerror(ctypes.get_errno()))

# ---- a root with Python, and nothing else

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 0x1000, 0x4000, 0x40000

def mount(source, target, kind, flags, options=None):
    text = lambda it: None if it is None else os.fsencode(it)
    return libc.mount(text(source), text(target), text(kind), flags, text(options))

def python_paths():
    """What Python needs: its libraries, in an order in which none lies above an earlier one."""
    exe = os.path.realpath(sys.executable)
    system = ['/usr', '/bin', '/sbin', '/lib', '/lib64', '/lib32', '/libx32', '/nix/store', '/gnu/store']
    system += ['/etc/ld.so.cache', '/etc/alternatives', '/etc/localtime']
    with open('/proc/self/maps') as maps:
        libraries = {fields[5].strip() for fields in (line.split(None, 5) for line in maps) if len(fields) == 6}
    own = [exe, os.path.dirname(os.__file__), *(os.path.join(sys.base_prefix, name) for name in ('lib', 'lib64')), *sys.path]
    rest = sorted({path for path in (*own, *libraries) if path.startswith('/')}, key=len)
    return exe, [path for path in (*system, *rest) if path != '/' and os.path.exists(path)]

def show(path, root):
    """Makes a path of the machine visible in the root, to be read alone."""
    target = root + path
    if os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        return os.symlink(os.readlink(path), target)
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT, 0o644))
    check(mount(path, target, None, MS_BIND | MS_REC), path + ' cannot be mounted')
    read_only(target, True)

def read_only(path, whole):
    attributes = (ctypes.c_uint64 * 4)(*((MS_RDONLY | MS_NOSUID | MS_NODEV) if whole else MS_RDONLY, 0, 0, 0))
    SYS_mount_setattr, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
    check(
        libc.syscall(SYS_mount_setattr, AT_FDCWD, os.fsencode(path), AT_RECURSIVE if whole else 0, attributes, ctypes.sizeof(attributes)),
        'mounts cannot be made read-only',
    )

def enter_root(top, paths):
    root = top + '/root'
    os.umask(0o022)
    check(mount(None, '/', None, MS_REC | MS_PRIVATE), 'mounts cannot be made private')
    check(mount('tmpfs', top, 'tmpfs', MS_NOSUID | MS_NODEV, 'size=1m,mode=755'), 'there is no tmpfs')
    os.mkdir(root)
    for name in ('dev', 'proc', 'run', 'tmp'):
        os.mkdir(root + '/' + name)
    for name in ('null', 'zero', 'full', 'random', 'urandom'):
        device = '/dev/' + name
        os.close(os.open(root + device, os.O_CREAT, 0o666))
        check(mount(device, root + device, None, MS_BIND), device + ' cannot be mounted')
    os.symlink('/tmp', root + '/dev/shm')
    files = 'size=%d,nr_inodes=16384,mode=1777' % given['folderBytes']
    check(mount('tmpfs', root + '/tmp', 'tmpfs', MS_NOSUID | MS_NODEV, files), 'there is no tmpfs')
    # Behind /tmp, where a Python may lie, too.
    for path in paths:
        if not path.startswith(('/dev/', '/proc/')):
            show(path, root)
    # The processes of the own namespace, and nothing of the machine. Where that may not be mounted, the folder stays empty.
    mount('proc', root + '/proc', 'proc', MS_NOSUID | MS_NODEV | MS_NOEXEC, 'subset=pid')
    os.mkdir(top + '/old')
    check(libc.pivot_root(os.fsencode(top), os.fsencode(top + '/old')), 'the root cannot be changed')
    os.chdir('/')
    MNT_DETACH = 2
    check(libc.umount2(b'/old', MNT_DETACH), 'the old root cannot be left')
    os.rmdir('/old')
    read_only('/', False)
    # A process whose root lies below that of its mounts can make no namespace of users, which would give it rights again.
    os.chroot('/root')
    os.chdir('/tmp')

# ---- namespaces

def id_map(kind):
    """The ids that this process knows, as lines of a map of ids onto themselves."""
    with open('/proc/self/%s_map' % kind) as lines:
        return [(int(first), int(count)) for first, _, count in map(str.split, lines)]

def maps():
    """The user that programs run as, and the maps of users and groups. Root runs them as nobody, whom limits of processes hold for."""
    if os.geteuid() == 0:
        both = id_map('uid'), id_map('gid')
        if all(any(first <= kNobody < first + count for first, count in ids) for ids in both):
            return (kNobody, *both)
    return os.geteuid(), [(os.geteuid(), 1)], [(os.getegid(), 1)]

def write_maps(pid):
    def write(name, text):
        with open('/proc/%d/%s' % (pid, name), 'w') as file:
            file.write(text)
    lines = lambda ids: ''.join('%d %d %d\n' % (first, first, count) for first, count in ids)
    if user == os.geteuid():
        write('setgroups', 'deny')
    write('uid_map', lines(users))
    write('gid_map', lines(groups))

def unshare():
    own_user, mounts, net, ipc, pid, uts, cgroup = 0x10000000, 0x20000, 0x40000000, 0x8000000, 0x20000000, 0x4000000, 0x2000000
    check(libc.unshare(own_user | mounts | net | ipc | pid | uts | cgroup), 'unshare')

def give_up_rights():
    PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
    check(libc.sethostname(b'program', 7), 'sethostname')
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if user != os.geteuid():
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 'rights cannot be given up')

def set_limits():
    for name, limit in (
        ('RLIMIT_AS', given['memory']),
        ('RLIMIT_CPU', given['seconds'] + 1),
        ('RLIMIT_FSIZE', given['fileBytes']),
        ('RLIMIT_NOFILE', given['openFiles']),
        ('RLIMIT_CORE', 0),
    ) + ((('RLIMIT_NPROC', given['processes']),) if isolated else ()):
        resource.setrlimit(getattr(resource, name), (limit, limit))
    # The end of the time also where the process that waits for it was killed.
    signal.alarm(given['seconds'] + 5)

# ---- one side

class Side:
    """An interpreter behind a process that waits for it, and in whose death it dies."""
    def __init__(self, source, connection, inherits):
        ready, go, ended = os.pipe(), os.pipe(), os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(go[1])
                if isolated:
                    unshare()
                os.write(ready[1], b'+')
                if os.read(go[0], 1):
                    die_with(lambda: os.getppid() != parent)
                    self.wait(source, connection, inherits, ended[1])
            except BaseException as error:
                os.write(2, (str(error) + '\n').encode())
            finally:
                os._exit(1)
        for fd in (ready[1], go[0], ended[1]):
            os.close(fd)
        self.ended, self.go = ended[0], go[1]
        self.is_ready = os.read(ready[0], 1) != b''
        os.close(ready[0])

    def start(self):
        if isolated:
            write_maps(self.pid)
        os.write(self.go, b'+')

    def wait(self, source, connection, inherits, ended):
        alive = os.pipe()
        inherited = descriptors()  # the child changes the root of this process, too
        child = os.fork()
        if child == 0:
            os.close(alive[1])
            self.execute(source, connection, inherits, lambda: select.select([alive[0]], [], [], 0)[0])
        close_all(inherited - {ended, alive[1]})
        os.waitpid(child, 0)
        os._exit(0)

    def execute(self, source, connection, inherits, is_orphan):
        if isolated:
            enter_root(folder, paths)
            give_up_rights()
        else:
            os.chdir(folder)
        die_with(is_orphan)
        set_limits()
        null = os.open(os.devnull, os.O_RDWR)
        errors = os.dup(2)
        for fd in (0, 1, 2):
            if fd not in inherits:
                os.dup2(null, fd)
        os.dup2(connection, 3)
        home = '/tmp' if isolated else folder
        environment = {'PATH': os.environ.get('PATH', ''), 'HOME': home, 'TMPDIR': home, 'LANG': 'C.UTF-8'}
        try:
            os.execve(exe, [exe, '-I', '-c', source, *sys.path], environment)
        except OSError as error:
            os.write(errors, ('%s: %s\n' % (exe, error.strerror)).encode())
            os._exit(1)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

def die_with(is_orphan):
    """Makes this process die when its parent does. A change of the user ends that, so it comes behind each."""
    if linux:
        PR_SET_PDEATHSIG = 1
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if is_orphan():
            os._exit(1)

# ---- a control group

def group_folders():
    """Sets of folders in which groups can be made that limit memory and processes, each with its limits: of version 2, then of 1."""
    own, points = {}, {}
    with open('/proc/self/cgroup') as lines:
        for line in lines:
            _, controllers, path = line.rstrip('\n').split(':', 2)
            for name in controllers.split(','):
                own[name] = path
    with open('/proc/self/mountinfo') as lines:
        for line in lines:
            fields = line.split()
            kind, _, options = fields[fields.index('-') + 1:]
            for name in {'cgroup2': [''], 'cgroup': options.split(',')}.get(kind, ()):
                points.setdefault(name, (fields[3], fields[4]))
    def own_folder(controller):
        if controller not in own or controller not in points:
            return None, None
        root, point = points[controller]
        path = os.path.relpath(own[controller], root)
        return (None, None) if path.startswith('..') else (point, os.path.normpath(os.path.join(point, path)))
    memory, processes = given['memory'], given['processes'] + 1
    point, at = own_folder('')
    while at is not None:
        with open(at + '/cgroup.subtree_control') as names:
            if {'memory', 'pids'} <= set(names.read().split()):
                limits = {'memory.max': memory, 'pids.max': processes, 'memory.swap.max': 0, 'memory.oom.group': 1}
                yield [(at, limits)]
        at = os.path.dirname(at) if at != point else None
    folders = [own_folder(name)[1] for name in ('memory', 'pids')]
    if None not in folders:
        limits = {'memory.limit_in_bytes': memory, 'memory.memsw.limit_in_bytes': memory}, {'pids.max': processes}
        yield list(zip(folders, limits))

def write(path, value):
    with open(path, 'w') as file:
        file.write(str(value))

def has_ended(pid):
    """Whether there is no such process, or none but its status, for which nobody has asked."""
    try:
        os.kill(pid, 0)
        with open('/proc/%d/stat' % pid) as stat:
            return stat.read().rpartition(')')[2].split()[0] == 'Z'
    except ProcessLookupError:
        return True

def remove_ended(place):
    """Removes the groups of processes of this kind that were killed before they could do it. The system keeps those that have processes."""
    for name in os.listdir(place):
        parts = name.split('-')
        folder = os.path.join(place, name)
        try:
            # One whose process is another namespace's may have none yet.
            if parts[0] != 'balora' or len(parts) != 3 or time.time() - os.stat(folder).st_mtime < kStartSeconds:
                continue
            if has_ended(int(parts[1])):
                os.rmdir(folder)
        except (OSError, ValueError, OverflowError):
            pass  # it has processes, or was removed

kStartSeconds = 60

class Group:
    """A control group with a process and those that it will start. why: why there is none, or None."""
    def __init__(self, pid):
        self.folders, self.why = [], 'no controllers of memory and processes here'
        if not linux:
            return
        name = 'balora-%d-%s' % (os.getpid(), binascii.hexlify(os.urandom(4)).decode())
        try:
            for places in group_folders():
                for place, _ in places:
                    remove_ended(place)
                try:
                    self.make(name, places, pid)
                    self.why = None
                    return
                except OSError as error:
                    self.why = '%s: %s' % (error.filename, error.strerror)
                    self.remove()
        except OSError as error:
            self.why = '%s: %s' % (error.filename, error.strerror)

    def make(self, name, places, pid):
        for place, limits in places:
            folder = os.path.join(place, name)
            os.mkdir(folder)
            self.folders.append(folder)
            for file, value in limits.items():
                # Swap has no limit where it is not counted.
                if file.endswith(('.max', 'limit_in_bytes')) and 'sw' not in file or os.path.exists(folder + '/' + file):
                    write(folder + '/' + file, value)
        for folder in self.folders:
            write(folder + '/cgroup.procs', pid)

    def remove(self):
        for folder in self.folders:
            for _ in range(500):
                try:
                    with open(folder + '/cgroup.procs') as pids:
                        for pid in pids.read().split():
                            os.kill(int(pid), signal.SIGKILL)
                except OSError:
                    pass
                try:
                    os.rmdir(folder)
                    break
                except OSError:
                    time.sleep(0.01)
        self.folders = []

# ---- both

def main():
    test, program = socket.socketpair()
    sides, group = [], None
    try:
        sides.append(Side(given['testSide'], test.fileno(), (0, 1)))
        sides.append(Side(given['programSide'], program.fileno(), ()))
        if not all(side.is_ready for side in sides):
            return
        group = Group(sides[1].pid)
        os.write(1, (json.dumps(group.why) + '\n').encode())
        for side in sides:
            side.start()
        test.close()
        program.close()
        select.select([kCaller, sides[0].ended], [], [], given['seconds'] + 5)
    except OSError as error:
        os.write(2, ('%s\n' % error).encode())
    finally:
        for side in sides:
            side.kill()
        if group:
            group.remove()

close_all(descriptors() - {0, 1, 2, kCaller})
os.set_inheritable(kCaller, False)
exe, paths = python_paths() if isolated else (sys.executable, [])
user, users, groups = maps() if isolated else (None, [], [])
main()
`;
