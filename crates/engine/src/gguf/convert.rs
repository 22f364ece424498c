//! From the names of GGUF to those of Hugging Face.

use crate::config::{ModelConfig, ModelType};
use crate::rope::RopeScaling;

use super::GgufVocabulary;
use super::read::{Header, Value};

type Result<T> = std::result::Result<T, String>;

/// Divisors of the rotary frequencies, which Llama 3 has in place of its scaling's parameters.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Pieces of tensor names, Hugging Face and GGUF.
const NAMES: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The name that GGUF has for a tensor of a Hugging Face checkpoint.
pub(crate) fn gguf_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "model.norm.weight" => return Some("output_norm.weight".to_owned()),
        "lm_head.weight" => return Some("output.weight".to_owned()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, suffix) = rest.rsplit_once('.')?;
    let (_, part) = NAMES.iter().find(|(hf, _)| *hf == part)?;
    Some(format!("blk.{layer}.{part}.{suffix}"))
}

/// The order of a matrix's rows (or a bias's elements) whose heads are interleaved.
pub(crate) struct Interleaved {
    head_dim: usize,
}

impl Interleaved {
    /// The row of the file that is row `row` of the original.
    pub(crate) fn source(&self, row: usize) -> usize {
        let (head, within) = (row / self.head_dim, row % self.head_dim);
        let half = self.head_dim / 2;
        head * self.head_dim + 2 * (within % half) + within / half
    }
}

/// The order of the rows of tensor `name` (Hugging Face), unless they lie as they should.
pub(crate) fn interleaved_rows(
    header: &Header,
    name: &str,
    num_rows: usize,
) -> Result<Option<Interleaved>> {
    let fields = Fields::new(header)?;
    let heads = if fields.architecture != "llama" {
        return Ok(None);
    } else if name.contains("self_attn.q_proj.") {
        fields.count("attention.head_count")?
    } else if name.contains("self_attn.k_proj.") {
        fields
            .optional_count("attention.head_count_kv")?
            .unwrap_or(fields.count("attention.head_count")?)
    } else {
        return Ok(None);
    };
    match num_rows.checked_div(heads) {
        Some(head_dim) if head_dim * heads == num_rows && head_dim >= 2 && head_dim % 2 == 0 => {
            Ok(Some(Interleaved { head_dim }))
        }
        _ => Err(format!("tensor {name}: {num_rows} rows do not make {heads} heads")),
    }
}

/// Entries of the architecture.
struct Fields<'a> {
    header: &'a Header,
    architecture: &'a str,
}

impl<'a> Fields<'a> {
    fn new(header: &'a Header) -> Result<Self> {
        match header.metadata.get("general.architecture") {
            Some(Value::Text(architecture)) => Ok(Self { header, architecture }),
            _ => Err("general.architecture: is missing".to_owned()),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.header.metadata.get(&self.key(name))
    }

    fn optional_count(&self, name: &str) -> Result<Option<usize>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Integer(x)) if (0..1 << 31).contains(x) => Ok(Some(*x as usize)),
            Some(_) => Err(format!("{}: is no count that can be used", self.key(name))),
        }
    }

    fn count(&self, name: &str) -> Result<usize> {
        self.optional_count(name)?.ok_or_else(|| format!("{}: is missing", self.key(name)))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x)),
            Some(Value::Integer(x)) => Ok(Some(*x as f64)),
            Some(_) => Err(format!("{}: is no number", self.key(name))),
        }
    }
}

