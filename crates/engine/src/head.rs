//! Log-probabilities of a micro-batch in chunks of rows: tokens x vocabulary never exists at once.

use patchwright_core::TrainingSample;

use crate::attention::fit;
use crate::kernels::gemm::{Into, Precision, matmul};
use crate::kernels::math;
use crate::kernels::outer::{OUTER_ROWS, Side, Strips, add_outer};
use crate::microbatch::{Learning, MicroBatchResult, Workspace};
use crate::team::Team;
use crate::weights::Weights;

/// Most rows whose logits one thread has at once.
const LOGIT_ROWS: usize = 96;

/// Bytes of logits whose gradients wait for each other to be multiplied out.
const LOGIT_BYTES: usize = 16 << 20;

/// A prediction: the row that makes it, and the sample's token that it is of.
#[derive(Debug, Clone, Copy)]
struct Target {
    row: usize,
    sample: usize,
    t: usize,
}

/// What a prediction gave.
#[derive(Debug, Clone, Copy, Default)]
struct Prediction {
    logprob: f32,
    loss: f32,
    clipped: bool,
}

/// Buffers of the head.
#[derive(Debug, Default)]
pub(crate) struct HeadBuffers {
    /// Gradient of the logits and the rows they came from, a chunk each.
    operands: Vec<(Strips, Strips)>,
}

/// A chunk of targets, its place in the results and, where it is learned from, what goes back; for
/// the head's gradient only where that is wanted.
struct Part<'a> {
    targets: &'a [Target],
    predictions: &'a mut [Prediction],
    /// Gradient of the normed rows from the first target's to before the next part's.
    d_normed: &'a mut [f32],
    operands: Option<&'a mut (Strips, Strips)>,
}

impl Workspace {
    /// Log-probabilities; with `learning`, leaves the gradient of the final normed rows in
    /// `d_normed` and adds that of the head.
    pub(crate) fn predict(
        &mut self,
        team: &Team,
        weights: &Weights,
        samples: &[&TrainingSample],
        learning: Option<&mut Learning>,
    ) -> MicroBatchResult {
        let (learned, plain) = targets(samples, learning.is_some());
        let mut result = MicroBatchResult {
            logprobs: samples.iter().map(|s| vec![0.0; s.tokens.len()]).collect(),
            ..MicroBatchResult::default()
        };
        let mut predictions = vec![Prediction::default(); plain.len()];
        let chunk = LOGIT_ROWS.min(plain.len().div_ceil(team.size()).max(1));
        let parts =
            plain.chunks(chunk).zip(predictions.chunks_mut(chunk)).map(|(targets, predictions)| {
                Part { targets, predictions, d_normed: &mut [], operands: None }
            });
        let normed = &self.normed;
        team.each(&mut self.threads, parts.collect(), |scratch, part| {
            predict_chunk(weights, samples, normed, None, part, (&mut scratch.a, &mut scratch.b));
        });
        for (target, prediction) in plain.iter().zip(&predictions) {
            result.logprobs[target.sample][target.t] = prediction.logprob;
        }
        if let Some(learning) = learning {
            let predictions = self.learn_head(team, weights, samples, &learned, learning);
            result.num_loss_tokens = learned.len();
            for (target, prediction) in learned.iter().zip(&predictions) {
                result.logprobs[target.sample][target.t] = prediction.logprob;
                result.loss += f64::from(prediction.loss);
                result.num_clipped += usize::from(prediction.clipped);
            }
        }
        result
    }

