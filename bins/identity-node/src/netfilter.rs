//! The redirect: which back end, kept in force, counted.

use std::io::Write as _;

use identity_netfilter::{Keep, Netfilter, Redirect, State, Tools, detect, keep};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::args::NetfilterChoice;

/// Rules to be kept.
pub(crate) struct Rules {
    netfilter: Netfilter,
    state: watch::Sender<State>,
}

impl Rules {
    /// Until `shutdown`; the rules stay.
    pub(crate) async fn keep(self, shutdown: CancellationToken) {
        keep(self.netfilter, Keep::default(), self.state, shutdown.cancelled_owned()).await;
    }
}

/// Finds the programs. None when the choice is to have no rules.
pub(crate) async fn prepare(
    choice: NetfilterChoice,
    redirect: Redirect,
) -> anyhow::Result<(Option<Rules>, Option<watch::Receiver<State>>)> {
    if choice == NetfilterChoice::None {
        info!("no rules, as --netfilter none says: somebody else has to redirect");
        return Ok((None, None));
    }
    let tools = Tools::default();
    let backend = if let Some(backend) = choice.backend() {
        backend
    } else {
        let detected = detect(&tools).await?;
        info!(backend = %detected.backend, why = detected.why, "netfilter back end");
        detected.backend
    };
    let netfilter = Netfilter::new(redirect, backend, tools).await?;
    let (state, watched) = watch::channel(State::new(backend));
    Ok((Some(Rules { netfilter, state }), Some(watched)))
}

/// Takes our rules away and says from where.
pub(crate) async fn remove() -> anyhow::Result<()> {
    let removed = identity_netfilter::remove(&Tools::default()).await?;
    let mut lines: Vec<_> = removed.from.iter().map(|backend| format!("removed the rules of {backend}")).collect();
    if lines.is_empty() {
        lines.push("there were no rules".to_owned());
    }
    lines.extend(
        removed.not_looked.iter().map(|backend| format!("not looked at: {backend}, whose programs are not installed")),
    );
    writeln!(std::io::stdout(), "{}", lines.join("\n"))?;
    Ok(())
}
