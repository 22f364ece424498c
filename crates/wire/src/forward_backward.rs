//! The request of `forward_backward` and its result.

use std::collections::BTreeMap;

use prost::Message;

use crate::error::WireError;
use crate::limits::{Limits, check_body};
use crate::proto;
use crate::tensor::{DType, Tensor, TensorData, check_shape, read_i64, read_tokens, write_tokens};

/// The losses of the API. Each is a function of the log-probabilities of `target_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LossFn {
    /// `-weights * logprobs`.
    CrossEntropy,
    /// `-exp(logprobs - sampling logprobs) * advantages`.
    ImportanceSampling,
    /// The clipped surrogate of PPO; `clip_low_threshold` and `clip_high_threshold` of the loss
    /// config are ratios, such as 0.8 and 1.2.
    Ppo,
    /// Clipped importance weights that no gradient goes through, times log-probabilities.
    Cispo,
    /// Direct reward optimisation, with `beta` in the loss config.
    Dro,
}

impl LossFn {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::CrossEntropy, Self::ImportanceSampling, Self::Ppo, Self::Cispo, Self::Dro];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::CrossEntropy => "cross_entropy",
            Self::ImportanceSampling => "importance_sampling",
            Self::Ppo => "ppo",
            Self::Cispo => "cispo",
            Self::Dro => "dro",
        }
    }

    /// The loss of this name.
    ///
    /// # Errors
    /// [`WireError::Unsupported`] for any other name.
    pub fn parse(name: &str) -> Result<Self, WireError> {
        Self::ALL.into_iter().find(|l| l.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            WireError::Unsupported(format!("loss {name:?} is not one of {known}"))
        })
    }
}

/// One sequence to learn from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Datum {
    /// Tokens that the model reads, `[n]`.
    pub tokens: Vec<u32>,
    /// What the loss reads, by name: `target_tokens` (`[n]`, the token to be predicted at each
    /// place, so shifted by one against `tokens`), `weights`, `logprobs`, `advantages`, …
    pub loss_fn_inputs: BTreeMap<String, Tensor>,
}

/// Asks for log-probabilities and, unless `forward_only`, for a gradient to be added up.
#[derive(Debug, Clone, PartialEq)]
pub struct ForwardBackwardRequest {
    /// The model.
    pub model_id: String,
    /// Place of this request among the model's; the same number is the same request sent again.
    pub seq_id: u32,
    /// The sequences.
    pub data: Vec<Datum>,
    /// The loss.
    pub loss_fn: LossFn,
    /// Its settings.
    pub loss_fn_config: BTreeMap<String, f64>,
    /// No gradient is wanted.
    pub forward_only: bool,
}

impl ForwardBackwardRequest {
    /// The protobuf body.
    ///
    /// # Errors
    /// [`WireError::Malformed`] for token ids or a sequence number above 2^31 - 1.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let data = self.data.iter().map(Datum::to_proto).collect::<Result<Vec<_>, _>>()?;
        let seq_id = i32::try_from(self.seq_id)
            .map_err(|_| WireError::malformed("seq_id", format!("{} is too large", self.seq_id)))?;
        Ok(proto::ForwardBackwardRequest {
            model_id: self.model_id.clone(),
            seq_id,
            data,
            loss_fn: self.loss_fn.name().to_owned(),
            loss_fn_config: self.loss_fn_config.clone(),
            forward_only: self.forward_only,
            loss_fn_config_v2: BTreeMap::new(),
        }
        .encode_to_vec())
    }

    /// Reads a protobuf body of SDK 0.25 or 0.38.
    ///
    /// # Errors
    /// [`WireError::Malformed`], [`WireError::TooLarge`] past `limits`, [`WireError::Unsupported`]
    /// for images, audio, unknown losses and settings that are text.
    pub fn decode(body: &[u8], limits: &Limits) -> Result<Self, WireError> {
        let what = "forward_backward request";
        check_body(what, body, &proto::REQUEST_SHAPE, limits)?;
        let message = proto::ForwardBackwardRequest::decode(body)
            .map_err(|e| WireError::malformed(what, e.to_string()))?;
        let mut left = limits.max_total_elements;
        let data = message
            .data
            .into_iter()
            .enumerate()
            .map(|(i, datum)| Datum::from_proto(i, datum, limits, &mut left))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            model_id: message.model_id,
            seq_id: u32::try_from(message.seq_id)
                .map_err(|_| WireError::malformed("seq_id", "it is negative"))?,
            data,
            loss_fn: LossFn::parse(&message.loss_fn)?,
            loss_fn_config: merge_config(message.loss_fn_config, message.loss_fn_config_v2)?,
            forward_only: message.forward_only,
        })
    }
}

