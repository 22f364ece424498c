//! Weights in the forms that the products read.

use std::sync::Arc;

use crate::config::ModelConfig;
use crate::kernels::gemm::PackedMatrix;
use crate::params::ParamLayout;
use crate::rope::Rope;

/// The parts of a model that no update changes.
#[derive(Debug)]
pub(crate) struct Model {
    pub config: ModelConfig,
    pub layout: ParamLayout,
    pub rope: Rope,
}

impl Model {
    pub(crate) fn new(config: ModelConfig) -> Self {
        let layout = ParamLayout::new(&config);
        let rope = Rope::new(&config);
        Self { config, layout, rope }
    }
}

/// Parameters, and the projections packed for the forward pass.
#[derive(Debug, Clone)]
pub(crate) struct Weights {
    pub model: Arc<Model>,
    /// Flat, in the places of [`ParamLayout`].
    pub params: Vec<f32>,
    pub layers: Vec<PackedLayer>,
    pub head: PackedMatrix,
}

/// A layer's projections, packed.
#[derive(Debug, Clone, Default)]
pub(crate) struct PackedLayer {
    pub qkv: PackedMatrix,
    pub output: PackedMatrix,
    pub gate_up: PackedMatrix,
    pub down: PackedMatrix,
}

impl Weights {
    pub(crate) fn new(model: Arc<Model>, params: Vec<f32>) -> Self {
        assert_eq!(params.len(), model.layout.total, "parameters of this model");
        let layers = vec![PackedLayer::default(); model.config.num_hidden_layers];
        let mut weights = Self { model, params, layers, head: PackedMatrix::default() };
        weights.pack();
        weights
    }

    /// Packs `params` again after they have changed.
    pub(crate) fn pack(&mut self) {
        let Self { model, params, layers, head } = self;
        let config = &model.config;
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        for (packed, ranges) in layers.iter_mut().zip(&model.layout.layers) {
            packed.qkv.pack_transposed(&params[ranges.qkv.clone()], config.qkv_width(), hidden);
            packed.output.pack_transposed(
                &params[ranges.output.clone()],
                hidden,
                config.query_width(),
            );
            packed.gate_up.pack_transposed(&params[ranges.gate_up.clone()], 2 * ffn, hidden);
            packed.down.pack_transposed(&params[ranges.down.clone()], hidden, ffn);
        }
        head.pack_transposed(&params[model.layout.head.clone()], config.vocab_size, hidden);
    }
}

/// The projections packed for carrying gradients back to their inputs.
#[derive(Debug, Default)]
pub(crate) struct BackwardWeights {
    pub layers: Vec<PackedLayer>,
    pub head: PackedMatrix,
}

impl BackwardWeights {
    /// Packs the parameters of `weights`.
    pub(crate) fn pack(&mut self, weights: &Weights) {
        let Model { config, layout, .. } = &*weights.model;
        let params = &weights.params;
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        self.layers.resize_with(config.num_hidden_layers, PackedLayer::default);
        for (packed, ranges) in self.layers.iter_mut().zip(&layout.layers) {
            packed.qkv.pack(&params[ranges.qkv.clone()], config.qkv_width(), hidden);
            packed.output.pack(&params[ranges.output.clone()], hidden, config.query_width());
            packed.gate_up.pack(&params[ranges.gate_up.clone()], 2 * ffn, hidden);
            packed.down.pack(&params[ranges.down.clone()], hidden, ffn);
        }
        self.head.pack(&params[layout.head.clone()], config.vocab_size, hidden);
    }
}