/// The architecture. `divisors` are those of [`ROPE_FACTORS`], where the file has that tensor.
pub(crate) fn config(header: &Header, divisors: Option<&[f32]>) -> Result<ModelConfig> {
    let fields = Fields::new(header)?;
    let model_type = match fields.architecture {
        "llama" => ModelType::Llama,
        "qwen2" => ModelType::Qwen2,
        "qwen3" => ModelType::Qwen3,
        other => {
            return Err(format!(
                "architecture {other:?} is not supported (qwen3, qwen2 and llama are)"
            ));
        }
    };
    if fields.optional_count("expert_count")?.unwrap_or(0) > 0 {
        return Err("mixtures of experts are not supported".to_owned());
    }
    let (hidden_size, num_attention_heads) =
        (fields.count("embedding_length")?, fields.count("attention.head_count")?);
    let head_dim = match fields.optional_count("attention.key_length")? {
        Some(length) => length,
        None => hidden_size.checked_div(num_attention_heads).unwrap_or(0),
    };
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(length) = fields.optional_count(name)?.filter(|length| *length != head_dim) {
            return Err(format!("{name} is {length}, where heads have {head_dim}: not supported"));
        }
    }
    let Some(embedding) = header.tensors.get("token_embd.weight") else {
        return Err("tensor token_embd.weight is missing".to_owned());
    };
    let rms_norm_eps = fields.number("attention.layer_norm_rms_epsilon")?;
    let rope_theta = fields.number("rope.freq_base")?.unwrap_or(10_000.0) as f32;
    let mut config = ModelConfig {
        model_type,
        vocab_size: embedding.shape[0],
        hidden_size,
        intermediate_size: fields.count("feed_forward_length")?,
        num_hidden_layers: fields.count("block_count")?,
        num_attention_heads,
        num_key_value_heads: fields
            .optional_count("attention.head_count_kv")?
            .unwrap_or(num_attention_heads),
        head_dim,
        max_position_embeddings: fields.count("context_length")?,
        rope_theta,
        rms_norm_eps: rms_norm_eps.ok_or("attention.layer_norm_rms_epsilon: is missing")? as f32,
        tie_word_embeddings: !header.tensors.contains_key("output.weight"),
        attention_bias: model_type != ModelType::Qwen2
            && header.tensors.contains_key("blk.0.attn_output.bias"),
        rope_scaling: rope_scaling(&fields)?,
    };
    config.validate()?;
    if let Some(divisors) = divisors {
        let tensor = |reason: &str| format!("tensor {ROPE_FACTORS} {reason}");
        if config.rope_scaling.is_some() {
            return Err(tensor("lies beside another scaling of the rotary frequencies"));
        }
        config.rope_scaling =
            RopeScaling::from_divisors(&config, divisors).map_err(|reason| tensor(&reason))?;
    }
    Ok(config)
}

fn rope_scaling(fields: &Fields) -> Result<Option<RopeScaling>> {
    let Some(kind) = fields.get("rope.scaling.type") else { return Ok(None) };
    let factor = fields.number("rope.scaling.factor")?;
    let factor =
        || factor.ok_or_else(|| format!("{}: is missing", fields.key("rope.scaling.factor")));
    let number =
        |name: &str, default: f64| Ok::<_, String>(fields.number(name)?.unwrap_or(default));
    match kind {
        Value::Text(kind) if kind == "none" => Ok(None),
        Value::Text(kind) if kind == "linear" => {
            Ok(Some(RopeScaling::Linear { factor: factor()? }))
        }
        Value::Text(kind) if kind == "yarn" => Ok(Some(RopeScaling::Yarn {
            factor: factor()?,
            original_max_position_embeddings: fields
                .optional_count("rope.scaling.original_context_length")?,
            attention_factor: fields.number("rope.scaling.attn_factor")?,
            beta_fast: number("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: number("rope.scaling.yarn_beta_slow", 1.0)?,
            truncate: true,
        })),
        other => Err(format!("rope.scaling.type: {other:?} is not supported (linear, yarn)")),
    }
}

/// Kinds of tokens, by their numbers in the file.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The tokenizer.
pub(crate) fn vocabulary(header: &Header) -> Result<GgufVocabulary> {
    let get = |name: &str| header.metadata.get(&format!("tokenizer.{name}"));
    let text = |name: &str| match get(name) {
        None => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("tokenizer.{name}: is no text")),
    };
    let texts = |name: &str| match get(name) {
        Some(Value::Texts(texts)) => Ok(texts.clone()),
        _ => Err(format!("tokenizer.{name}: is missing")),
    };
    let tokens = texts("ggml.tokens")?;
    let id = |name: &str| match get(name) {
        None => Ok(None),
        Some(Value::Integer(x)) if (0..tokens.len() as i128).contains(x) => Ok(Some(*x as u32)),
        Some(_) => Err(format!("tokenizer.{name}: is none of the {} ids", tokens.len())),
    };
    let kinds = match get("ggml.token_type") {
        None => Vec::new(),
        Some(Value::Integers(kinds)) if kinds.len() == tokens.len() => kinds.clone(),
        Some(_) => return Err("tokenizer.ggml.token_type: is not one number a token".to_owned()),
    };
    let of_kind = |kind: i64| {
        (0..).zip(&kinds).filter(|(_, found)| **found == kind).map(|(id, _)| id).collect()
    };
    Ok(GgufVocabulary {
        model: text("ggml.model")?.ok_or("tokenizer.ggml.model: is missing")?,
        pre: text("ggml.pre")?.unwrap_or_else(|| "default".to_owned()),
        control: of_kind(CONTROL),
        user_defined: of_kind(USER_DEFINED),
        merges: texts("ggml.merges").unwrap_or_default(),
        bos: id("ggml.bos_token_id")?,
        eos: id("ggml.eos_token_id")?,
        unk: id("ggml.unknown_token_id")?,
        pad: id("ggml.padding_token_id")?,
        add_bos: get("ggml.add_bos_token") == Some(&Value::Bool(true)),
        chat_template: text("chat_template")?,
        tokens,
    })
}
