//! One redirect through one back end: put in place, look, count, take away.

use crate::conntrack::Conntrack;
use crate::diff::{Difference, compare};
use crate::error::Error;
use crate::iptables::{self, Iptables};
use crate::nft::{self, Nft};
use crate::rule::{Backend, Observation, Redirect, Ruleset};
use crate::tools::Tools;

/// How often rules are written before somebody else's interference is an error.
const ATTEMPTS: u32 = 3;

/// What [`Netfilter::install`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// What was missing or wrong before; empty if there was nothing to do.
    pub repaired: Vec<Difference>,
    /// Other back ends whose rules of ours were removed, after the new ones were in force.
    pub moved_from: Vec<Backend>,
    /// Established connections to the endpoint that were not redirected and have been cut.
    pub flushed: u64,
}

/// What the two rules have matched since they were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that were redirected: translation looks at the first packet of each only.
    pub redirected_connections: u64,
    /// Packets to the endpoint that were not redirected, and were dropped.
    pub dropped_packets: u64,
}

/// What [`remove`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Where rules of ours were.
    pub from: Vec<Backend>,
    /// Where nobody could look, because the programs are not installed.
    pub not_looked: Vec<Backend>,
}

/// What [`Netfilter::install`] writes where none of our rules are yet: the input of `nft -f -`, or of
/// `iptables-restore --noflush`.
pub fn render(backend: Backend, redirect: &Redirect) -> String {
    write(backend, &Ruleset::from(redirect), &Observation::default())
}

fn write(backend: Backend, rules: &Ruleset, seen: &Observation) -> String {
    match backend {
        Backend::Nft => nft::render(rules, seen),
        Backend::IptablesNft | Backend::IptablesLegacy => iptables::render(rules, seen),
    }
}

/// The programs of one back end.
#[derive(Clone, Debug)]
enum Programs {
    Nft(Nft),
    Iptables(Iptables),
}

impl Programs {
    async fn find(tools: &Tools, backend: Backend) -> Result<Option<Self>, Error> {
        match backend {
            Backend::Nft => Ok(Nft::find(tools).map(Self::Nft)),
            Backend::IptablesNft | Backend::IptablesLegacy => {
                Ok(Iptables::find(tools, backend).await?.map(Self::Iptables))
            }
        }
    }

    async fn present(&self, tools: &Tools) -> Result<bool, Error> {
        match self {
            Self::Nft(nft) => nft.present(tools).await,
            Self::Iptables(iptables) => iptables.present(tools).await,
        }
    }

    async fn observe(&self, tools: &Tools) -> Result<Observation, Error> {
        match self {
            Self::Nft(nft) => nft.observe(tools).await,
            Self::Iptables(iptables) => iptables.observe(tools).await,
        }
    }

    async fn apply(&self, tools: &Tools, text: &str) -> Result<(), Error> {
        match self {
            Self::Nft(nft) => nft.apply(tools, text).await,
            Self::Iptables(iptables) => iptables.apply(tools, text).await,
        }
    }

    /// Takes our rules away; false if there were none.
    async fn remove(&self, tools: &Tools) -> Result<bool, Error> {
        if !self.present(tools).await? {
            return Ok(false);
        }
        let text = match self {
            Self::Nft(_) => nft::render_removal(),
            Self::Iptables(iptables) => iptables::render_removal(&iptables.observe(tools).await?),
        };
        self.apply(tools, &text).await?;
        Ok(true)
    }
}

/// A redirect, the back end that puts it into the kernel, and the programs for that.
///
/// Dropping it leaves the rules in force.
#[derive(Clone, Debug)]
pub struct Netfilter {
    rules: Ruleset,
    redirect: Redirect,
    backend: Backend,
    programs: Programs,
    conntrack: Conntrack,
    tools: Tools,
}

