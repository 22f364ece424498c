//! `patchwright bench engine` ([`engine()`]), `bench control` ([`control()`]), `bench serve`
//! ([`serve()`]), and `patchwright bench sandbox`: sandboxes beside bubblewrap and Docker, in one run.
//!
//! Contenders take turns, one life each, so that other load on the machine falls on all of them.
//! What each does is told in `native` and `peers`; a peer that has no such thing (bubblewrap has
//! no second command in a living sandbox, no fork) has no such figure.

mod control;
mod engine;
mod leftovers;
mod native;
mod peers;
mod serve;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use patchwright_engine::EngineOptions;
use serde::Serialize;

use crate::args::{BenchSandboxArgs, Peer};
use crate::error::CliError;
use crate::{output, table};
pub use control::run as control;
pub use engine::engine;
use leftovers::Leftovers;
use native::Native;
use peers::{Bubblewrap, Docker};
pub use serve::run as serve;

/// Sandboxes at once in the measurement of many.
const NUM_AT_ONCE: usize = 32;
/// Commands of an episode: what an agent does in a repository, shortened.
const EPISODE: [&str; 5] =
    ["ls", "cat pkg/m0.py", "grep -rn return pkg", "sed -i s/x/y/ pkg/m1.py", "cat pkg/m1.py"];

/// The rows that were asked for, or all.
fn chosen<'a>(rows: &'a [String], all: &[&'a str]) -> Vec<&'a str> {
    if rows.is_empty() { all.to_vec() } else { rows.iter().map(String::as_str).collect() }
}

/// Of an engine with so many threads; the machine's where none are named.
fn engine_options(threads: Option<usize>) -> EngineOptions {
    let default = EngineOptions::default();
    EngineOptions { num_threads: threads.unwrap_or(default.num_threads), ..default }
}

/// p50 and p99 in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Quantiles {
    p50: f64,
    p99: f64,
}

#[derive(Debug, Serialize)]
struct Fork {
    p50: f64,
    /// Files that the sandbox had written.
    num_files: usize,
}

/// The figures of one contender; absent is what it cannot do.
#[derive(Debug, Default, Serialize)]
struct Figures {
    #[serde(skip_serializing_if = "Option::is_none")]
    create_exec_destroy_ms: Option<Quantiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exec_ms: Option<Quantiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrent_32_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fork_ms: Option<Fork>,
    #[serde(skip_serializing_if = "Option::is_none")]
    episode_ms: Option<Quantiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leftovers: Option<Leftovers>,
}

/// `--json`.
#[derive(Debug, Serialize)]
struct Bench {
    native: Figures,
    #[serde(skip_serializing_if = "Option::is_none")]
    bubblewrap: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    docker: Option<Figures>,
}

/// Something that runs commands in sandboxes.
trait Contender: Sync {
    /// Makes a sandbox, runs `true` in it, and destroys it.
    fn life(&self) -> Result<(), CliError>;
    /// Makes a sandbox of a small repository, runs five commands, takes the changes, destroys it.
    fn episode(&self) -> Result<(), CliError>;
}

/// Runs the bench. The exit code is 1 when sandboxes left something behind.
pub fn sandbox(args: &BenchSandboxArgs) -> Result<ExitCode, CliError> {
    if !(args.seconds > 0.0 && args.seconds <= 3600.0) {
        return Err(CliError::usage("--seconds: must be above 0, and at most 3600"));
    }
    let native = Native::start()?;
    let bubblewrap = find(args, Peer::Bubblewrap, Bubblewrap::find)?;
    let docker = find(args, Peer::Docker, || Docker::find(&args.docker_image))?;
    let contenders: Vec<&dyn Contender> = std::iter::once(&native as &dyn Contender)
        .chain(bubblewrap.as_ref().map(|peer| peer as &dyn Contender))
        .chain(docker.as_ref().map(|peer| peer as &dyn Contender))
        .collect();
    let mut figures = measure(&contenders, Duration::from_secs_f64(args.seconds))?.into_iter();
    let mut own = figures.next().unwrap_or_default();
    output::note("commands in a living sandbox, forks");
    own.exec_ms = Some(native.exec(args.seconds)?);
    own.fork_ms = Some(native.fork()?);
    output::note(format!("{} sandboxes made and destroyed", args.lives));
    own.leftovers = Some(native.leftovers(args.lives)?);
    let mut bench = Bench { native: own, bubblewrap: None, docker: None };
    bench.bubblewrap = bubblewrap.is_some().then(|| figures.next()).flatten();
    if let Some(docker) = docker {
        let mut figures = figures.next().unwrap_or_default();
        figures.exec_ms = Some(docker.exec(args.seconds)?);
        bench.docker = Some(figures);
    }
    let clean = bench.native.leftovers.as_ref().is_some_and(Leftovers::is_clean);
    if args.json {
        output::json(&bench)?;
    } else {
        tell(&bench)?;
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A peer that was asked for must be there; else those that are there are measured.
fn find<P>(
    args: &BenchSandboxArgs,
    peer: Peer,
    there: impl FnOnce() -> Result<P, String>,
) -> Result<Option<P>, CliError> {
    if !args.peers.is_empty() && !args.peers.contains(&peer) {
        return Ok(None);
    }
    match there() {
        Ok(found) => Ok(Some(found)),
        Err(why) if args.peers.is_empty() => {
            output::note(format!("not measured: {why}"));
            Ok(None)
        }
        Err(why) => Err(CliError::failed(why)),
    }
}

/// Lives, episodes and many at once of all contenders, which take turns.
fn measure(contenders: &[&dyn Contender], time: Duration) -> Result<Vec<Figures>, CliError> {
    output::note("create, first command, destroy");
    let lives = in_turn(contenders, time, |contender| contender.life())?;
    output::note("episodes of five commands");
    let episodes = in_turn(contenders, time, |contender| contender.episode())?;
    output::note(format!("{NUM_AT_ONCE} at once"));
    let mut figures = Vec::new();
    for ((contender, lives), episodes) in contenders.iter().zip(lives).zip(episodes) {
        figures.push(Figures {
            create_exec_destroy_ms: Some(quantiles(lives)),
            concurrent_32_per_second: Some(at_once(*contender, time)?),
            episode_ms: Some(quantiles(episodes)),
            ..Figures::default()
        });
    }
    Ok(figures)
}

/// Times of `body`, one of each contender after the other, until each has had its time.
fn in_turn(
    contenders: &[&dyn Contender],
    time: Duration,
    body: impl Fn(&dyn Contender) -> Result<(), CliError>,
) -> Result<Vec<Vec<Duration>>, CliError> {
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); contenders.len()];
    // The first one warms up.
    for contender in contenders {
        body(*contender)?;
    }
    let mut going = true;
    while going {
        going = false;
        for (contender, times) in contenders.iter().zip(&mut times) {
            if times.iter().sum::<Duration>() < time {
                let start = Instant::now();
                body(*contender)?;
                times.push(start.elapsed());
                going = true;
            }
        }
    }
    Ok(times)
}

