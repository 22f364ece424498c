#!/usr/bin/env python3
"""An episode of five short commands in Patchwright's sandboxes, beside two peers from PyPI.

An episode is: make the place with a small repository, run five commands one by one, take the
changes, remove the place. Peers are mini-swe-agent's bubblewrap environment (needs `bwrap`) and
SWE-ReX's local runtime (which isolates nothing), installed into a virtual environment of their
own. Contenders take turns, so that other load on the machine falls on all of them.

    cargo build --release
    python3 bench/sandbox_peers.py --rounds 30 [--json]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

PEERS = ["mini-swe-agent", "swe-rex"]
# As in `patchwright bench sandbox`.
EPISODE = [
    "ls",
    "cat pkg/m0.py",
    "grep -rn return pkg",
    "sed -i s/x/y/ pkg/m1.py",
    "cat pkg/m1.py",
]
FILES = {
    f"pkg/m{n}.py": f"def f{n}(x):\n    return x + {n}\n" * 20 for n in range(6)
}


def place():
    """A directory with the repository, in memory where there is one."""
    memory = "/dev/shm"
    parent = memory if os.access(memory, os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="sandbox-peers-", dir=parent))
    (directory / "pkg").mkdir()
    for name, text in FILES.items():
        (directory / name).write_text(text)
    return directory


def take_changes(directory):
    """The changed files, compared with the host's copy: as cheap as can be."""
    changed = [name for name, text in FILES.items() if (directory / name).read_text() != text]
    assert changed == ["pkg/m1.py"], changed


class MiniSweAgent:
    """A new `bwrap` for each command over a directory: no overlay, no limits."""

    name = "mini-swe-agent, bubblewrap"

    def __init__(self):
        # Its greeting would be among the figures.
        os.environ["MSWEA_SILENT_STARTUP"] = "1"
        from minisweagent.environments.extra.bubblewrap import BubblewrapEnvironment

        self.make = BubblewrapEnvironment

    def episode(self):
        directory = place()
        environment = self.make(cwd=str(directory))
        for command in EPISODE:
            result = environment.execute({"command": command})
            assert result["returncode"] == 0, result
        take_changes(directory)
        environment.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


class SweRex:
    """A bash session driven by pexpect, on the host itself."""

    name = "SWE-ReX, local runtime"

    def __init__(self):
        import asyncio
        import logging

        from swerex.deployment.local import LocalDeployment
        from swerex.runtime.abstract import BashAction, CreateBashSessionRequest

        logging.disable(logging.CRITICAL)
        self.loop = asyncio.new_event_loop()
        self.parts = (LocalDeployment, CreateBashSessionRequest, BashAction)

    def episode(self):
        self.loop.run_until_complete(self.run())

    async def run(self):
        deployment_of, session, action = self.parts
        directory = place()
        deployment = deployment_of()
        await deployment.start()
        await deployment.runtime.create_session(session())
        for command in EPISODE:
            line = f"cd {directory} && {command}"
            result = await deployment.runtime.run_in_session(action(command=line, timeout=60))
            assert result.exit_code == 0, result
        take_changes(directory)
        await deployment.stop()
        shutil.rmtree(directory)


def measure(rounds, quiet):
    """Runs inside the virtual environment: milliseconds of each round of each peer."""
    times = {}
    peers = []
    for kind in (MiniSweAgent, SweRex):
        try:
            peer = kind()
            peer.episode()
        except Exception as error:  # Any failure of a peer is told, not ours to mend.
            print(f"not measured: {kind.name}: {error!r}", file=sys.stderr)
            continue
        peers.append(peer)
        times[peer.name] = []
    for n in range(rounds):
        for peer in peers:
            start = time.perf_counter()
            peer.episode()
            times[peer.name].append((time.perf_counter() - start) * 1e3)
        if not quiet:
            print(f"\r{n + 1}/{rounds}", end="", file=sys.stderr)
    if not quiet:
        print(file=sys.stderr)
    json.dump(times, sys.stdout)


def quantiles(times):
    times = sorted(times)
    at = lambda q: times[round(q * (len(times) - 1))]
    return {"p50": round(statistics.median(times), 1), "p99": round(at(0.99), 1)}


def native(program, seconds):
    """Patchwright's own episode, as its bench measures it."""
    command = [program, "bench", "sandbox", "--json", "--peers", "none"]
    command += ["--seconds", str(seconds), "--lives", "0"]
    text = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return json.loads(text)["native"]["episode_ms"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="episodes of each peer")
    parser.add_argument("--program", default="target/release/patchwright")
    parser.add_argument("--venv", help="a virtual environment to keep and use again")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return measure(args.rounds, args.json)

    own = args.venv or tempfile.mkdtemp(prefix="sandbox-peers-venv-")
    try:
        python = os.path.join(own, "bin", "python")
        if not os.path.exists(python):
            venv.create(own, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
        before = native(args.program, 2)
        inside = [python, __file__, "--inside", "--rounds", str(args.rounds)]
        inside += ["--json"] if args.json else []
        text = subprocess.run(inside, stdout=subprocess.PIPE, check=True).stdout
        after = native(args.program, 2)
    finally:
        if not args.venv:
            shutil.rmtree(own, ignore_errors=True)

    # Before and after the peers; other load on the machine shows as their difference.
    own_p50 = (before["p50"] + after["p50"]) / 2
    rows = {"patchwright": {"p50": round(own_p50, 1), "p99": max(before["p99"], after["p99"])}}
    rows |= {name: quantiles(times) for name, times in json.loads(text).items()}
    if args.json:
        return print(json.dumps({"episode_ms": rows}, indent=2))
    print("| episode of five commands | p50 ms | p99 ms | times patchwright |")
    print("|---|---|---|---|")
    for name, row in rows.items():
        ratio = row["p50"] / rows["patchwright"]["p50"]
        print(f"| {name} | {row['p50']:.1f} | {row['p99']:.1f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
