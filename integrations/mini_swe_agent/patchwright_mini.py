"""mini-swe-agent on Patchwright: its commands run in the episode's sandbox, its model is the policy.

The class `PatchwrightEnvironment` is an environment of mini-swe-agent (2.x):

    mini --environment-class patchwright_mini.PatchwrightEnvironment --model openai/policy ...

Run as a program it works one episode off, with mini-swe-agent's own agent and model as they are;
this is what `agent.foreign_command` starts:

    agent.foreign_command = ["python3", "integrations/mini_swe_agent/patchwright_mini.py"]

With --gateway it works off the episodes of `patchwright gateway`, one after another:

    patchwright gateway --tasks held-out --out episodes
    python3 integrations/mini_swe_agent/patchwright_mini.py --gateway http://127.0.0.1:8001

Prompts are those of mini-swe-agent's `mini_textbased.yaml`, or of the file that `--config` names.
The gateway gives the endpoint, the key and the task in the environment; with --gateway,
PATCHWRIGHT_TOKEN is the operator's token, if it asks for one.
"""

import argparse
import json
import os
import platform
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SUBMIT = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"


def call(path: str, body: dict | None = None, timeout: float = 3600) -> dict:
    """Asks the gateway about the episode whose key is in the environment."""
    request = urllib.request.Request(
        os.environ["PATCHWRIGHT_GATEWAY"] + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"],
            "Content-Type": "application/json",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"gateway: {error.code}: {error.read().decode(errors='replace')}") from None


class PatchwrightEnvironment:
    """Runs each command in the episode's sandbox. Commands are stateless."""

    def __init__(self, *, cwd: str = "", env: dict[str, str] | None = None, timeout: int | None = None):
        self.cwd, self.env, self.timeout = cwd, env or {}, timeout

    def execute(self, action: dict, cwd: str = "", *, timeout: int | None = None) -> dict:
        from minisweagent.exceptions import Submitted

        body = {"command": action.get("command", ""), "cwd": cwd or self.cwd, "env": self.env}
        if timeout or self.timeout:
            body["timeout"] = timeout or self.timeout
        ran = call("/episode/exec", body)
        info = "The command took too long and was killed." if ran["timed_out"] else ""
        output = {"output": ran["output"], "returncode": ran["returncode"], "exception_info": info}
        lines = output["output"].lstrip().splitlines(keepends=True)
        if lines and lines[0].strip() == SUBMIT and output["returncode"] == 0:
            submission = "".join(lines[1:])
            extra = {"exit_status": "Submitted", "submission": submission}
            raise Submitted({"role": "exit", "content": submission, "extra": extra})
        return output

    def get_template_vars(self, **kwargs) -> dict:
        return {"cwd": self.cwd, "timeout": self.timeout, **platform.uname()._asdict(), **kwargs}

    def serialize(self) -> dict:
        kind = f"{type(self).__module__}.{type(self).__name__}"
        config = {"cwd": self.cwd, "env": self.env, "timeout": self.timeout}
        return {"info": {"config": {"environment": config, "environment_type": kind}}}


def lease() -> dict | None:
    """The gateway's next episode, whose commands run in its sandbox; None when nothing is left."""
    headers = {"Authorization": "Bearer " + os.environ.get("PATCHWRIGHT_TOKEN", "")}
    url = os.environ["PATCHWRIGHT_GATEWAY"] + "/episodes"
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, b'{"sandbox": true}', headers)) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 410:
                return None
            if error.code != 429:
                raise RuntimeError(f"gateway: {error.code}: {error.read().decode(errors='replace')}") from None
            time.sleep(float(error.headers.get("Retry-After", 1)))


def episodes(options: argparse.Namespace) -> None:
    gateway = os.environ["PATCHWRIGHT_GATEWAY"] = options.gateway.rstrip("/")
    while (episode := lease()) is not None:
        os.environ["OPENAI_BASE_URL"] = os.environ["OPENAI_API_BASE"] = gateway + episode["paths"]["openai"]
        os.environ["OPENAI_API_KEY"] = episode["key"]
        os.environ["PATCHWRIGHT_MODEL"] = episode["model"]
        os.environ["PATCHWRIGHT_TASK"] = episode["task"]["problem_statement"]
        try:
            work(options)
        except Exception as error:
            # Such as all turns used up: what stands in the sandbox is graded.
            print(f"{type(error).__name__}: {error}"[:500], file=sys.stderr)
        report = call(episode["paths"]["submit"], {})
        print(episode["task"]["instance_id"], json.dumps(report), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", type=Path, help="a mini-swe-agent configuration in YAML")
    parser.add_argument("--output", type=Path, help="where to write the trajectory (.traj.json)")
    parser.add_argument("--gateway", metavar="URL", help="work off the episodes of a gateway")
    options = parser.parse_args()

    os.environ.setdefault("MSWEA_SILENT_STARTUP", "1")
    os.environ.setdefault("MSWEA_CONFIGURED", "true")
    os.environ.setdefault("MSWEA_COST_TRACKING", "ignore_errors")
    if options.gateway:
        episodes(options)
    else:
        work(options)
    return 0


def work(options: argparse.Namespace) -> None:
    """One episode, as the environment names it."""
    import yaml
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.config import builtin_config_dir
    from minisweagent.models.litellm_textbased_model import LitellmTextbasedModel

    path = options.config or builtin_config_dir / "mini_textbased.yaml"
    config = yaml.safe_load(path.read_text())
    known = ("system_template", "instance_template", "step_limit", "cost_limit", "max_consecutive_format_errors")
    agent_config = {name: value for name, value in config["agent"].items() if name in known}
    agent_config["cost_limit"] = 0
    model = LitellmTextbasedModel(
        model_name="openai/" + os.environ.get("PATCHWRIGHT_MODEL", "policy"), **config.get("model", {})
    )
    environment = PatchwrightEnvironment(env=config.get("environment", {}).get("env", {}))
    agent = DefaultAgent(model, environment, output_path=options.output, **agent_config)
    result = agent.run(os.environ["PATCHWRIGHT_TASK"])
    print(result.get("exit_status"), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
