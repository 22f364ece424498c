//! Whether an engine silently cuts or bends the distribution that it says it draws from.
//!
//! An engine may report the log-probabilities of the full distribution and yet draw with top-k,
//! top-p, min-p or another temperature: no comparison with the trainer shows it, and training on it
//! first rises and then collapses. The most likely tokens that come with each drawn one do show it.
//!
//! The test bets against the claim "drawn from what is reported". For each way of cutting (`h`), a
//! drawn token multiplies the wealth of `h` by the likelihood ratio `q_h(token) / p(token)`, where
//! `q_h` is the reported distribution, cut in this way, with 1 % of the uncut one mixed in (so that
//! rounding at the cut's edge ruins nothing). If the claim is true, each wealth, and their mean, is
//! a martingale that begins with 1, so by Ville's inequality the mean *ever* reaches `1 / a` with a
//! probability of at most `a`, however often one looks (Ramdas et al., arXiv 2210.01948). Where the
//! lists are too short to tell a cut's mass, the bet is left out; it depends on the lists alone and
//! not on the token, which keeps the martingale. A cut between two of those below is found by the
//! weaker one.

/// A way of bending the distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cut {
    /// Only the `k` most likely tokens.
    TopK(usize),
    /// Only the fewest most likely tokens of so much mass together.
    TopP(f64),
    /// Only tokens of at least this part of the most likely one's probability.
    MinP(f64),
    /// Logits divided by this.
    Temperature(f64),
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TopK(k) => write!(f, "top_k of {k} or fewer"),
            Self::TopP(p) => write!(f, "top_p of {p} or less"),
            Self::MinP(p) => write!(f, "min_p of {p} or more"),
            Self::Temperature(t) => write!(f, "a temperature near {t}"),
        }
    }
}

const CUTS: [Cut; 28] = [
    Cut::TopK(1),
    Cut::TopK(5),
    Cut::TopK(10),
    Cut::TopK(20),
    Cut::TopK(40),
    Cut::TopK(50),
    Cut::TopK(100),
    Cut::TopK(200),
    Cut::TopP(0.5),
    Cut::TopP(0.7),
    Cut::TopP(0.8),
    Cut::TopP(0.9),
    Cut::TopP(0.95),
    Cut::TopP(0.98),
    Cut::TopP(0.99),
    Cut::MinP(0.2),
    Cut::MinP(0.1),
    Cut::MinP(0.05),
    Cut::MinP(0.02),
    Cut::MinP(0.01),
    Cut::Temperature(0.5),
    Cut::Temperature(0.6),
    Cut::Temperature(0.7),
    Cut::Temperature(0.8),
    Cut::Temperature(0.9),
    Cut::Temperature(1.1),
    Cut::Temperature(1.25),
    Cut::Temperature(1.5),
];

/// The uncut distribution's part in a bet.
const MIXED_IN: f64 = 0.01;
/// Log-probabilities come rounded: masses are taken to be larger by this, which only weakens bets.
const ROUNDING: f64 = 1e-5;

/// The test, fed token by token.
#[derive(Debug, Clone)]
pub struct TruncationTest {
    /// Natural logarithm of each bet's wealth, in the order of `CUTS`.
    log_wealth: Vec<f64>,
    num_tokens: u64,
    log_bound: f64,
}

/// What the test found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finding {
    /// The cut that explains the tokens best.
    pub cut: Cut,
    /// Tokens looked at.
    pub num_tokens: u64,
    /// If the engine did not cut, this or more would be seen with at most this probability, looking
    /// after every token.
    pub p_value: f64,
}

impl TruncationTest {
    /// A test that says "cut" of an honest engine with at most this probability, over all of its
    /// tokens together.
    pub fn new(false_alarm_rate: f64) -> Self {
        let log_bound = -false_alarm_rate.clamp(f64::MIN_POSITIVE, 1.0).ln();
        Self { log_wealth: vec![0.0; CUTS.len()], num_tokens: 0, log_bound }
    }

