"""Golden bytes of the Tinker wire, made by the official SDK.

    python3 -m venv v && v/bin/pip install tinker==0.25.0 && v/bin/python make_goldens.py 0.25
    python3 -m venv w && w/bin/pip install tinker==0.38.0 && w/bin/python make_goldens.py 0.38

Requests are what the SDK sends (its own conversion, serialized with a fixed order of maps); results
are what its reader takes: each is read back by the SDK before it is written. The values are those of
tests/goldens.rs.
"""

import json
import pathlib
import sys

import numpy as np
import tinker
from tinker import types
from tinker._compat import model_dump
from tinker.proto import response_conv
from tinker.proto import tinker_public_pb2 as pb
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest

version = sys.argv[1]
assert tinker.__version__.startswith(version + "."), tinker.__version__
here = pathlib.Path(__file__).parent


def write(name, message):
    (here / f"{name}_{version}.bin").write_bytes(message.SerializeToString(deterministic=True))


def i64(values, shape=None):
    return types.TensorData(data=values, dtype="int64", shape=shape or [len(values)])


def f32(values, shape=None):
    return types.TensorData(data=values, dtype="float32", shape=shape or [len(values)])


data = [
    types.Datum(
        model_input=types.ModelInput.from_ints([1, 70000, 3]),
        loss_fn_inputs={
            "target_tokens": i64([70000, 3, 4]),
            "logprobs": f32([-0.5, -1.25, -2.0]),
            "advantages": f32([1.0, -1.0, 0.5]),
        },
    ),
    types.Datum(
        model_input=types.ModelInput.from_ints([9]),
        loss_fn_inputs={
            "target_tokens": i64([8]),
            "logprobs": f32([-3.5]),
            "advantages": f32([0.25]),
        },
    ),
]
request = forward_backward_request_to_proto(
    ForwardBackwardRequest(
        forward_backward_input=ForwardBackwardInput(
            data=data,
            loss_fn="ppo",
            loss_fn_config={"clip_low_threshold": 0.8, "clip_high_threshold": 1.3},
        ),
        model_id="model-1",
        seq_id=7,
    )
)
write("forward_backward", request)

# Two-dimensional targets with many zeros go as compressed sparse rows.
sparse = types.Datum(
    model_input=types.ModelInput.from_ints([5, 6, 7]),
    loss_fn_inputs={
        "target_tokens": types.TensorData(
            data=[11, 12, 13],
            dtype="int64",
            shape=[3, 4],
            sparse_crow_indices=[0, 1, 1, 3],
            sparse_col_indices=[2, 0, 3],
        ),
        "weights": f32([0.5] * 12, [3, 4]),
    },
)
request = forward_backward_request_to_proto(
    ForwardBackwardRequest(
        forward_backward_input=ForwardBackwardInput(data=[sparse], loss_fn="cross_entropy"),
        model_id="model-2",
        seq_id=8,
    )
)
request.forward_only = True
write("forward_sparse", request)

output = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
record = output.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=2)
field = record.fields["logprobs"]
field.data = np.asarray([-0.5, -1.5, -2.5, -4.0], dtype=np.float32).tobytes()
field.offsets = np.asarray([0, 12, 16], dtype=np.int64).tobytes()
field.dtype = pb.DTYPE_FLOAT32
output.metrics["loss:sum"] = 8.5
output.metrics["tokens:sum"] = 4.0
read = response_conv.deserialize_forward_backward_output(output.SerializeToString())
assert [o["logprobs"].tolist() for o in read.loss_fn_outputs] == [[-0.5, -1.5, -2.5], [-4.0]]
assert read.metrics == {"loss:sum": 8.5, "tokens:sum": 4.0}
write("forward_backward_output", output)

