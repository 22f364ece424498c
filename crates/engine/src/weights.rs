//! Weights in the forms that the products read.

use std::sync::Arc;

use crate::config::ModelConfig;
use crate::kernels::gemm::{PackedMatrix, Precision};
use crate::params::ParamLayout;
use crate::rope::Rope;
use crate::team::Team;

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
    /// What products round their operands to.
    pub precision: Precision,
    /// Flat, in the places of [`ParamLayout`], in single precision always.
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

impl PackedLayer {
    fn new(precision: Precision) -> Self {
        let empty = || PackedMatrix::new(precision);
        Self { qkv: empty(), output: empty(), gate_up: empty(), down: empty() }
    }

    fn matrices(&mut self) -> [&mut PackedMatrix; 4] {
        [&mut self.qkv, &mut self.output, &mut self.gate_up, &mut self.down]
    }
}

impl Weights {
    /// For products in `precision`.
    pub(crate) fn with_precision(
        model: Arc<Model>,
        params: Vec<f32>,
        precision: Precision,
    ) -> Self {
        assert_eq!(params.len(), model.layout.total, "parameters of this model");
        let layers = vec![PackedLayer::new(precision); model.config.num_hidden_layers];
        let head = PackedMatrix::new(precision);
        let mut weights = Self { model, precision, params, layers, head };
        weights.pack(&Team::solo());
        weights
    }

    /// Packs `params` again after they have changed.
    pub(crate) fn pack(&mut self, team: &Team) {
        let Self { model, params, layers, head, .. } = self;
        let matrices = layers.iter_mut().map(PackedLayer::matrices);
        pack_all(model, params, head, matrices, team, |matrix, values, n, k| {
            matrix.pack_transposed(values, n, k);
        });
    }
}

/// Calls `pack` with each matrix, its values, and their numbers of rows and columns.
fn pack_all<'a>(
    model: &Model,
    params: &[f32],
    head: &'a mut PackedMatrix,
    layers: impl Iterator<Item = [&'a mut PackedMatrix; 4]>,
    team: &Team,
    pack: impl Fn(&mut PackedMatrix, &[f32], usize, usize) + Sync,
) {
    let Model { config, layout, .. } = model;
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    // The largest first, so that threads end together.
    let mut parts = vec![(head, layout.head.clone(), config.vocab_size, hidden)];
    for ([qkv, output, gate_up, down], ranges) in layers.zip(&layout.layers) {
        parts.push((gate_up, ranges.gate_up.clone(), 2 * ffn, hidden));
        parts.push((down, ranges.down.clone(), hidden, ffn));
        parts.push((qkv, ranges.qkv.clone(), config.qkv_width(), hidden));
        parts.push((output, ranges.output.clone(), hidden, config.query_width()));
    }
    let mut states = vec![(); team.size()];
    team.each(&mut states, parts, |(), (matrix, range, n, k)| pack(matrix, &params[range], n, k));
}

/// The projections packed for carrying gradients back to their inputs.
#[derive(Debug, Default)]
pub(crate) struct BackwardWeights {
    pub layers: Vec<PackedLayer>,
    pub head: PackedMatrix,
}

impl BackwardWeights {
    /// Packs the parameters of `weights`.
    pub(crate) fn pack(&mut self, weights: &Weights, team: &Team) {
        let (model, precision) = (&*weights.model, weights.precision);
        if self.layers.len() != model.config.num_hidden_layers {
            self.layers = vec![PackedLayer::new(precision); model.config.num_hidden_layers];
            self.head = PackedMatrix::new(precision);
        }
        let matrices = self.layers.iter_mut().map(PackedLayer::matrices);
        pack_all(model, &weights.params, &mut self.head, matrices, team, |matrix, values, n, k| {
            matrix.pack(values, n, k);
        });
    }
}
