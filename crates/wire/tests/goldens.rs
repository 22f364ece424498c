//! Bytes that the official SDK made (`goldens/make_goldens.py`), read and written again.

use std::collections::BTreeMap;
use std::path::Path;

use patchwright_wire::{
    Datum, ForwardBackwardOutput, ForwardBackwardRequest, Limits, LossFn, SampleResponse,
    SampledSequence, StopReason, Tensor, TensorData, TopkLogprobs,
};

const VERSIONS: [&str; 2] = ["0.25", "0.38"];

fn golden(name: &str, version: &str) -> Vec<u8> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/goldens/{name}_{version}.bin"));
    std::fs::read(path).expect("golden")
}

fn inputs<const N: usize>(fields: [(&str, Tensor); N]) -> BTreeMap<String, Tensor> {
    fields.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

fn ppo_request() -> ForwardBackwardRequest {
    let datum = |tokens: &[u32], targets: &[i64], logprobs: &[f32], advantages: &[f32]| Datum {
        tokens: tokens.to_vec(),
        loss_fn_inputs: inputs([
            ("target_tokens", Tensor::i64(targets.to_vec())),
            ("logprobs", Tensor::f32(logprobs.to_vec())),
            ("advantages", Tensor::f32(advantages.to_vec())),
        ]),
    };
    ForwardBackwardRequest {
        model_id: "model-1".to_owned(),
        seq_id: 7,
        data: vec![
            datum(&[1, 70000, 3], &[70000, 3, 4], &[-0.5, -1.25, -2.0], &[1.0, -1.0, 0.5]),
            datum(&[9], &[8], &[-3.5], &[0.25]),
        ],
        loss_fn: LossFn::Ppo,
        loss_fn_config: [
            ("clip_low_threshold".to_owned(), 0.8),
            ("clip_high_threshold".to_owned(), 1.3),
        ]
        .into(),
        forward_only: false,
    }
}

#[test]
fn requests_of_both_sdks_are_read() {
    for version in VERSIONS {
        let bytes = golden("forward_backward", version);
        let read = ForwardBackwardRequest::decode(&bytes, &Limits::default()).expect("decodes");
        assert_eq!(read, ppo_request(), "SDK {version}");
    }
}

#[test]
fn a_request_is_written_as_sdk_0_25_writes_it() {
    assert_eq!(ppo_request().encode().expect("encodes"), golden("forward_backward", "0.25"));
}

#[test]
fn sparse_rows_are_spread_out() {
    for version in VERSIONS {
        let bytes = golden("forward_sparse", version);
        let read = ForwardBackwardRequest::decode(&bytes, &Limits::default()).expect("decodes");
        assert!(read.forward_only);
        let targets = read.data[0].input("target_tokens").expect("targets");
        assert_eq!(targets.shape, [3, 4]);
        assert_eq!(
            targets.data,
            TensorData::I64(vec![0, 0, 11, 0, 0, 0, 0, 0, 12, 0, 0, 13]),
            "SDK {version}"
        );
        let weights = read.data[0].input("weights").expect("weights");
        assert_eq!(weights, &Tensor { data: TensorData::F32(vec![0.5; 12]), shape: vec![3, 4] });
    }
}

#[test]
fn a_sparse_matrix_larger_than_the_limit_is_refused() {
    let limits = Limits { max_elements: 11, ..Limits::default() };
    let error = ForwardBackwardRequest::decode(&golden("forward_sparse", "0.25"), &limits)
        .expect_err("12 elements");
    assert!(error.to_string().contains("elements of target_tokens of datum 0"), "{error}");
}

#[test]
fn results_are_read_and_written_as_the_sdk_takes_them() {
    let output = ForwardBackwardOutput {
        loss_fn_output_type: "ArrayRecord".to_owned(),
        loss_fn_outputs: vec![
            inputs([("logprobs", Tensor::f32(vec![-0.5, -1.5, -2.5]))]),
            inputs([("logprobs", Tensor::f32(vec![-4.0]))]),
        ],
        metrics: [("loss:sum".to_owned(), 8.5), ("tokens:sum".to_owned(), 4.0)].into(),
    };
    for version in VERSIONS {
        let bytes = golden("forward_backward_output", version);
        let read = ForwardBackwardOutput::decode(&bytes, &Limits::default()).expect("decodes");
        assert_eq!(read, output, "SDK {version}");
        assert_eq!(output.encode(), bytes, "SDK {version}");
    }
}

#[test]
fn narrow_elements_are_widened() {
    let read = ForwardBackwardOutput::decode(&golden("widened_output", "0.25"), &Limits::default())
        .expect("decodes");
    assert_eq!(read.loss_fn_outputs[0]["values"], Tensor::f32(vec![1.5, -2.0]));
    let rows = Tensor { data: TensorData::I64(vec![1, 2, 3, -4]), shape: vec![2, 2] };
    assert_eq!(read.loss_fn_outputs[1]["values"], rows);
}

#[test]
fn samples_are_read_and_written_as_the_sdk_takes_them() {
    for version in VERSIONS {
        let bytes = golden("sample_response", version);
        let read = SampleResponse::decode(&bytes, &Limits::default()).expect("decodes");
        let [first, second] = &read.sequences[..] else { panic!("two sequences") };
        assert_eq!(
            first,
            &SampledSequence {
                stop_reason: StopReason::Length,
                tokens: vec![5, 151_645],
                logprobs: Some(vec![-0.125, -6.5]),
            }
        );
        assert_eq!((second.stop_reason, second.logprobs.as_ref()), (StopReason::Stop, None));
        let prompt = read.prompt_logprobs.as_ref().expect("asked for");
        assert!(prompt[0].is_nan() && prompt[1..] == [-0.75]);
        assert_eq!(read.prompt_cache_hit_tokens, 3);
        assert_eq!(
            read.topk_prompt_logprobs,
            Some(TopkLogprobs {
                token_ids: vec![0, 0, 4, 2],
                logprobs: vec![-99999.0, -99999.0, -0.75, -2.0],
                k: 2,
                length: 2,
            })
        );
        assert_eq!(read.encode().expect("encodes"), bytes, "SDK {version}");
    }
}
