//! `cargo xtask fuzz`: builds the targets in `fuzz/` with coverage, on stable Rust, and runs them for a while, from the
//! inputs in `fuzz/corpus/`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use crate::{clock::Stopwatch, files, paths, run::Cmd, setup::packages, term};

/// Arguments of `fuzz`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Which target; all of them when none is named.
    target: Option<String>,
    /// How long each runs.
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u32,
    /// Only check this input, as when a finding is to be reproduced.
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
    /// Do not run, but add to the corpus that is checked in the few inputs of earlier runs that reach most beyond it.
    #[arg(long, conflicts_with = "input")]
    merge: bool,
}

/// What cargo-fuzz passes to rustc, less the sanitizer: those need a nightly compiler, and there is no unsafe code here to
/// watch. What does not hold panics.
const INSTRUMENTATION: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
    "-Ccodegen-units=1",
];

/// The most inputs that a merge leaves in a corpus that is checked in.
const MOST_INPUTS: usize = 190;

/// The longest inputs made, in bytes; more than any of the product's limits but those that are not worth the time.
const LONGEST: u32 = 4096;

/// Builds and runs.
///
/// # Errors
/// When a target cannot be built or found something.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    packages::ensure(packages::BUILD)?;
    packages::ensure(packages::FUZZ)?;
    let room = Room { root: paths::root().join("fuzz") };
    let targets = room.targets()?;
    let chosen: Vec<&String> =
        targets.iter().filter(|name| arguments.target.as_ref().is_none_or(|wanted| wanted == *name)).collect();
    if chosen.is_empty() {
        let known = targets.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        bail!("there is no such fuzz target; there are {known}");
    }
    let binaries = room.build(&chosen)?;
    let mut failed = Vec::new();
    for target in chosen {
        let program = binaries.join(target);
        term::heading(format_args!("Fuzz target {target}"));
        let result = match &arguments.input {
            Some(input) => Cmd::new(program).arg(input).run(),
            None if arguments.merge => room.merge(&program, target),
            None => room.fuzz(&program, target, arguments.seconds),
        };
        if let Err(error) = result {
            term::failure(&format!("{target}: {error:#}"));
            failed.push(target.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("fuzzing failed: {}", failed.join(", "));
    }
    Ok(())
}

/// The directory `fuzz`.
struct Room {
    root: PathBuf,
}

impl Room {
    /// Names of the targets.
    fn targets(&self) -> anyhow::Result<BTreeSet<String>> {
        let directory = self.root.join("fuzz_targets");
        let entries = std::fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
        let stems = entries.flatten().filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()));
        Ok(stems.collect())
    }

    /// Builds the targets; in which directory they are then.
    fn build(&self, targets: &[&String]) -> anyhow::Result<PathBuf> {
        let watch = Stopwatch::start();
        let version = Cmd::new("rustc").arg("-vV").text()?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
        // With a target, even the machine's own, the flags are not for build scripts. Not `--locked`: when a crate of the
        // workspace gets a dependency, fuzz/Cargo.lock gets it here.
        let mut command = Cmd::cargo()
            .args(["build", "--quiet", "--release", "--target", host, "--manifest-path"])
            .arg(self.root.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(self.root.join("target"));
        for target in targets {
            command = command.args(["--bin", target.as_str()]);
        }
        command.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", INSTRUMENTATION.join(" ")).run()?;
        term::step(format_args!("built {} fuzz targets in {}", targets.len(), watch.seconds()));
        Ok(self.root.join("target").join(host).join("release"))
    }

    /// Where a target's runs leave what they found: inputs that reach further, or that failed.
    fn place(&self, kind: &str, target: &str) -> anyhow::Result<PathBuf> {
        let place = self.root.join("target").join(kind).join(target);
        std::fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        Ok(place)
    }

    fn fuzz(&self, program: &Path, target: &str, seconds: u32) -> anyhow::Result<()> {
        let artifacts = self.place("artifacts", target)?;
        let mut command = Cmd::new(program)
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(format!("-max_len={LONGEST}"))
            .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]);
        let dictionary = self.root.join("dictionaries").join(target);
        if dictionary.exists() {
            command = command.arg(format!("-dict={}", dictionary.display()));
        }
        // New inputs go into the first directory.
        command = command.arg(self.place("corpus", target)?).arg(self.root.join("corpus").join(target));
        command.run().with_context(|| {
            format!(
                "a finding, see above; reproduce with `cargo xtask fuzz {target} --input FILE`, its file is in {}",
                artifacts.display()
            )
        })
    }

    /// Adds the few inputs that reach most beyond the corpus that is checked in.
    fn merge(&self, program: &Path, target: &str) -> anyhow::Result<()> {
        let corpus = self.root.join("corpus").join(target);
        // libFuzzer writes into the first corpus whatever reaches further, which is thousands: that is a copy.
        let copy = self.place("merge", target)?;
        std::fs::remove_dir_all(&copy).with_context(|| format!("cannot remove {}", copy.display()))?;
        let copy = self.place("merge", target)?;
        let inputs = std::fs::read_dir(&corpus).with_context(|| format!("cannot read {}", corpus.display()))?;
        let inputs: Vec<PathBuf> = inputs.flatten().map(|entry| entry.path()).collect();
        for input in &inputs {
            add(input, &copy, usize::MAX)?;
        }
        let control = copy.with_extension("control");
        let _ = std::fs::remove_file(&control);
        Cmd::new(program)
            .args(["-set_cover_merge=1", "-max_len=600"])
            .arg(format!("-merge_control_file={}", control.display()))
            .arg(&copy)
            .arg(self.place("corpus", target)?)
            .run_quietly()?;
        let chosen = further(&files::read(&control)?, MOST_INPUTS.saturating_sub(inputs.len()))?;
        for input in &chosen {
            add(Path::new(input), &corpus, 12)?;
        }
        term::step(format_args!("{} inputs added to the {} of {target}", chosen.len(), inputs.len()));
        Ok(())
    }
}

