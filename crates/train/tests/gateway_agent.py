"""An agent from elsewhere: it asks a gateway for episodes until there are none left, does what the
policy says in a copy of its own (`copy`) or in the episode's sandbox (`sandbox`), and submits; or
takes one episode and goes away (`leave`), or hands one in without having asked the policy anything
(`silent`). Only the standard library.

usage: gateway_agent.py URL copy|sandbox|leave|silent        with the operator's token in PATCHWRIGHT_TOKEN
"""

import difflib
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request

# The gateway is on this machine: whatever proxy the environment names is not asked.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(path, key, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"authorization": "Bearer " + key, "content-type": "application/json"}
    with OPENER.open(urllib.request.Request(URL + path, data, headers)) as response:
        return response.read()


def lease(sandbox):
    while True:
        try:
            token = os.environ.get("PATCHWRIGHT_TOKEN", "")
            return json.loads(call("/episodes", token, {"sandbox": sandbox}))
        except urllib.error.HTTPError as error:
            if error.code == 410:
                return None
            if error.code != 429:
                raise
            time.sleep(0.05)


class Copy:
    """Runs commands in an unpacked copy of the repository."""

    def __init__(self, episode, directory):
        self.directory = pathlib.Path(directory)
        packed = call(episode["paths"]["repository"], episode["key"])
        tarfile.open(fileobj=io.BytesIO(packed)).extractall(directory, filter="data")
        self.before = self.texts()

    def texts(self):
        files = (path for path in self.directory.rglob("*") if path.is_file())
        return {str(path.relative_to(self.directory)): path.read_text() for path in files}

    def run(self, command):
        run = subprocess.run(command, shell=True, cwd=self.directory, capture_output=True, text=True)
        return run.stdout + run.stderr

    def submission(self):
        after, patch = self.texts(), ""
        for name in sorted(after):
            old, new = self.before.get(name, ""), after[name]
            lines = (text.splitlines(keepends=True) for text in (old, new))
            patch += "".join(difflib.unified_diff(*lines, "a/" + name, "b/" + name))
        return {"patch": patch}


class Sandbox:
    """Runs commands in the episode's sandbox."""

    def __init__(self, episode):
        self.episode = episode

    def run(self, command):
        ran = call(self.episode["paths"]["exec"], self.episode["key"], {"command": command})
        return json.loads(ran)["output"]

    def submission(self):
        return {}


def work(episode, place):
    messages = [{"role": "user", "content": episode["task"]["problem_statement"]}]
    try:
        while True:
            asked = {"model": episode["model"], "messages": messages}
            answer = call(episode["paths"]["openai"] + "/chat/completions", episode["key"], asked)
            said = json.loads(answer)["choices"][0]["message"]["content"]
            if said.strip() == "submit":
                break
            messages.append({"role": "assistant", "content": said})
            messages.append({"role": "user", "content": place.run(said)})
    except urllib.error.HTTPError as error:
        # Turns or context are used up: what there is counts.
        if error.code not in (400, 403):
            raise
    submit = episode["paths"]["submit"]
    report = json.loads(call(submit, episode["key"], place.submission()))
    # As a client that did not hear the answer would.
    assert json.loads(call(submit, episode["key"], place.submission())) == report
    return report


URL, mode = sys.argv[1:3]
while (episode := lease(mode in ("sandbox", "silent"))) is not None:
    if mode == "leave":
        break
    if mode == "silent":
        print(json.loads(call(episode["paths"]["submit"], episode["key"], {}))["failure"])
        break
    if mode == "sandbox":
        report = work(episode, Sandbox(episode))
    else:
        with tempfile.TemporaryDirectory() as directory:
            report = work(episode, Copy(episode, directory))
    print(episode["task"]["instance_id"], report["solved"], report["reward"], flush=True)
