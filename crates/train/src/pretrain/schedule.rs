//! The order in which documents are seen: short ones first, then a shuffled mix.

use patchwright_core::TrainingSample;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Share of the documents that the short-first warm-up takes.
const SHORT_FIRST_SHARE: f64 = 0.1;

/// Shuffles `samples`, moves the shortest to the front (in random order among themselves), and
/// cuts the sequence into batches of about `batch_tokens` tokens.
pub fn batches(
    mut samples: Vec<TrainingSample>,
    batch_tokens: usize,
    rng: &mut ChaCha8Rng,
) -> Vec<Vec<TrainingSample>> {
    samples.shuffle(rng);
    let num_short = (samples.len() as f64 * SHORT_FIRST_SHARE) as usize;
    let mut by_length: Vec<usize> = (0..samples.len()).collect();
    by_length.sort_by_key(|i| samples[*i].tokens.len());
    let mut is_short = vec![false; samples.len()];
    by_length[..num_short].iter().for_each(|i| is_short[*i] = true);
    let (mut ordered, rest): (Vec<_>, Vec<_>) =
        samples.into_iter().zip(is_short).partition(|(_, short)| *short);
    ordered.extend(rest);

    let mut out: Vec<Vec<TrainingSample>> = Vec::new();
    let mut size = batch_tokens;
    for (sample, _) in ordered {
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
    fn every_document_is_seen_once_and_short_ones_first() {
        let sample = |n: usize| TrainingSample::supervised(vec![n as u32; n], vec![1.0; n]);
        let samples: Vec<_> = (1..=100).map(sample).collect();
        let batches = batches(samples, 200, &mut stream(0, &["test"]));
        let mut lengths: Vec<usize> = batches.iter().flatten().map(|s| s.tokens.len()).collect();
        assert!(lengths[..10].iter().all(|n| *n <= 10));
        assert!(batches.iter().all(|b| b.iter().map(|s| s.tokens.len()).sum::<usize>() <= 200));
        lengths.sort_unstable();
        assert_eq!(lengths, (1..=100).collect::<Vec<_>>());
    }
}
