"""Drives a server with the official SDK, as it comes from PyPI: training with each loss, a custom
loss, saving and loading, sampling. Asserts; prints the SDK's version and what it saw."""

import math
import os
import sys

import numpy as np
import tinker
from tinker import types


def datum(tokens, **inputs):
    arrays = {"target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1])}
    for name, values in inputs.items():
        arrays[name] = types.TensorData(
            data=[float(v) for v in values], dtype="float32", shape=[len(values)]
        )
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=arrays
    )


def values(tensor):
    return np.asarray(tensor.data, dtype=np.float64)


def main():
    service = tinker.ServiceClient()
    capabilities = service.get_server_capabilities()
    names = [model.model_name for model in capabilities.supported_models]
    assert names == ["base"], names
    training = service.create_lora_training_client(base_model="base", rank=8, seed=1)
    info = training.get_info()
    assert info.model_data.tokenizer_id, info
    tokens = [1, 60, 70, 80, 2, 90, 100, 3]
    n = len(tokens) - 1
    adam = types.AdamParams(learning_rate=0.01)

    losses = []
    for _ in range(6):
        learned = training.forward_backward([datum(tokens, weights=[1.0] * n)] * 3, "cross_entropy")
        stepped = training.optim_step(adam)
        result = learned.result()
        stepped.result()
        logprobs = values(result.loss_fn_outputs[0]["logprobs"])
        assert math.isclose(result.metrics["loss:sum"], -3 * logprobs.sum(), rel_tol=1e-4)
        losses.append(result.metrics["loss:sum"])
    assert losses[-1] < 0.7 * losses[0], losses

    sampler = training.save_weights_and_get_sampling_client()
    params = types.SamplingParams(max_tokens=6, temperature=1.0, seed=5, stop=[3])
    prompt = types.ModelInput.from_ints(tokens[:4])
    drawn = sampler.sample(prompt=prompt, num_samples=4, sampling_params=params).result()
    again = sampler.sample(prompt=prompt, num_samples=4, sampling_params=params).result()
    assert [list(s.tokens) for s in drawn.sequences] == [list(s.tokens) for s in again.sequences]
    assert all(len(s.tokens) == len(s.logprobs) for s in drawn.sequences)
    scores = sampler.compute_logprobs(types.ModelInput.from_ints(tokens)).result()
    now = training.forward([datum(tokens, weights=[1.0] * n)], "cross_entropy").result()
    trained = values(now.loss_fn_outputs[0]["logprobs"])
    assert np.allclose(np.array(scores[1:], dtype=np.float64), trained, atol=1e-5), (scores, trained)

    old = trained - 0.1
    for loss, config in [
        ("importance_sampling", None),
        ("ppo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.3}),
        ("cispo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.3}),
    ]:
        one = datum(tokens, logprobs=old, advantages=[1.0] * n)
        result = training.forward_backward([one], loss, loss_fn_config=config).result()
        ratio = np.exp(0.1)
        expected = -n * ratio if loss != "cispo" else -(ratio * trained).sum()
        assert math.isclose(result.metrics["loss:sum"], expected, rel_tol=1e-3), (loss, result.metrics)
    training.optim_step(types.AdamParams(learning_rate=0.0)).result()

    try:
        import torch
    except ImportError:
        torch = None
    assert torch is not None or "PATCHWRIGHT_TORCH" not in os.environ, "custom losses need torch"
    if torch is not None:
        def custom(data, logprobs):
            loss = sum((-x).mean() for x in logprobs)
            return loss, {"custom": loss.item()}

        result = training.forward_backward_custom([datum(tokens, weights=[1.0] * n)], custom).result()
        training.optim_step(types.AdamParams(learning_rate=0.0)).result()
        assert math.isclose(result.metrics["custom"], -trained.mean(), rel_tol=1e-3), result.metrics

    path = training.save_state("step-6").result().path
    loaded = service.create_training_client_from_state(path)
    same = loaded.forward([datum(tokens, weights=[1.0] * n)], "cross_entropy").result()
    assert np.allclose(values(same.loss_fn_outputs[0]["logprobs"]), trained, atol=1e-6)

    saved = training.save_weights_for_sampler("final").result().path
    by_path = service.create_sampling_client(model_path=saved)
    other = by_path.sample(prompt=prompt, num_samples=1, sampling_params=params).result()
    assert list(other.sequences[0].tokens) == list(drawn.sequences[0].tokens)

    rest = service.create_rest_client()
    kept = {c.tinker_path: c for c in rest.list_checkpoints(training.get_info().model_id).result().checkpoints}
    assert set(kept) == {path, saved} and kept[path].checkpoint_type == "training", kept
    assert all(c.size_bytes > 0 and c.expires_at is None for c in kept.values()), kept
    rest.delete_checkpoint_from_tinker_path(saved).result()
    left = rest.list_checkpoints(training.get_info().model_id).result().checkpoints
    assert [c.tinker_path for c in left] == [path], left
    try:
        rest.delete_checkpoint_from_tinker_path(saved).result()
    except tinker.NotFoundError:
        pass
    else:
        raise AssertionError("deleted twice")

    second = tinker.ServiceClient().create_lora_training_client(base_model="base", rank=2)
    second.forward_backward([datum(tokens, weights=[1.0] * n)], "cross_entropy").result()

    version = getattr(tinker, "__version__", "?")
    print(f"tinker {version}: losses {losses[0]:.2f} -> {losses[-1]:.2f}, custom loss {'yes' if torch else 'no torch'}")


if __name__ == "__main__":
    sys.exit(main())
