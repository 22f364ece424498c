"""Reads with the tools of others what the formats wrote into the directory argv[1]."""

import json
import pathlib
import sys

import atif
import datasets
import pandas
import pyarrow.parquet
from swebench.harness.utils import get_predictions_from_file

directory = pathlib.Path(sys.argv[1])
rollouts = [json.loads(line) for line in (directory / "rollouts.jsonl").open()]


def trajectories(rollout):
    return [rollout["trajectory"], *rollout.get("branches", [])]


def mask(trajectory):
    spans = [turn["sampled"] for turn in trajectory["turns"]]
    positions = range(len(trajectory["tokens"]))
    return [any(span["start"] <= t < span["end"] for span in spans) for t in positions]


# pyarrow and pandas: every column, null where there is no grade; a row for each branch.
table = pyarrow.parquet.read_table(directory / "rollouts.parquet")
assert str(table.schema.field("tokens").type) == "list<element: uint32 not null>", table.schema
frame = pandas.read_parquet(directory / "rollouts.parquet")
loaded = datasets.Dataset.from_parquet(
    str(directory / "rollouts.parquet"), cache_dir=str(directory / "cache")
)
expected = [(r, n, t) for r in rollouts for n, t in enumerate(trajectories(r))]
assert len(table) == len(frame) == len(loaded) == len(expected)
for row, (_, line), item, (rollout, branch, trajectory) in zip(
    table.to_pylist(), frame.iterrows(), loaded, expected
):
    assert row["tokens"] == list(line["tokens"]) == item["tokens"] == trajectory["tokens"]
    assert row["sampler_logprobs"] == trajectory["sampler_logprobs"]
    assert row["loss_mask"] == mask(trajectory)
    for key in ("instance_id", "sibling", "policy_version", "status", "failure", "solved", "patch"):
        assert row[key] == rollout[key], key
    assert row["attempt"] == rollout.get("attempt", 0)
    assert row["reward"] == (None if rollout["solved"] is None else float(rollout["solved"]))
    assert (row["branch"], row["num_branches"]) == (branch, len(trajectories(rollout)))
    assert row["num_turns"] == len(trajectory["turns"])
    assert json.loads(row["turns"]) == trajectory["turns"]
assert pandas.isna(frame["solved"][1]) and frame["solved"][0]
# As a trainer reads it: each sampled token once, with its log-probability.
sampled = frame.explode(["tokens", "loss_mask", "sampler_logprobs"])
sampled = sampled[sampled["loss_mask"] == True]  # noqa: E712
spans = [(t, turn["sampled"]) for _, _, t in expected for turn in t["turns"]]
assert list(zip(sampled["tokens"], sampled["sampler_logprobs"])) == [
    (t["tokens"][i], t["sampler_logprobs"][i]) for t, span in spans for i in range(span["start"], span["end"])
]

# The ATIF package: its own validation, and the tokens of every step.
for index, rollout in enumerate(rollouts):
    document = json.loads((directory / f"atif-{index}.json").read_text())
    trajectory = atif.Trajectory.model_validate(document)
    assert trajectory.schema_version == "ATIF-v1.7"
    embedded = trajectory.subagent_trajectories or []
    for read, written in zip([trajectory, *embedded], trajectories(rollout), strict=True):
        agent = [step for step in read.steps if step.source == "agent"]
        for step, turn in zip(agent, written["turns"], strict=True):
            span = turn["sampled"]
            tokens = written["tokens"][span["start"] : span["end"]]
            assert step.message == turn["text"] and step.metrics.completion_token_ids == tokens
            assert step.metrics.prompt_token_ids == written["tokens"][: span["start"]]

# Chat messages: as a trainer's data set, error turns without weight.
chat = datasets.load_dataset(
    "json", data_files=str(directory / "chat.jsonl"), cache_dir=str(directory / "cache")
)["train"]
weights = [[m["weight"] for m in c["messages"] if m["role"] == "assistant"] for c in chat]
assert weights == [[1, 0, 1], [1], [1, 1], [0]], weights

# SWE-bench's own loader takes both forms of predictions.
for name in ("preds.json", "preds.jsonl"):
    predictions = get_predictions_from_file(str(directory / name), "none", "test")
    found = {p["instance_id"]: p["model_patch"] for p in predictions}
    assert found == {r["instance_id"]: r["patch"] for r in rollouts if r["failure"] != "agent"}
    assert {p["model_name_or_path"] for p in predictions} == {"org/base"}
report = json.loads((directory / "report.json").read_text())
assert report["schema_version"] == 2 and report["resolved_ids"] == ["owner__repo-1", "owner__repo-3"]

print("read back:", len(rollouts), "rollouts")