    /// The predictions that are learned from.
    fn learn_head(
        &mut self,
        team: &Team,
        weights: &Weights,
        samples: &[&TrainingSample],
        learned: &[Target],
        learning: &mut Learning,
    ) -> Vec<Prediction> {
        let model = &*weights.model;
        let (hidden, vocab) = (model.config.hidden_size, model.config.vocab_size);
        let Self { normed, d_normed, threads, head, .. } = self;
        d_normed.resize(normed.len(), 0.0);
        let mut predictions = vec![Prediction::default(); learned.len()];
        let num_chunks = learned.len().div_ceil(LOGIT_ROWS).next_multiple_of(team.size());
        // Even, so that the same rows make pairs whatever the number of threads.
        let chunk = learned.len().div_ceil(num_chunks.max(1)).next_multiple_of(2).max(2);
        let together =
            (LOGIT_BYTES / (4 * chunk * vocab)).next_multiple_of(team.size()).max(team.size());
        head.operands.resize_with(together.min(num_chunks), Default::default);
        let mut rest = &mut d_normed[..];
        let mut done_rows = 0;
        let head_gradient = &mut learning.gradient[model.layout.head.clone()];
        let (objective, backward) = (learning.objective, learning.backward);
        for (round, predictions) in
            learned.chunks(together * chunk).zip(predictions.chunks_mut(together * chunk))
        {
            let mut parts = Vec::new();
            for ((targets, predictions), operands) in
                round.chunks(chunk).zip(predictions.chunks_mut(chunk)).zip(&mut head.operands)
            {
                let operands = learning.wanted.others.then_some(operands);
                let (Some(first), Some(last)) = (targets.first(), targets.last()) else { continue };
                let (before, after) = rest.split_at_mut((first.row - done_rows) * hidden);
                before.fill(0.0);
                let (own, after) = after.split_at_mut((last.row + 1 - first.row) * hidden);
                (rest, done_rows) = (after, last.row + 1);
                parts.push(Part { targets, predictions, d_normed: own, operands });
            }
            let count = parts.len();
            team.each(threads, parts, |scratch, part| {
                let learning = Some((objective, &backward.head));
                let buffers = (&mut scratch.a, &mut scratch.b);
                predict_chunk(weights, samples, normed, learning, part, buffers);
            });
            if !learning.wanted.others {
                continue;
            }
            let operands: Vec<_> = head.operands[..count].iter().map(|(a, b)| (a, b)).collect();
            let parts = head_gradient.chunks_mut(OUTER_ROWS * hidden).enumerate().collect();
            team.each(threads, parts, |_, (i, c)| add_outer(&operands, i * OUTER_ROWS, c));
        }
        rest.fill(0.0);
        predictions
    }
}

/// One chunk of predictions. With the objective and the packed head, their gradients too.
fn predict_chunk(
    weights: &Weights,
    samples: &[&TrainingSample],
    normed: &[f32],
    learning: Option<(&dyn patchwright_core::Objective, &crate::kernels::gemm::PackedMatrix)>,
    part: Part,
    (gathered, logits): (&mut Vec<f32>, &mut Vec<f32>),
) {
    let (hidden, vocab) = (weights.model.config.hidden_size, weights.model.config.vocab_size);
    let Part { targets, predictions, d_normed, operands } = part;
    let rows = fit(gathered, targets.len() * hidden);
    for (row, target) in rows.chunks_exact_mut(hidden).zip(targets) {
        row.copy_from_slice(&normed[target.row * hidden..][..hidden]);
    }
    let logits = crate::forward::logits(weights, rows, logits, matmul);
    for ((target, prediction), row) in
        targets.iter().zip(predictions).zip(logits.chunks_exact_mut(vocab))
    {
        let sample = samples[target.sample];
        let token = sample.tokens[target.t] as usize;
        let logit = row[token];
        let (max, sum) = math::exp_row(row);
        prediction.logprob = math::logprob(logit, max, sum);
        if let Some((objective, _)) = learning {
            let token_loss = objective.token_loss(sample, target.t, prediction.logprob);
            (prediction.loss, prediction.clipped) = (token_loss.loss, token_loss.clipped);
            // d logprob / d logits = onehot - softmax.
            let scale = -token_loss.d_logprob / sum;
            for x in row.iter_mut() {
                *x *= scale;
            }
            row[token] += token_loss.d_logprob;
        }
    }
    let Some((_, backward)) = learning else { return };
    if let Some((d_logits, inputs)) = operands {
        let precision: Precision = weights.precision;
        d_logits.reshape(Side::Left, targets.len(), vocab, precision);
        d_logits.write(0, logits);
        inputs.reshape(Side::Right, targets.len(), hidden, precision);
        inputs.write(0, rows);
    }
    matmul(logits, backward, rows, Into::Set);
    let first = targets.first().map_or(0, |target| target.row);
    d_normed.fill(0.0);
    for (target, d_row) in targets.iter().zip(rows.chunks_exact(hidden)) {
        d_normed[(target.row - first) * hidden..][..hidden].copy_from_slice(d_row);
    }
}

/// The batch's predictions: those that are learned from, and the rest.
fn targets(samples: &[&TrainingSample], learning: bool) -> (Vec<Target>, Vec<Target>) {
    let (mut learned, mut plain) = (Vec::new(), Vec::new());
    let mut first_row = 0;
    for (index, sample) in samples.iter().enumerate() {
        for t in 1..sample.tokens.len() {
            let target = Target { row: first_row + t - 1, sample: index, t };
            let wanted = learning && sample.loss_mask[t] != 0.0;
            if wanted { &mut learned } else { &mut plain }.push(target);
        }
        first_row += sample.tokens.len();
    }
    (learned, plain)
}
