//! Access for a while: asked for, approved, taken back, listed.
//!
//! What to write and what to say is worked out by values (`decide`, `words`, `rows`); this is who asks and waits.

pub(crate) mod args;
mod cluster;
mod decide;
mod rows;
#[cfg(test)]
mod tests;
mod trouble;
mod words;

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use identity_crd::{AzureIdentityGrant, GrantPhase};
use identity_process::now;

use self::{
    args::{Close, ClusterArgs, Format, Grants, Open, Request, Say},
    cluster::{Cluster, Known, Me},
    decide::Word,
    trouble::Trouble,
    words::{ByItself, Standing, standing},
};
use crate::say;

/// How often to look whether a grant is active.
const LOOK: Duration = Duration::from_millis(500);

/// Not active in time.
const STILL_WAITING: u8 = 4;

/// Whether somebody said no, so that it is no use to try again.
pub(crate) fn is_refusal(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<Trouble>(), Some(Trouble::Refused { .. }))
}

/// A sentence for people, the bare result for a pipe.
fn tell(sentence: &str, bare: &str) -> anyhow::Result<ExitCode> {
    if io::stdout().is_terminal() { say(&format!("{sentence}\n")) } else { say(bare) }
}

/// Worth knowing, and not the result.
fn note(text: &str) {
    // Nobody is left to be told when standard error is closed.
    let _ = writeln!(io::stderr(), "note: {text}");
}

/// How far it is, for somebody who watches.
fn progress(text: &str) {
    if io::stderr().is_terminal() {
        let _ = writeln!(io::stderr(), "{text}");
    }
}

fn name_of(grant: &AzureIdentityGrant) -> &str {
    grant.metadata.name.as_deref().unwrap_or_default()
}

/// The grant as created, and its binding as far as it can be read.
async fn ask(cluster: &Cluster, args: &Request) -> anyhow::Result<(AzureIdentityGrant, Known)> {
    let me = cluster.me().await?;
    let known = cluster.binding(&args.binding).await?;
    let (grant, notes) = decide::new_grant(args, &cluster.namespace, &me, &known, now())?;
    for text in notes {
        note(&text);
    }
    Ok((cluster.create(&grant).await?, known))
}

fn waits(grant: &AzureIdentityGrant, known: &Known) -> String {
    match standing(grant, known.binding().and_then(words::policy), now()) {
        Standing::Waits(what) => format!("waits {what}"),
        Standing::Active(until) => format!("is active until {until}"),
        Standing::Over(why) => why,
    }
}

pub(crate) async fn request(args: &Request) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::open(&args.cluster).await?;
    let (grant, known) = ask(&cluster, args).await?;
    let name = name_of(&grant);
    let hint = format!("to approve: identityctl approve {name} -n {}", cluster.namespace);
    tell(&format!("{name} asked for; it {}\n{hint}", waits(&grant, &known)), &format!("{name}\n"))
}

pub(crate) async fn open(args: &Open) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::open(&args.request.cluster).await?;
    let (grant, known) = ask(&cluster, &args.request).await?;
    let name = name_of(&grant).to_owned();
    let namespace = &cluster.namespace;
    if args.no_wait {
        return tell(&format!("{name} asked for; it {}", waits(&grant, &known)), &format!("{name}\n"));
    }
    progress(&format!("{name} asked for; to approve: identityctl approve {name} -n {namespace}"));
    let patience = Duration::try_from(args.timeout).context("--timeout")?;
    let mut last = String::new();
    let waited = tokio::time::timeout(patience, until_settled(&cluster, &grant, &known, &mut last)).await;
    match waited {
        Ok(Ok(Standing::Active(until))) => {
            let left = words::left(until.duration_since(now()));
            tell(
                &format!(
                    "{} is open until {until} ({left}); to close it: identityctl close {} -n {namespace}",
                    args.request.binding, args.request.binding
                ),
                &format!("{name}\t{until}\n"),
            )
        }
        Ok(Ok(Standing::Over(why) | Standing::Waits(why))) => {
            Err(Trouble::refused(format!("{name} gives no access: {why}")).into())
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => {
            note(&format!(
                "{name} is not active after {:#}: it waits {last}. It stays; see `identityctl grants -n {namespace}`, or take it back \
                 with `identityctl revoke {name} -n {namespace}`",
                args.timeout
            ));
            if !io::stdout().is_terminal() {
                say(&format!("{name}\n"))?;
            }
            Ok(ExitCode::from(STILL_WAITING))
        }
    }
}

