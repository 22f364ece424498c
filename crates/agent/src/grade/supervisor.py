# The grader's own process. It holds the channel, imports no code of the repository, and runs the
# tests in a child that has neither the channel nor the nonce. Started as `python3 -s -B -c` (with
# -S where no site-packages are needed). The file is data of the grader; it is never written into a
# sandbox. Python 3.6 and later.
import sys

# The working directory, which `-c` puts first, comes back in the child.
sys.path[:] = [path for path in sys.path if path]
import os
import time
from select import POLLIN, poll

BORN = time.monotonic()


def exactly(size):
    data = b""
    while len(data) < size:
        chunk = os.read(0, size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def receive():
    # The messages are read one by one, each when it is due: what a child must not know is still in
    # the pipe when it is forked.
    return exactly(int(exactly(10)))


def control_of_process():
    try:
        import _ctypes

        class Call(_ctypes.CFuncPtr):
            _flags_ = 1

        call = Call(_ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl"))
        # Its memory and its descriptors are closed to the children; their orphans become its own.
        if call(4, 0, 0, 0, 0) == 0 and call(36, 1, 0, 0, 0) == 0:
            return call
    except Exception:
        pass
    return None


def end_all():
    # Kills and awaits every descendant; says how many there were besides the child.
    count = 0
    for _ in range(10000):
        try:
            with open("/proc/self/task/%d/children" % os.getpid()) as file:
                for pid in file.read().split():
                    os.kill(int(pid), 9)
            os.waitpid(-1, 0)
            count += 1
        except (OSError, ValueError):
            break
    return count


class Child(BaseException):
    """Carries a child out of the supervisor's frames: they would say which run it is."""


def be_child(write_end):
    try:
        run_tests(lambda line: os.write(write_end, (line + "\n").encode()))
        os.write(write_end, b"end\n")
    finally:
        # No exit handlers, no waiting for threads that tests left.
        os._exit(0)


def run_child(deadline):
    # Gives the lines that a child has written, its pid, and whether it came to its end alone.
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        os.close(channel)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        if prctl is not None:
            prctl(4, 1, 0, 0, 0)
        raise Child(write_end)
    os.close(write_end)
    os.set_blocking(read_end, False)
    wake = poll()
    wake.register(read_end, POLLIN)
    ended = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    if ended is not None:
        wake.register(ended, POLLIN)
    data, alive, status = b"", True, None
    while alive and len(data) < 1 << 24:
        wait = deadline - time.monotonic()
        if wait <= 0:
            break
        wake.poll(wait * 1000 if ended is not None else min(wait * 1000, 20))
        if status is None:
            status = os.waitpid(pid, os.WNOHANG)[0] or None
        try:
            while True:
                chunk = os.read(read_end, 1 << 16)
                data += chunk
                if not chunk or data.endswith(b"end\n") or len(data) >= 1 << 24:
                    alive = False
                    break
        except BlockingIOError:
            alive = alive and status is None
    os.close(read_end)
    if ended is not None:
        os.close(ended)
    if status is None:
        # At its end it exits by itself; anything else is ended.
        limit = time.monotonic() + 0.05
        while data.endswith(b"end\n") and not status and time.monotonic() < limit:
            status = os.waitpid(pid, os.WNOHANG)[0]
            if not status:
                time.sleep(0.0001)
        if not status:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    alone = end_all() == 0 and bool(status)
    return data.decode("ascii", "replace").split("\n"), pid, alone


def marks(paths):
    found = []
    for path in paths:
        s = os.lstat(path)
        found.append((s.st_mode, s.st_ino, s.st_size, s.st_nlink, s.st_mtime_ns, s.st_ctime_ns, s.st_atime_ns))
    return found


def touch_all(places):
    # Everything that a run could change, each read once: later reads leave access times alone.
    paths = []
    for place in places:
        for folder, _, names in os.walk(place):
            paths.append(folder)
            for name in names:
                path = os.path.join(folder, name)
                paths.append(path)
                if len(paths) > 3000:
                    raise OSError("too many files to watch")
                if not os.path.islink(path):
                    with open(path, "rb") as file:
                        file.read(1)
    return paths


def left_in_kernel():
    for name in ("shm", "sem", "msg"):
        try:
            with open("/proc/sysvipc/" + name) as file:
                if len(file.readlines()) > 1:
                    return True
        except OSError:
            pass
    try:
        with open("/proc/net/sockstat") as file:
            return " tw 0 " not in file.read()
    except OSError:
        return False


def change_tests():
    # In a child of its own: the next child must find neither the program nor what was changed.
    pid = os.fork()
    if pid == 0:
        try:
            scope = {}
            exec(compile(receive(), "audit", "exec"), scope)
            word = receive().decode()
            scope["change"](workdir, receive().decode().split("\0"), lambda line: say(word, line))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return pid


def say(word, line):
    os.write(channel, ("\n%s %s\n" % (word, line)).encode())


def main():
    global channel, prctl, workdir
    prctl = control_of_process()
    sys.modules.pop("_ctypes", None)
    # What the tests print goes to standard error; standard output is the channel.
    channel = os.dup(1)
    os.dup2(2, 1)
    header = receive().decode().split("\0")
    mode, seconds, workdir, site_packages, test_files = header[:5]
    refused = prepare(workdir, site_packages, header[5:])
    if refused:
        os.write(channel, ("\nrefused %s\n" % refused).encode())
        os._exit(0)
    os.write(channel, b"\nready\n")
    if mode == "bare":
        # No layer of defence, for the tests of this file: all in one process.
        word = receive().decode()
        run_tests(lambda line: say(word, line))
        say(word, "done")
        os._exit(0)
    deadline = time.monotonic() + float(seconds)
    if mode == "audit":
        change_tests()
        mode = ""
    for path in filter(None, test_files.split("/./")):
        # Whether it was changed must not show.
        try:
            path = os.path.join(workdir, path)
            s = os.stat(path)
            os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))
        except OSError:
            pass
    quick = mode == "quick" and prctl is not None and hasattr(os, "posix_spawn")
    if hasattr(os, "posix_spawn"):
        # The pid must not tell which run it is.
        for _ in range(os.urandom(1)[0] % 8):
            try:
                os.posix_spawn("/", ["/"], {})
            except OSError:
                pass
    places = [p for p in (workdir, "/tmp", "/dev/shm", os.environ.get("HOME")) if p]
    if quick:
        try:
            paths = touch_all(places)
            before = marks(paths)
        except OSError:
            quick = False
    began = time.monotonic()
    lines, pid, alone = run_child(deadline)
    control = None
    if mode:
        # Only a patch that would be solved is worth a second look.
        passed = set(line[:-2] for line in own(lines) if line.endswith(" 1"))
        if len(passed) < num_tests or any(line.endswith(" 0") for line in own(lines)):
            mode = ""
    if mode:
        control = "fresh"
        try:
            # A late start must not tell: on a slow machine all is late.
            if (quick and alone and time.monotonic() - began < max(0.05, began - BORN)
                    and marks(paths) == before and not left_in_kernel()):
                if change_tests() == pid + 1:
                    control, _, _ = run_child(deadline)
        except (OSError, EOFError):
            pass
    # Sent last, and read when every child is dead.
    word = None
    try:
        while True:
            word = receive().decode()
    except EOFError:
        pass
    report = ["t " + line for line in own(lines)]
    if isinstance(control, list):
        report += ["c " + line for line in own(control)]
    elif control:
        report.append(control)
    say(word, ("\n%s " % word).join(report + ["done"]))
    os._exit(0)


def own(lines):
    # A child may write what it likes; only results of tests go on.
    lines = dict.fromkeys(line for line in lines if len(line) < 12 and line[:-2].isdigit())
    return [line for line in lines if int(line[:-2]) < num_tests]


def start():
    try:
        main()
    except Child as child:
        write_end = child.args[0]
    be_child(write_end)