/// Copies a file into a directory, with at most so many characters of its name.
fn add(file: &Path, directory: &Path, length: usize) -> anyhow::Result<()> {
    let name: String = file.file_name().unwrap_or_default().to_string_lossy().chars().take(length).collect();
    std::fs::copy(file, directory.join(name)).with_context(|| format!("cannot copy {}", file.display())).map(drop)
}

/// Of a merge's control file, the inputs (`room` at most) that are not of the first corpus and reach most beyond it, each
/// beyond the ones before. The file: how many inputs, how many of them are of the first corpus, their names one a line; then
/// `FT input feature…` lines, eight features (how often) for each place in the code.
fn further(control: &str, room: usize) -> anyhow::Result<Vec<String>> {
    let mut lines = control.lines();
    let mut number =
        || lines.next().and_then(|line| line.parse::<usize>().ok()).context("not a control file of a merge");
    let (count, first) = (number()?, number()?);
    let names: Vec<&str> = lines.by_ref().take(count).collect();
    let mut reached = BTreeSet::new();
    let mut left: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for line in lines {
        let mut words = line.strip_prefix("FT ").into_iter().flat_map(str::split_whitespace).map(str::parse::<usize>);
        let Some(Ok(input)) = words.next() else { continue };
        let places = words.flatten().map(|feature| feature / 8);
        if input < first {
            reached.extend(places);
        } else {
            left.insert(input, places.collect());
        }
    }
    let mut chosen = Vec::new();
    while chosen.len() < room {
        left.retain(|_, places| {
            places.retain(|place| !reached.contains(place));
            !places.is_empty()
        });
        // Inputs are sorted by size: the smallest of equals.
        let best = left.iter().max_by_key(|(input, places)| (places.len(), std::cmp::Reverse(**input)));
        let Some((input, places)) = best else { break };
        reached.extend(places);
        chosen.push((*names.get(*input).context("not a control file of a merge")?).to_owned());
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_takes_what_reaches_further_first_what_reaches_most() {
        let control =
            "5\n1\nseed\na\nb\nc\nd\nSTARTED 0 1\nFT 0 8 16\nFT 1 9 24\nFT 2 24 32 40\nFT 3 33 41\nFT 4 48\nCOV 4 1\n";
        assert_eq!(further(control, 9).unwrap(), ["b", "d"]);
        assert_eq!(further(control, 1).unwrap(), ["b"]);
        assert!(further("x", 1).is_err());
    }

    #[test]
    fn every_target_has_a_corpus() {
        let room = Room { root: paths::root().join("fuzz") };
        let targets = room.targets().unwrap();
        assert!(targets.contains("imds_request"));
        let manifest = std::fs::read_to_string(room.root.join("Cargo.toml")).unwrap();
        for target in targets {
            assert!(room.root.join("corpus").join(&target).is_dir(), "{target}");
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
        }
    }
}