/// Field 7 wins over field 5, as the SDK that writes both wants it.
fn merge_config(
    mut config: BTreeMap<String, f64>,
    v2: BTreeMap<String, proto::LossConfigValue>,
) -> Result<BTreeMap<String, f64>, WireError> {
    for (key, value) in v2 {
        match value.value {
            Some(proto::ConfigValue::Number(number)) => {
                config.insert(key, number);
            }
            Some(proto::ConfigValue::Text(_)) => {
                return Err(WireError::Unsupported(format!(
                    "loss_fn_config[{key:?}] is text; none of the losses here has such a setting"
                )));
            }
            None => {
                return Err(WireError::malformed(
                    format!("loss_fn_config[{key:?}]"),
                    "it has no value",
                ));
            }
        }
    }
    Ok(config)
}

impl Datum {
    /// Reads an input of the loss.
    ///
    /// # Errors
    /// [`WireError::Malformed`] when it is not there.
    pub fn input(&self, name: &str) -> Result<&Tensor, WireError> {
        self.loss_fn_inputs
            .get(name)
            .ok_or_else(|| WireError::malformed("loss_fn_inputs", format!("{name} is missing")))
    }

    fn to_proto(&self) -> Result<proto::Datum, WireError> {
        let tokens = write_tokens("model_input", &self.tokens)?;
        let chunk = proto::ChunkKind::EncodedText(proto::EncodedTextChunk { tokens });
        Ok(proto::Datum {
            model_input: vec![proto::Chunk { chunk: Some(chunk) }],
            loss_fn_inputs: self
                .loss_fn_inputs
                .iter()
                .map(|(name, tensor)| (name.clone(), tensor.to_proto()))
                .collect(),
        })
    }

    fn from_proto(
        index: usize,
        datum: proto::Datum,
        limits: &Limits,
        left: &mut usize,
    ) -> Result<Self, WireError> {
        let name = format!("model_input of datum {index}");
        let mut tokens = Vec::new();
        for chunk in datum.model_input {
            match chunk.chunk {
                Some(proto::ChunkKind::EncodedText(text)) => {
                    tokens.extend(read_tokens(&name, &text.tokens)?);
                }
                Some(proto::ChunkKind::Image(_) | proto::ChunkKind::Dmel(_)) => {
                    return Err(WireError::Unsupported(format!(
                        "{name} has an image or audio; only text tokens are taken"
                    )));
                }
                None => return Err(WireError::malformed(name, "an empty chunk")),
            }
        }
        let loss_fn_inputs = datum
            .loss_fn_inputs
            .into_iter()
            .map(|(key, tensor)| {
                let tensor =
                    Tensor::from_proto(&format!("{key} of datum {index}"), tensor, limits, left)?;
                Ok((key, tensor))
            })
            .collect::<Result<_, WireError>>()?;
        Ok(Self { tokens, loss_fn_inputs })
    }
}

/// Result of `forward_backward`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ForwardBackwardOutput {
    /// Name of the output records' class; `ArrayRecord` where none is better.
    pub loss_fn_output_type: String,
    /// For each datum: tensors by name; `logprobs` (`[n]`) is the log-probability of each target.
    pub loss_fn_outputs: Vec<BTreeMap<String, Tensor>>,
    /// Numbers by name. A name ends with how the SDK joins those of several requests, such as
    /// `loss:sum`; it refuses one without that part.
    pub metrics: BTreeMap<String, f64>,
}

impl ForwardBackwardOutput {
    /// The protobuf body.
    pub fn encode(&self) -> Vec<u8> {
        // One record holds tensors of the same names, types and trailing sizes: neighbours that
        // agree share one.
        let mut records: Vec<proto::ArrayRecord> = Vec::new();
        for group in self.loss_fn_outputs.chunk_by(same_layout) {
            let names = group.first().into_iter().flat_map(BTreeMap::keys);
            let fields = names.map(|name| (name.clone(), batch(group, name))).collect();
            records.push(proto::ArrayRecord {
                type_tag: self.loss_fn_output_type.clone(),
                fields,
                num_datums: group.len() as i64,
            });
        }
        proto::ForwardBackwardOutput {
            loss_fn_output_type: self.loss_fn_output_type.clone(),
            loss_fn_outputs: records,
            metrics: self.metrics.clone(),
        }
        .encode_to_vec()
    }