impl Netfilter {
    /// Finds the programs; changes nothing yet.
    ///
    /// # Errors
    /// [`Error::MissingTool`] and [`Error::WrongVariant`] say what to install.
    pub async fn new(redirect: Redirect, backend: Backend, tools: Tools) -> Result<Self, Error> {
        let programs = match backend {
            Backend::Nft => Programs::Nft(Nft::require(&tools)?),
            Backend::IptablesNft | Backend::IptablesLegacy => {
                Programs::Iptables(Iptables::require(&tools, backend).await?)
            }
        };
        let conntrack = Conntrack::require(&tools)?;
        Ok(Self { rules: Ruleset::from(&redirect), redirect, backend, programs, conntrack, tools })
    }

    /// The back end in use.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The redirect.
    pub fn redirect(&self) -> &Redirect {
        &self.redirect
    }

    /// Makes the kernel's rules what they should be, if they are not: in one transaction for each table, the drop first.
    /// Then removes what another back end may still have of ours, and cuts connections that were made without the redirect.
    ///
    /// # Errors
    /// After one, whatever was in force before still is, or more than that: nothing is opened. [`Error::Unstable`] if
    /// somebody else changes the rules as fast as they are written.
    pub async fn install(&self) -> Result<Installed, Error> {
        let mut done = Installed::default();
        let mut attempt = 0;
        loop {
            let seen = self.programs.observe(&self.tools).await?;
            let differences = compare(&self.rules, &seen);
            if differences.is_empty() {
                break;
            }
            if attempt == ATTEMPTS {
                return Err(Error::Unstable { attempts: ATTEMPTS, differences });
            }
            attempt += 1;
            let written = self.programs.apply(&self.tools, &write(self.backend, &self.rules, &seen)).await;
            match written {
                Err(error) if !error.is_race() || attempt == ATTEMPTS => return Err(error),
                Ok(()) if done.repaired.is_empty() => done.repaired = differences,
                // After an error a jump that was to be deleted may be gone: look again.
                Ok(()) | Err(_) => {}
            }
        }
        for other in Backend::ALL.into_iter().filter(|other| *other != self.backend) {
            if let Some(programs) = Programs::find(&self.tools, other).await?
                && programs.remove(&self.tools).await?
            {
                done.moved_from.push(other);
            }
        }
        done.flushed = self.conntrack.flush(&self.tools, &self.redirect).await?;
        Ok(done)
    }

    /// How the kernel's rules differ from what they should be; empty if they do not.
    pub async fn check(&self) -> Result<Vec<Difference>, Error> {
        Ok(self.look().await?.0)
    }

    /// What the rules have matched; zero for a rule that is not there.
    pub async fn counters(&self) -> Result<Counters, Error> {
        Ok(self.look().await?.1)
    }

    pub(crate) async fn look(&self) -> Result<(Vec<Difference>, Counters), Error> {
        let seen = self.programs.observe(&self.tools).await?;
        let counters = Counters {
            redirected_connections: seen.prerouting.as_ref().map_or(0, |chain| chain.packets),
            dropped_packets: seen.forward.as_ref().map_or(0, |chain| chain.packets),
        };
        Ok((compare(&self.rules, &seen), counters))
    }

    /// As the function [`remove`], with the same programs.
    pub async fn remove(&self) -> Result<Removed, Error> {
        remove(&self.tools).await
    }
}

/// Takes away every rule of ours in every back end, and nothing else. From then on pods reach the endpoint directly.
///
/// # Errors
/// [`Error::MissingTool`] if there is no program at all that could look.
pub async fn remove(tools: &Tools) -> Result<Removed, Error> {
    let mut removed = Removed::default();
    for backend in Backend::ALL {
        match Programs::find(tools, backend).await? {
            None => removed.not_looked.push(backend),
            Some(programs) => {
                if programs.remove(tools).await? {
                    removed.from.push(backend);
                }
            }
        }
    }
    if removed.not_looked.len() == Backend::ALL.len() {
        return Err(tools.missing("nft", "nftables"));
    }
    Ok(removed)
}