    /// Adds a token drawn at temperature 1. `top` are the most likely tokens with their reported
    /// log-probabilities, most likely first; a list that is not sorted or not a distribution's is
    /// left out.
    pub fn observe(&mut self, top: &[(u32, f32)], drawn: u32) {
        let probs: Vec<f64> = top.iter().map(|(_, logprob)| f64::from(*logprob).exp()).collect();
        let total: f64 = probs.iter().sum();
        let is_sorted = probs.is_sorted_by(|a, b| a >= b);
        if probs.is_empty() || !is_sorted || !total.is_finite() || total > 1.01 {
            return;
        }
        self.num_tokens += 1;
        let rank = top.iter().position(|(token, _)| *token == drawn);
        for (cut, log_wealth) in CUTS.iter().zip(&mut self.log_wealth) {
            if let Some(ratio) = cut.ratio(&probs, total, rank) {
                *log_wealth += ((1.0 - MIXED_IN) * ratio + MIXED_IN).ln();
            }
        }
    }

    /// Tokens looked at so far.
    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// What cut there is, if any is proven.
    pub fn finding(&self) -> Option<Finding> {
        let (best, largest) = self
            .log_wealth
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.total_cmp(b.1))
            .map(|(index, wealth)| (CUTS[index], *wealth))?;
        let relative: f64 = self.log_wealth.iter().map(|wealth| (wealth - largest).exp()).sum();
        let log_mean = largest + (relative / CUTS.len() as f64).ln();
        (log_mean >= self.log_bound).then(|| Finding {
            cut: best,
            num_tokens: self.num_tokens,
            p_value: (-log_mean).exp(),
        })
    }
}

impl Cut {
    /// `q(token) / p(token)`; `None` where the list is too short to tell. `rank` is the drawn
    /// token's place in the list.
    fn ratio(self, probs: &[f64], total: f64, rank: Option<usize>) -> Option<f64> {
        let kept = match self {
            // One that the list lacks is at most as likely as its last, and counted as cut: both
            // only weaken the bet.
            Self::TopK(k) => (k <= probs.len() + 1).then_some(k)?,
            Self::TopP(p) => {
                let mut sum = 0.0;
                let last = probs.iter().position(|prob| {
                    sum += prob;
                    sum >= p
                });
                last? + 1
            }
            Self::MinP(part) => {
                let kept = probs.iter().take_while(|prob| **prob >= part * probs[0]).count();
                (kept < probs.len()).then_some(kept)?
            }
            Self::Temperature(t) => return Some(tempered(t, probs, total, rank)),
        };
        let listed = kept.min(probs.len());
        let unlisted = (kept - listed) as f64 * probs.last().copied().unwrap_or(0.0);
        let mass: f64 = probs[..listed].iter().sum::<f64>() + unlisted + ROUNDING;
        Some(if rank.is_some_and(|rank| rank < kept) { 1.0 / mass } else { 0.0 })
    }
}

/// As drawn at temperature `t`, all tokens beyond the list taken to be as likely as its last.
fn tempered(t: f64, probs: &[f64], total: f64, rank: Option<usize>) -> f64 {
    let power = 1.0 / t - 1.0;
    let weight = |prob: f64| prob.max(1e-30).powf(power);
    let last = probs.last().copied().unwrap_or(1.0);
    let rest = (1.0 - total).max(0.0) + ROUNDING;
    let norm: f64 =
        probs.iter().map(|prob| prob * weight(*prob)).sum::<f64>() + rest * weight(last);
    rank.map_or(weight(last), |rank| weight(probs[rank])) / norm
}

#[cfg(test)]
mod tests {
    use patchwright_core::stream;
    use rand::Rng;

    use super::{Cut, TruncationTest};

    /// A Zipf-like distribution whose flatness changes from place to place.
    fn distribution(rng: &mut impl Rng) -> Vec<f64> {
        let power = rng.random_range(0.5..3.0);
        let weights: Vec<f64> = (1..500).map(|i| f64::from(i).powf(-power)).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    }

    fn run(cut: Option<Cut>, num: usize, seed: u64) -> TruncationTest {
        run_listed(20, cut, num, seed)
    }

