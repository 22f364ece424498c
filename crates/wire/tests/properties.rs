//! Round trips of whatever can be written, and bytes that nobody would write.

use std::collections::BTreeMap;

use patchwright_wire::{
    Datum, ForwardBackwardOutput, ForwardBackwardRequest, FutureReply, Limits, LossFn,
    SampleResponse, SampledSequence, StopReason, Tensor, TensorData, WireError, compress,
    decompress, json,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn finite() -> impl Strategy<Value = f32> {
    -1e6f32..1e6
}

fn tensor() -> impl Strategy<Value = Tensor> {
    (0usize..4, 0usize..5, any::<bool>()).prop_flat_map(|(rows, columns, floats)| {
        let n = rows * columns;
        let data = if floats {
            vec(finite(), n).prop_map(TensorData::F32).boxed()
        } else {
            vec(any::<i64>(), n).prop_map(TensorData::I64).boxed()
        };
        data.prop_map(move |data| Tensor { data, shape: vec![rows, columns] })
    })
}

fn record() -> impl Strategy<Value = BTreeMap<String, Tensor>> {
    btree_map("[a-z_]{1,12}", tensor(), 0..4)
}

fn token() -> impl Strategy<Value = u32> {
    0u32..=i32::MAX as u32
}

prop_compose! {
    fn request()(
        model_id in ".{0,20}",
        seq_id in token(),
        data in vec((vec(token(), 0..20), record()), 0..5),
        loss in 0usize..5,
        loss_fn_config in btree_map("[a-z]{1,8}", -1e3f64..1e3, 0..3),
        forward_only in any::<bool>(),
    ) -> ForwardBackwardRequest {
        ForwardBackwardRequest {
            model_id,
            seq_id,
            data: data
                .into_iter()
                .map(|(tokens, loss_fn_inputs)| Datum { tokens, loss_fn_inputs })
                .collect(),
            loss_fn: LossFn::ALL[loss],
            loss_fn_config,
            forward_only,
        }
    }
}

prop_compose! {
    fn sequence()(
        pairs in vec((token(), finite()), 0..20),
        known in any::<bool>(),
        stop in any::<bool>(),
    ) -> SampledSequence {
        let (tokens, logprobs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        SampledSequence {
            stop_reason: if stop { StopReason::Stop } else { StopReason::Length },
            tokens,
            logprobs: known.then_some(logprobs),
        }
    }
}

proptest! {
    #[test]
    fn requests_go_round(request in request()) {
        let body = request.encode().expect("encodes");
        prop_assert_eq!(ForwardBackwardRequest::decode(&body, &Limits::default()), Ok(request));
        let packed = compress(&body).expect("compresses");
        prop_assert_eq!(decompress(&packed, body.len()), Ok(body.clone()));
        if !body.is_empty() {
            let refused = decompress(&packed, body.len() - 1);
            prop_assert!(matches!(refused, Err(WireError::TooLarge { .. })), "{:?}", refused);
        }
    }

    #[test]
    fn outputs_go_round(
        loss_fn_outputs in vec(record(), 0..6),
        metrics in btree_map("[a-z:]{1,8}", -1e3f64..1e3, 0..3),
    ) {
        let output = ForwardBackwardOutput {
            loss_fn_output_type: "ArrayRecord".to_owned(),
            loss_fn_outputs,
            metrics,
        };
        let read = ForwardBackwardOutput::decode(&output.encode(), &Limits::default())
            .expect("decodes");
        prop_assert_eq!(read.loss_fn_outputs.len(), output.loss_fn_outputs.len());
        prop_assert_eq!(&read.metrics, &output.metrics);
        for (a, b) in read.loss_fn_outputs.iter().zip(&output.loss_fn_outputs) {
            for ((name, x), (other, y)) in a.iter().zip(b) {
                prop_assert_eq!(name, other);
                prop_assert_eq!(&x.data, &y.data);
                // A matrix without elements does not say how many rows it has.
                prop_assert!(x.shape == y.shape || y.is_empty());
            }
        }
    }

    #[test]
    fn samples_go_round(
        sequences in vec(sequence(), 0..5),
        prompt in proptest::option::of(vec(finite(), 1..9)),
        hits in token(),
    ) {
        let response = SampleResponse {
            sequences,
            prompt_logprobs: prompt,
            topk_prompt_logprobs: None,
            prompt_cache_hit_tokens: hits,
        };
        let mut read = SampleResponse::decode(&response.encode().expect("encodes"), &Limits::default())
            .expect("decodes");
        // No tokens have no log-probabilities either way.
        for (a, b) in read.sequences.iter_mut().zip(&response.sequences) {
            if b.tokens.is_empty() {
                a.logprobs.clone_from(&b.logprobs);
            }
        }
        prop_assert_eq!(read, response);
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..400)) {
        read_all(&bytes);
    }

    #[test]
    fn no_damaged_request_panics(
        request in request(),
        cuts in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in any::<prop::sample::Index>(),
    ) {
        let mut bytes = request.encode().expect("encodes");
        if !bytes.is_empty() {
            for (at, byte) in cuts {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(end.index(bytes.len() + 1));
        }
        read_all(&bytes);
    }

    #[test]
    fn no_damaged_output_panics(
        outputs in vec(record(), 1..4),
        cuts in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let output = ForwardBackwardOutput { loss_fn_outputs: outputs, ..Default::default() };
        let mut bytes = output.encode();
        for (at, byte) in cuts {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read_all(&bytes);
    }
}

/// Reads bytes as each message; what comes of it does not matter.
fn read_all(bytes: &[u8]) {
    let limits = Limits {
        max_body: 1 << 16,
        max_messages: 1 << 10,
        max_elements: 1 << 12,
        max_total_elements: 1 << 14,
    };
    let _ = ForwardBackwardRequest::decode(bytes, &limits);
    let _ = ForwardBackwardOutput::decode(bytes, &limits);
    let _ = SampleResponse::decode(bytes, &limits);
    let _ = decompress(bytes, 1 << 16);
    let _ = FutureReply::parse("application/json", bytes.to_vec());
    let _ = serde_json::from_slice::<json::SampleRequest>(bytes);
}

#[test]
fn empty_messages_are_counted_before_memory_is_taken() {
    // `data` (field 3, length 0), again and again: two bytes each.
    let body = [0x1a, 0x00].repeat(1 << 21);
    let error = ForwardBackwardRequest::decode(&body, &Limits::default()).expect_err("too many");
    assert!(
        matches!(&error, WireError::TooLarge { what, .. } if what.contains("messages")),
        "{error}"
    );
    // The same one level further down: chunks of one datum.
    let inner = [0x0a, 0x00].repeat(1 << 20);
    let mut nested = vec![0x1a];
    let mut length = inner.len();
    while length >= 0x80 {
        nested.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    nested.push(length as u8);
    nested.extend(inner);
    let error = ForwardBackwardRequest::decode(&nested, &Limits::default()).expect_err("too many");
    assert!(
        matches!(&error, WireError::TooLarge { what, .. } if what.contains("messages")),
        "{error}"
    );
}

#[test]
fn a_bomb_of_zeros_is_refused() {
    let packed = compress(&vec![0u8; 64 << 20]).expect("compresses");
    assert!(packed.len() < 1 << 16);
    let error = decompress(&packed, 1 << 20).expect_err("too large");
    assert!(matches!(error, WireError::TooLarge { limit, .. } if limit == 1 << 20), "{error}");
}