/// Lives a second with 32 threads.
fn at_once(contender: &dyn Contender, time: Duration) -> Result<f64, CliError> {
    let batch = |until: Option<Instant>| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..NUM_AT_ONCE)
                .map(|_| {
                    scope.spawn(move || {
                        let mut n = 0;
                        loop {
                            contender.life()?;
                            n += 1;
                            if until.is_none_or(|until| Instant::now() >= until) {
                                return Ok::<usize, CliError>(n);
                            }
                        }
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|_| Err(CliError::failed("a thread of the bench panicked")))
                })
                .sum::<Result<usize, CliError>>()
        })
    };
    batch(None)?;
    let start = Instant::now();
    let n = batch(Some(start + time))?;
    Ok(n as f64 / start.elapsed().as_secs_f64())
}

/// Quantiles of times that are not empty.
fn quantiles(mut times: Vec<Duration>) -> Quantiles {
    times.sort_unstable();
    let at = |q: f64| {
        let index = (times.len().saturating_sub(1) as f64 * q).round() as usize;
        times.get(index).map_or(f64::NAN, |time| round(time.as_secs_f64() * 1e3))
    };
    Quantiles { p50: at(0.5), p99: at(0.99) }
}

/// Three digits behind the point: the clock has no more to say.
fn round(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

fn tell(bench: &Bench) -> Result<(), CliError> {
    let pair =
        |q: Option<Quantiles>| q.map_or("-".to_owned(), |q| format!("{:.1} / {:.1}", q.p50, q.p99));
    let row = |name: &str, f: &Figures| {
        vec![
            name.to_owned(),
            pair(f.create_exec_destroy_ms),
            pair(f.exec_ms),
            f.concurrent_32_per_second.map_or("-".to_owned(), |n| format!("{n:.0}")),
            f.fork_ms.as_ref().map_or("-".to_owned(), |f| format!("{:.1}", f.p50)),
            pair(f.episode_ms),
        ]
    };
    let mut rows = vec![row("native", &bench.native)];
    rows.extend(bench.bubblewrap.as_ref().map(|f| row("bubblewrap", f)));
    rows.extend(bench.docker.as_ref().map(|f| row("docker", f)));
    let header = ["p50 / p99 in ms", "Life", "Command", "32 at once, /s", "Fork", "Episode"];
    output::data(&table::table(&header, &[1, 2, 3, 4, 5], rows))?;
    if let Some(fork) = &bench.native.fork_ms {
        output::note(format!("Forked with {} files written.", fork.num_files));
    }
    if let Some(leftovers) = &bench.native.leftovers {
        output::note(leftovers);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Bench, Figures, Fork, Quantiles, quantiles};
    use std::time::Duration;

    #[test]
    fn quantiles_of_times() {
        let times = (0..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(quantiles(times), Quantiles { p50: 50.0, p99: 99.0 });
    }

    /// Other programs read this.
    #[test]
    fn the_shape_of_the_json() {
        let q = Some(Quantiles { p50: 1.0, p99: 2.0 });
        let native = Figures {
            create_exec_destroy_ms: q,
            exec_ms: q,
            concurrent_32_per_second: Some(200.0),
            fork_ms: Some(Fork { p50: 3.0, num_files: 4 }),
            episode_ms: q,
            leftovers: None,
        };
        let peer = Figures { create_exec_destroy_ms: q, ..Figures::default() };
        let bench = Bench { native, bubblewrap: Some(peer), docker: None };
        let expected = serde_json::json!({
            "native": {
                "create_exec_destroy_ms": {"p50": 1.0, "p99": 2.0},
                "exec_ms": {"p50": 1.0, "p99": 2.0},
                "concurrent_32_per_second": 200.0,
                "fork_ms": {"p50": 3.0, "num_files": 4},
                "episode_ms": {"p50": 1.0, "p99": 2.0},
            },
            "bubblewrap": {"create_exec_destroy_ms": {"p50": 1.0, "p99": 2.0}},
        });
        assert_eq!(serde_json::to_value(&bench).unwrap(), expected);
    }
}