    /// Reads a protobuf body.
    ///
    /// # Errors
    /// [`WireError::Malformed`], [`WireError::TooLarge`] past `limits`.
    pub fn decode(body: &[u8], limits: &Limits) -> Result<Self, WireError> {
        let what = "forward_backward result";
        check_body(what, body, &proto::OUTPUT_SHAPE, limits)?;
        let message = proto::ForwardBackwardOutput::decode(body)
            .map_err(|e| WireError::malformed(what, e.to_string()))?;
        let mut outputs = Vec::new();
        for record in message.loss_fn_outputs {
            let room = limits.max_messages.saturating_sub(outputs.len());
            outputs.extend(unbatch(record, room)?);
        }
        Ok(Self {
            loss_fn_output_type: message.loss_fn_output_type,
            loss_fn_outputs: outputs,
            metrics: message.metrics,
        })
    }
}

fn same_layout(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|((name, x), (other, y))| {
            let same_type = std::mem::discriminant(&x.data) == std::mem::discriminant(&y.data);
            name == other && same_type && x.shape.get(1..) == y.shape.get(1..)
        })
}

/// Joins the tensors called `name`, which all have, one after the other.
fn batch(group: &[BTreeMap<String, Tensor>], name: &str) -> proto::BatchedTensor {
    let mut joined = proto::BatchedTensor::default();
    let mut offsets = vec![0i64];
    for tensor in group.iter().filter_map(|datum| datum.get(name)) {
        let (bytes, dtype) = tensor.data.to_bytes();
        joined.data.extend(bytes);
        joined.dtype = dtype as i32;
        joined.trailing_shape =
            tensor.shape.get(1..).unwrap_or_default().iter().map(|n| *n as i64).collect();
        offsets.push(joined.data.len() as i64);
    }
    joined.offsets = TensorData::I64(offsets).to_bytes().0;
    joined
}

/// Takes a record apart, into at most `room` datums.
fn unbatch(
    record: proto::ArrayRecord,
    room: usize,
) -> Result<Vec<BTreeMap<String, Tensor>>, WireError> {
    let what = "loss_fn_outputs";
    let mut columns = Vec::new();
    for (name, batched) in record.fields {
        columns.push((name.clone(), split(&name, &batched)?));
    }
    // Older writers leave the count out.
    let count = match (usize::try_from(record.num_datums), columns.first()) {
        (Ok(0) | Err(_), Some((_, tensors))) => tensors.len(),
        (Ok(n), _) => n,
        (Err(_), None) => return Err(WireError::malformed(what, "a negative number of datums")),
    };
    WireError::check("datums of the result", count, room)?;
    if let Some((name, tensors)) = columns.iter().find(|(_, t)| t.len() != count) {
        return Err(WireError::malformed(
            what,
            format!("{name} has {} entries for {count} datums", tensors.len()),
        ));
    }
    let mut datums = vec![BTreeMap::new(); count];
    for (name, tensors) in columns {
        for (datum, tensor) in datums.iter_mut().zip(tensors) {
            datum.insert(name.clone(), tensor);
        }
    }
    Ok(datums)
}

fn split(name: &str, batched: &proto::BatchedTensor) -> Result<Vec<Tensor>, WireError> {
    let bad = |reason: &str| WireError::malformed(name, reason);
    let dtype = DType::parse(name, batched.dtype)?;
    let trailing = check_shape(name, &batched.trailing_shape)?;
    let row = trailing
        .iter()
        .try_fold(dtype.size(), |n, d| n.checked_mul(*d))
        .ok_or_else(|| bad("the trailing shape overflows"))?;
    let offsets = read_i64(name, &batched.offsets)?;
    offsets
        .windows(2)
        .map(|pair| {
            let bytes = usize::try_from(pair[0])
                .ok()
                .zip(usize::try_from(pair[1]).ok())
                .and_then(|(from, to)| batched.data.get(from..to))
                .ok_or_else(|| bad("offsets lie outside the data"))?;
            if (row == 0 && !bytes.is_empty()) || (row != 0 && bytes.len() % row != 0) {
                return Err(bad("an entry is no whole number of rows"));
            }
            let rows = bytes.len().checked_div(row).unwrap_or(0);
            let shape = std::iter::once(rows).chain(trailing.iter().copied()).collect();
            Ok(Tensor { data: TensorData::from_bytes(name, bytes, dtype)?, shape })
        })
        .collect()
}