/// Looks until it is active, or never will be. `last` is what it waits for.
async fn until_settled(
    cluster: &Cluster,
    created: &AzureIdentityGrant,
    known: &Known,
    last: &mut String,
) -> Result<Standing, Trouble> {
    let policy = known.binding().and_then(words::policy);
    loop {
        match cluster.grant(name_of(created)).await {
            Ok(grant) if grant.metadata.uid != created.metadata.uid => {
                return Ok(Standing::Over("it was deleted, and another one is there by its name".to_owned()));
            }
            Ok(grant) => match standing(&grant, policy, now()) {
                Standing::Waits(what) => {
                    if what != *last {
                        progress(&format!("waits {what}"));
                        *last = what;
                    }
                }
                settled => return Ok(settled),
            },
            Err(trouble) if trouble.code() == Some(404) => return Ok(Standing::Over("it was deleted".to_owned())),
            Err(refused @ Trouble::Refused { .. }) => return Err(refused),
            // An API server that is away for a moment: the grant is not.
            Err(Trouble::Failed(why)) => {
                let what = format!("for the API server: {why}");
                if what != *last {
                    progress(&format!("waits {what}"));
                    *last = what;
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Says a word about a grant.
async fn speak(cluster: &Cluster, me: &Me, word: Word, name: &str, reason: Option<&str>) -> Result<String, Trouble> {
    let binding_of = cluster.grant(name).await?.spec.binding_name;
    // Who takes back needs to name no group, so the binding need not be known.
    let known = if word == Word::Approve { cluster.binding(&binding_of).await? } else { Known::Unreadable };
    let binding = known.binding();
    let (grant, done) = cluster
        .edit(name, |grant| decide::next(word, grant, binding, me, reason))
        .await
        .map_err(|trouble| match (trouble, word, &known) {
            (Trouble::Refused { code, text }, Word::Approve, Known::Unreadable) if code != 0 => Trouble::Refused {
                code,
                text: format!(
                    "{text}; you may not read AzureIdentityBinding {binding_of}, so no group of yours that makes you an approver was \
                     named: it takes the right to `get` azureidentitybindings"
                ),
            },
            (trouble, ..) => trouble,
        })?;
    if word != Word::Approve {
        return Ok(done);
    }
    Ok(match standing(&grant, binding.and_then(words::policy), now()) {
        Standing::Waits(what) => format!("{done}; it waits {what}"),
        Standing::Active(until) => format!("{done}; it is active until {until}"),
        Standing::Over(why) => format!("{done}; {why}"),
    })
}

async fn spoken(args: &ClusterArgs, word: Word, name: &str, reason: Option<&str>) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::open(args).await?;
    let me = cluster.me().await?;
    let done = speak(&cluster, &me, word, name, reason).await?;
    tell(&done, "")
}

pub(crate) async fn approve(args: &Say) -> anyhow::Result<ExitCode> {
    spoken(&args.cluster, Word::Approve, &args.grant, args.reason.as_deref()).await
}

pub(crate) async fn deny(args: &Say) -> anyhow::Result<ExitCode> {
    spoken(&args.cluster, Word::Deny, &args.grant, args.reason.as_deref()).await
}

pub(crate) async fn revoke(args: &Say) -> anyhow::Result<ExitCode> {
    spoken(&args.cluster, Word::Revoke, &args.grant, args.reason.as_deref()).await
}

pub(crate) async fn close(args: &Close) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::open(&args.cluster).await?;
    let me = cluster.me().await?;
    let known = cluster.binding(&args.binding).await?;
    let of_binding = cluster.list(false).await?.into_iter().filter(|grant| grant.spec.binding_name == args.binding);
    let (mut revoked, mut waiting, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for grant in of_binding {
        let name = name_of(&grant).to_owned();
        match grant.status.as_ref().and_then(|status| status.phase) {
            Some(GrantPhase::Active) => match speak(&cluster, &me, Word::Revoke, &name, args.reason.as_deref()).await {
                Ok(done) => {
                    progress(&done);
                    revoked.push(name);
                }
                Err(trouble) => refused.push(format!("{name}: {trouble}")),
            },
            Some(phase) if phase.is_final() => {}
            _ if grant.spec.denied.is_some() || grant.spec.revoked.is_some() => {}
            _ => waiting.push(name),
        }
    }
    if !waiting.is_empty() {
        note(&format!("not active yet, and left as they are: {}; `identityctl deny` refuses them", waiting.join(", ")));
    }
    if !refused.is_empty() {
        return Err(Trouble::refused(format!("not revoked: {}", refused.join("; "))).into());
    }
    let bare = revoked.iter().fold(String::new(), |text, name| text + name + "\n");
    let by_itself = match &known {
        Known::There(binding) => words::by_itself(binding, now()),
        Known::Absent if revoked.is_empty() => {
            return Err(Trouble::refused(format!(
                "there is no AzureIdentityBinding {} in namespace {}",
                args.binding, cluster.namespace
            ))
            .into());
        }
        Known::Absent => ByItself::Closed(format!("there is no AzureIdentityBinding {} any more", args.binding)),
        Known::Unreadable => ByItself::Closed(format!(
            "whether {} is open by its own windows cannot be said: that takes the right to `get` azureidentitybindings",
            args.binding
        )),
    };
    let what =
        if revoked.is_empty() { "no grant was active".to_owned() } else { format!("revoked: {}", revoked.join(", ")) };
    match by_itself {
        ByItself::Closed(text) => tell(&format!("{what}; {text}"), &bare),
        ByItself::Open(text) => {
            tell(&what, &bare)?;
            Err(Trouble::refused(text).into())
        }
    }
}

pub(crate) async fn list(args: &Grants) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::open(&args.cluster).await?;
    let mut grants = cluster.list(args.all_namespaces).await?;
    if let Some(binding) = &args.binding {
        grants.retain(|grant| grant.spec.binding_name == *binding);
    }
    let bindings = if grants.is_empty() { Some(Vec::new()) } else { cluster.bindings(args.all_namespaces).await? };
    let terminal = io::stdout().is_terminal();
    if bindings.is_none() && io::stderr().is_terminal() {
        note("how many approvals are needed cannot be said: that takes the right to `list` azureidentitybindings");
    }
    let rows = rows::rows(grants, bindings.as_deref(), now());
    match args.output {
        Format::Json => say(&(serde_json::to_string_pretty(&rows)? + "\n")),
        Format::Table if rows.is_empty() => {
            let place = if args.all_namespaces {
                "any namespace".to_owned()
            } else {
                format!("namespace {}", cluster.namespace)
            };
            progress(&format!("no grants in {place}"));
            Ok(ExitCode::SUCCESS)
        }
        Format::Table if terminal => say(&rows::aligned(&rows, args.all_namespaces)),
        Format::Table => say(&rows::tabbed(&rows, args.all_namespaces)),
    }
}