    /// Draws with a cut; reports the uncut log-probabilities of the most likely.
    fn run_listed(num_listed: u32, cut: Option<Cut>, num: usize, seed: u64) -> TruncationTest {
        let mut test = TruncationTest::new(1e-6);
        let mut rng = stream(seed, &["truncation"]);
        for _ in 0..num {
            let full = distribution(&mut rng);
            let mut weights = full.clone();
            match cut {
                Some(Cut::TopK(k)) => weights.truncate(k),
                Some(Cut::TopP(p)) => {
                    let mut sum = 0.0;
                    let keep = weights
                        .iter()
                        .take_while(|w| {
                            let go = sum < p;
                            sum += **w;
                            go
                        })
                        .count();
                    weights.truncate(keep);
                }
                Some(Cut::MinP(part)) => weights.retain(|weight| *weight >= part * full[0]),
                Some(Cut::Temperature(t)) => weights.iter_mut().for_each(|w| *w = w.powf(1.0 / t)),
                None => {}
            }
            let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
            let drawn = weights
                .iter()
                .position(|w| {
                    left -= w;
                    left < 0.0
                })
                .unwrap_or(0);
            let top: Vec<(u32, f32)> =
                (0..num_listed).map(|i| (i, full[i as usize].ln() as f32)).collect();
            test.observe(&top, drawn as u32);
        }
        test
    }

    #[test]
    fn every_cut_is_found_and_named() {
        let cuts = [
            Cut::TopK(1),
            Cut::TopK(10),
            Cut::TopK(20),
            Cut::TopP(0.8),
            Cut::TopP(0.95),
            Cut::MinP(0.05),
            Cut::MinP(0.1),
            Cut::Temperature(0.7),
            Cut::Temperature(1.5),
            // Between the ones that are bet on, and beyond the lists.
            Cut::TopK(30),
            Cut::TopP(0.93),
            Cut::MinP(0.07),
            Cut::Temperature(0.65),
        ];
        for cut in cuts {
            let finding = run(Some(cut), 1500, 5).finding();
            assert!(finding.is_some_and(|f| f.p_value < 1e-6), "{cut:?}: {finding:?}");
        }
        let named = |cut| run(Some(cut), 1500, 7).finding().unwrap().cut;
        assert_eq!(named(Cut::TopK(10)), Cut::TopK(10));
        assert_eq!(named(Cut::TopP(0.9)), Cut::TopP(0.9));
        assert_eq!(named(Cut::Temperature(0.7)), Cut::Temperature(0.7));
        // A list may be short by one (vLLM's is), and the cut is found all the same.
        let short = run_listed(19, Some(Cut::TopK(20)), 1500, 7).finding();
        assert_eq!(short.map(|finding| finding.cut), Some(Cut::TopK(20)));
        // Those of a generation config that is often shipped, together.
        assert!(run(Some(Cut::TopP(0.8)), 300, 9).finding().is_some(), "few tokens suffice");
    }

    /// With a rate of 1 in 100, of 400 honest engines at most a few may be accused; with 1e-6, none.
    #[test]
    fn honest_engines_are_not_accused() {
        let mut worst = f64::NEG_INFINITY;
        let mut num_above = 0;
        for seed in 0..200 {
            let test = run_listed(20 - seed as u32 % 2, None, 300, seed);
            assert_eq!(test.finding(), None, "seed {seed}");
            let mean = test.log_wealth.iter().map(|w| w.exp()).sum::<f64>() / 28.0;
            worst = worst.max(mean);
            num_above += usize::from(mean >= 20.0);
        }
        assert!(num_above <= 20, "Markov: at most 1 in 20 reaches 20; {num_above} of 200, {worst}");
    }

    #[test]
    fn what_is_no_distribution_is_left_out() {
        let mut test = TruncationTest::new(0.01);
        for top in [vec![], vec![(1, -1.0), (2, -0.5)], vec![(1, 1.0)], vec![(1, f32::NAN)]] {
            test.observe(&top, 1);
        }
        assert_eq!((test.num_tokens(), test.finding()), (0, None));
    }
}