# What the reader widens: bfloat16 and int32, and a record for each trailing shape.
output = pb.ForwardBackwardOutput(loss_fn_output_type="module:TorchLossReturn")
record = output.loss_fn_outputs.add(num_datums=1)
field = record.fields["values"]
field.data = (np.asarray([1.5, -2.0], dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
field.offsets = np.asarray([0, 4], dtype=np.int64).tobytes()
field.dtype = pb.DTYPE_BFLOAT16
record = output.loss_fn_outputs.add(num_datums=1)
field = record.fields["values"]
field.data = np.asarray([1, 2, 3, -4], dtype=np.int32).tobytes()
field.offsets = np.asarray([0, 16], dtype=np.int64).tobytes()
field.dtype = pb.DTYPE_INT32
field.trailing_shape.extend([2])
read = response_conv.deserialize_forward_backward_output(output.SerializeToString())
assert read.loss_fn_outputs[0]["values"].tolist() == [1.5, -2.0]
assert read.loss_fn_outputs[1]["values"].tolist() == [[1, 2], [3, -4]]
write("widened_output", output)

response = pb.SampleResponse(prompt_cache_hit_tokens=3)
response.sequences.add(
    stop_reason=pb.STOP_REASON_LENGTH,
    tokens=np.asarray([5, 151645], dtype=np.int32).tobytes(),
    logprobs=np.asarray([-0.125, -6.5], dtype=np.float32).tobytes(),
)
response.sequences.add(tokens=np.asarray([6], dtype=np.int32).tobytes())
response.prompt_logprobs = np.asarray([np.nan, -0.75], dtype=np.float32).tobytes()
topk = response.topk_prompt_logprobs
topk.token_ids = np.asarray([[0, 0], [4, 2]], dtype=np.int32).tobytes()
topk.logprobs = np.asarray([[-99999.0, -99999.0], [-0.75, -2.0]], dtype=np.float32).tobytes()
topk.k = 2
setattr(topk, "prompt_length" if version == "0.25" else "length", 2)
read = response_conv.deserialize_sample_response(response.SerializeToString())
assert [s.tokens for s in read.sequences] == [[5, 151645], [6]]
assert read.prompt_logprobs == [None, -0.75]
assert read.topk_prompt_logprobs == [None, [(4, -0.75), (2, -2.0)]]
write("sample_response", response)

# JSON bodies, dumped as the SDK's resources dump them.

tokens = types.ModelInput(
    chunks=[types.EncodedTextChunk(tokens=[1, 2]), types.EncodedTextChunk(tokens=[3])]
)
bodies = {
    "create_session": types.CreateSessionRequest(
        tags=["a"], user_metadata={}, sdk_version=tinker.__version__
    ),
    "session_heartbeat": types.SessionHeartbeatRequest(session_id="s"),
    "create_model": types.CreateModelRequest(
        session_id="s", model_seq_id=0, base_model="b", lora_config=types.LoraConfig(rank=8, seed=3)
    ),
    "get_info": types.GetInfoRequest(model_id="m"),
    "optim_step": types.OptimStepRequest(
        model_id="m", seq_id=2, adam_params=types.AdamParams(learning_rate=0.001)
    ),
    "save_weights": types.SaveWeightsRequest(model_id="m", path="one", seq_id=3),
    "load_weights": types.LoadWeightsRequest(
        model_id="m", seq_id=1, path="tinker://m/weights/one", optimizer=True
    ),
    "save_weights_for_sampler": types.SaveWeightsForSamplerRequest(
        model_id="m", path="one", seq_id=4
    ),
    "create_sampling_session": types.CreateSamplingSessionRequest(
        session_id="s", sampling_session_seq_id=3, model_path="tinker://m/sampler_weights/one"
    ),
    "asample": types.SampleRequest(
        num_samples=2,
        prompt=tokens,
        sampling_params=types.SamplingParams(max_tokens=5, seed=7, stop=[13, 14], temperature=0.5),
        sampling_session_id="x",
        seq_id=1000000001,
        prompt_logprobs=True,
    ),
    "retrieve_future": types.FutureRetrieveRequest(request_id="r", allow_metadata_only=True),
}
dumped = {
    name: model_dump(body, exclude_unset=False, exclude_none=True, mode="json")
    for name, body in bodies.items()
}
(here / f"requests_{version}.json").write_text(json.dumps(dumped, indent=1) + "\n")
