//! Where the processor time of a request goes: `perf` samples stacks of a server under load. Outside of the product: there
//! is nothing in it for this.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use benches::stacks::{Profile, parts};
use identity_lab::process;

use super::rows::Row;

/// Samples a second.
const FREQUENCY: &str = "997";

/// Samples a process for a while.
pub(crate) async fn record(process: u32, time: Duration, file: &Path) -> anyhow::Result<Profile> {
    let seconds = format!("{:.1}", time.as_secs_f64());
    let (process, path) = (process.to_string(), file.display().to_string());
    // The clock, not the counters of the processor: those are not there in most virtual machines. Stacks by their
    // DWARF tables: what is measured is what ships, which has no frame pointers.
    let record = ["record", "-q", "-i", "-F", FREQUENCY, "-e", "cpu-clock", "--call-graph", "dwarf,8192"];
    let record = [&record[..], &["-p", &process, "-o", &path, "--", "sleep", &seconds]].concat();
    perf(&record).await?;
    let text = perf(&["script", "-i", &path, "--no-inline", "-F", "comm,ip,sym"]).await?;
    let profile = Profile::read(&text);
    let samples = profile.samples();
    ensure!(samples >= 500, "perf took {samples} samples in {seconds} s: too few to say anything");
    Ok(profile)
}

async fn perf(words: &[&str]) -> anyhow::Result<String> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let line = format!("perf {}", words.join(" "));
    let output = tokio::task::spawn_blocking(move || -> std::io::Result<Output> {
        let mut command = process::command("perf");
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn()?.wait_with_output()
    })
    .await?
    .with_context(|| format!("`{line}` cannot be started (Debian's package is linux-perf)"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{line}` failed ({}): {said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whose time it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Whose {
    Node,
    Bare,
}

/// A row for each part, from the rounds: a profile and microseconds for a request.
pub(crate) fn rows(whose: Whose, rounds: &[(Profile, f64)]) -> Vec<Row> {
    let times: Vec<BTreeMap<&str, f64>> = rounds
        .iter()
        .map(|(profile, micros)| profile.shares().into_iter().map(|(part, share)| (part, share * micros)).collect())
        .collect();
    let (prefix, of) = match whose {
        Whose::Node => ("profile_us", "processor time of a warm token"),
        Whose::Bare => ("profile_bare_us", "processor time of the bare server's answer"),
    };
    let mut rows = Vec::new();
    for part in parts() {
        let samples: Vec<f64> = times.iter().map(|round| round.get(part.id).copied().unwrap_or(0.0)).collect();
        if samples.iter().any(|sample| *sample > 0.0) {
            rows.push(Row::new(format!("{prefix}_{}", part.id), format!("{of}: {}", part.what), "µs", &samples));
        }
    }
    rows
}
