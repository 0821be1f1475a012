//! Where a story is told: a lab, with its objects in an API server or in a directory.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, bail, ensure};
use serde_json::Value;

use crate::{
    clock::{self, Stopwatch},
    files,
    lab::{Answer, Lab},
    run::Cmd,
    term,
};

/// Time for what is to happen soon and has no promise of its own.
pub(super) const SOON: Duration = Duration::from_secs(20);
/// The promise: what a clock, a person or a change decides is in force within this.
pub(super) const PROMISE: Duration = Duration::from_secs(1);

/// A lab, and how to reach its API server.
pub(super) struct Stage {
    pub(super) lab: Lab,
    kubectl: Option<PathBuf>,
}

/// When the answers of a pod's endpoint changed.
pub(super) struct Turn {
    /// The first answer of the new kind.
    pub(super) answer: Answer,
    /// How long after the moment it was there, at most.
    pub(super) late: Duration,
    /// Answers of the old kind before it.
    pub(super) before: usize,
}

impl Stage {
    /// Starts a lab over what `fill` writes, tells `story`, and takes the lab down, whatever came of it.
    pub(super) fn play(
        assets: Option<&Path>,
        fill: impl FnOnce(&Path) -> anyhow::Result<()>,
        story: impl FnOnce(&Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let place = if assets.is_some() { "a real kube-apiserver" } else { "a directory of manifests" };
        term::heading(format_args!("A node and its pods, their objects in {place}"));
        let watch = Stopwatch::start();
        let stage = Self { lab: Lab::up(assets, fill)?, kubectl: assets.map(|assets| assets.join("kubectl")) };
        term::step(format_args!(
            "ready in {}: each pod is a network namespace, netfilter redirects 169.254.169.254",
            watch.seconds()
        ));
        // What went wrong first, and then what the parts say about it.
        let told = story(&stage)
            .map_err(|error| anyhow!("{error:#}\n\nThe last lines of the logs:\n{}", stage.lab.log_tail()));
        term::heading("Taking it down");
        let down = stage.lab.down();
        told?;
        down?;
        term::step("nothing is left: no process, no network namespace, no rule");
        Ok(())
    }

    /// Whether the objects are in an API server.
    pub(super) fn is_cluster(&self) -> bool {
        self.kubectl.is_some()
    }

    /// kubectl as the administrator.
    pub(super) fn kubectl(&self, words: &[&str]) -> anyhow::Result<String> {
        self.kubectl_by(&self.lab.kubeconfig()?)?.args(words).text()
    }

    /// kubectl with somebody's kubeconfig.
    pub(super) fn kubectl_by(&self, kubeconfig: &Path) -> anyhow::Result<Cmd> {
        let kubectl = self.kubectl.as_ref().context("there is no API server")?;
        Ok(Cmd::new(kubectl).arg("--kubeconfig").arg(kubeconfig))
    }

    /// kubectl as the administrator, shown with what it prints.
    pub(super) fn show(&self, words: &[&str]) -> anyhow::Result<String> {
        let text = self.kubectl(words)?;
        term::step(format_args!("$ kubectl {}", words.join(" ")));
        text.lines().for_each(|line| term::step(format_args!("  {line}")));
        Ok(text)
    }

    /// A command about the lab, shown.
    pub(super) fn command(&self, words: &[&str]) -> anyhow::Result<String> {
        let text = self.lab.command(words).text()?;
        term::step(format_args!("$ identity-lab {}", words.join(" ")));
        Ok(text)
    }

    /// Waits until an Event with this reason about an object of this name was written; its note.
    pub(super) fn event(&self, reason: &str, name: &str) -> anyhow::Result<String> {
        let find = || -> anyhow::Result<Option<String>> {
            if self.is_cluster() {
                let list: Value = serde_json::from_str(&self.kubectl(&["get", "events", "-A", "-o", "json"])?)
                    .context("kubectl prints no JSON")?;
                let mut all = list["items"].as_array().into_iter().flatten();
                let found = all.find(|event| event["reason"] == reason && event["involvedObject"]["name"] == name);
                return Ok(found.map(|event| event["message"].as_str().unwrap_or_default().to_owned()));
            }
            let path = self.lab.run_dir().join("state/events.jsonl");
            let text = if path.is_file() { files::read(&path)? } else { String::new() };
            let mut all = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let found =
                all.find(|event| event["reason"] == reason && event.to_string().contains(&format!("\"{name}\"")));
            Ok(found.map(|event| {
                let note = ["note", "message"].iter().find_map(|field| event[field].as_str());
                note.unwrap_or_default().to_owned()
            }))
        };
        let found = clock::wait_for(SOON, find)?;
        found.with_context(|| format!("no Event {reason} about {name} within {} s", SOON.as_secs()))
    }

    /// Asks from inside a pod again and again, until the answer's status is no longer `from` but `to`. That happens at a moment
    /// which is `lead` after the start of `watch` or, since it was set by a command, at most `spread` later.
    ///
    /// # Errors
    /// When it happens before the moment or more than [`PROMISE`] after it, or the endpoint says something else.
    pub(super) fn turn(
        &self,
        pod: &str,
        query: &str,
        (from, to): (u16, u16),
        watch: Stopwatch,
        lead: Duration,
    ) -> anyhow::Result<Turn> {
        let mut before = 0;
        loop {
            let answer = self.lab.ask(pod, query)?;
            let late = watch.elapsed().checked_sub(lead);
            if answer.status == to {
                let late = late.with_context(|| format!("{to} before its time: {}", answer.body))?;
                ensure!(late <= PROMISE, "{to} only {} ms after the moment", late.as_millis());
                return Ok(Turn { answer, late, before });
            }
            ensure!(answer.status == from, "{} instead of {from} or {to}: {}", answer.status, answer.body);
            before += 1;
            if late.is_some_and(|late| late > PROMISE) {
                bail!("still {from} {} ms after the moment", late.unwrap_or_default().as_millis());
            }
        }
    }
}

/// Writes manifests: named ones of `examples`, and others with their text.
pub(super) fn write(directory: &Path, examples: &[&str], texts: &[(&str, &str)]) -> anyhow::Result<()> {
    for example in examples {
        let text = files::read(&crate::paths::root().join("examples").join(example))?;
        files::replace(&directory.join(example.replace('/', "-")), &text)?;
    }
    for (name, text) in texts {
        files::replace(&directory.join(name), text)?;
    }
    Ok(())
}

/// The text of a refusal as the endpoint words it.
///
/// # Errors
/// When it is none by policy.
pub(super) fn refusal(answer: &Answer) -> anyhow::Result<String> {
    ensure!(answer.status == 403, "{} instead of 403: {}", answer.status, answer.body);
    ensure!(answer.field("error") == "access_denied", "not a refusal by policy: {}", answer.body);
    ensure!(answer.field("access_token").is_empty(), "a refusal with a token");
    Ok(answer.field("error_description"))
}

/// The first line of an SDK's error.
pub(super) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
