//! The rules as values: what is redirected, which two rules that makes, and what was found in the kernel.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use crate::error::Error;

/// How rules reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Backend {
    /// A table of our own, `ip entra-pod-identity`, through `nft`.
    Nft,
    /// Chains in the tables `nat` and `filter` of nf_tables, through `iptables-nft-restore`.
    IptablesNft,
    /// Chains in the tables `nat` and `filter` of ip_tables, through `iptables-legacy-restore`.
    IptablesLegacy,
}

impl Backend {
    /// All of them.
    pub const ALL: [Backend; 3] = [Backend::Nft, Backend::IptablesNft, Backend::IptablesLegacy];
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Nft => "nft",
            Backend::IptablesNft => "iptables-nft",
            Backend::IptablesLegacy => "iptables-legacy",
        })
    }
}

impl FromStr for Backend {
    type Err = Error;

    fn from_str(given: &str) -> Result<Self, Error> {
        Backend::ALL
            .into_iter()
            .find(|backend| backend.to_string() == given)
            .ok_or_else(|| Error::BackendName { given: given.to_owned() })
    }
}

/// A checked redirect: tcp to `metadata` that arrives from pods leads to `to`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Redirect {
    metadata: SocketAddrV4,
    to: SocketAddrV4,
}

impl Redirect {
    /// Azure's instance metadata service, `169.254.169.254:80`.
    pub const METADATA: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80);

    /// A redirect of tcp connections to `metadata` towards `to`, an address of this node.
    ///
    /// # Errors
    /// [`Error::Target`] if `to` is a loopback address (the kernel drops what is redirected there from outside, unless
    /// `route_localnet` is set, which makes every local-only service of the node reachable), is not the address of one
    /// node, or is the endpoint itself; and if a port is 0.
    pub fn new(metadata: SocketAddrV4, to: SocketAddrV4) -> Result<Self, Error> {
        let refuse = |reason| Err(Error::Target { metadata, to, reason });
        if to.ip().is_loopback() {
            return refuse(
                "a loopback address would need route_localnet, which opens the node's local services to pods",
            );
        }
        if to.ip().is_unspecified() {
            return refuse("0.0.0.0 is no address that a connection can be led to");
        }
        if to.ip().is_multicast() || to.ip().is_broadcast() {
            return refuse("the address does not belong to one node");
        }
        if to.ip() == metadata.ip() {
            return refuse("that is the endpoint itself");
        }
        if to.port() == 0 || metadata.port() == 0 {
            return refuse("port 0 is no port");
        }
        if metadata.ip().is_unspecified() || metadata.ip().is_loopback() || metadata.ip().is_multicast() {
            return refuse("the endpoint's address is none that a pod's packets could be forwarded to");
        }
        Ok(Self { metadata, to })
    }

    /// The endpoint that pods call.
    pub fn metadata(&self) -> SocketAddrV4 {
        self.metadata
    }

    /// Where the redirect leads.
    pub fn to(&self) -> SocketAddrV4 {
        self.to
    }
}

/// Where a rule is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Address translation of arriving packets: nft chain `prerouting`, iptables table `nat`, chain `PREROUTING`.
    Prerouting,
    /// Filtering of forwarded packets: nft chain `forward`, iptables table `filter`, chain `FORWARD`.
    Forward,
}

impl Place {
    /// The order in which tables are written: the drop comes first, so that it is in force before anything else changes.
    pub(crate) const CLOSED_FIRST: [Place; 2] = [Place::Forward, Place::Prerouting];
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Prerouting => "nat PREROUTING",
            Place::Forward => "filter FORWARD",
        })
    }
}

/// The interface on which a packet arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Any interface but this one.
    pub not: bool,
    /// Its name.
    pub name: String,
}

/// What happens to a packet that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its destination becomes this one.
    Dnat(SocketAddrV4),
    /// It is dropped.
    Drop,
}

/// One rule, in the words both back ends have. Every rule counts what it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Only packets that arrive there.
    pub input: Option<Interface>,
    /// Only packets to this address.
    pub destination: Option<Ipv4Addr>,
    /// Only tcp to this port.
    pub tcp_port: Option<u16>,
    /// What happens to them.
    pub verdict: Verdict,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Interface { not, name }) = &self.input {
            write!(f, "arriving {}on {name}, ", if *not { "not " } else { "" })?;
        }
        if let Some(port) = self.tcp_port {
            write!(f, "tcp port {port} ")?;
        }
        match self.destination {
            Some(address) => write!(f, "to {address}: ")?,
            None => f.write_str("to anywhere: ")?,
        }
        match self.verdict {
            Verdict::Dnat(to) => write!(f, "redirect to {to}"),
            Verdict::Drop => f.write_str("drop"),
        }
    }
}

/// The two rules of a [`Redirect`], one for each [`Place`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// The redirect.
    pub prerouting: Rule,
    /// What drops everything that was not redirected.
    pub forward: Rule,
}

impl Ruleset {
    /// The rule for a place.
    pub fn rule(&self, place: Place) -> &Rule {
        match place {
            Place::Prerouting => &self.prerouting,
            Place::Forward => &self.forward,
        }
    }
}

impl From<&Redirect> for Ruleset {
    fn from(redirect: &Redirect) -> Self {
        Self {
            prerouting: Rule {
                input: Some(Interface { not: true, name: "lo".to_owned() }),
                destination: Some(*redirect.metadata.ip()),
                tcp_port: Some(redirect.metadata.port()),
                verdict: Verdict::Dnat(redirect.to),
            },
            forward: Rule {
                input: None,
                destination: Some(*redirect.metadata.ip()),
                tcp_port: None,
                verdict: Verdict::Drop,
            },
        }
    }
}

/// A rule as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// One that can be said in our words.
    Rule(Rule),
    /// Any other, in the words of the program that listed it.
    Foreign(String),
}

/// How a chain of ours hangs on its hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attachment {
    /// As it should.
    Right,
    /// In another way, said for a person.
    Wrong(String),
}

/// A chain of ours as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) attachment: Attachment,
    pub(crate) rules: Vec<Found>,
    /// Packets that all its rules have matched since they were made.
    pub(crate) packets: u64,
}

/// What was found in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observation {
    pub(crate) prerouting: Option<Chain>,
    pub(crate) forward: Option<Chain>,
    /// Anything in a table of our own that we did not put there, said for a person.
    pub(crate) strangers: Vec<String>,
    /// iptables: what follows `-A PREROUTING` or `-A FORWARD` of every rule there that leads into our chain.
    pub(crate) jumps: Vec<(Place, String)>,
}

impl Observation {
    pub(crate) fn chain(&self, place: Place) -> Option<&Chain> {
        match place {
            Place::Prerouting => self.prerouting.as_ref(),
            Place::Forward => self.forward.as_ref(),
        }
    }

    pub(crate) fn set(&mut self, place: Place, chain: Option<Chain>) {
        match place {
            Place::Prerouting => self.prerouting = chain,
            Place::Forward => self.forward = chain,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any redirect that is accepted.
    pub(crate) fn redirects() -> impl Strategy<Value = Redirect> {
        let socket = || (any::<u32>(), any::<u16>()).prop_map(|(ip, port)| SocketAddrV4::new(Ipv4Addr::from(ip), port));
        (prop_oneof![Just(Redirect::METADATA), socket()], socket())
            .prop_filter_map("refused", |(metadata, to)| Redirect::new(metadata, to).ok())
    }

    #[test]
    fn targets_that_cannot_work_are_refused_with_the_reason() {
        for (metadata, to, says) in [
            ("169.254.169.254:80", "127.0.0.1:2579", "loopback"),
            ("169.254.169.254:80", "127.8.8.8:2579", "loopback"),
            ("169.254.169.254:80", "0.0.0.0:2579", "0.0.0.0"),
            ("169.254.169.254:80", "224.0.0.1:2579", "one node"),
            ("169.254.169.254:80", "255.255.255.255:2579", "one node"),
            ("169.254.169.254:80", "169.254.169.254:2579", "itself"),
            ("169.254.169.254:80", "10.0.0.1:0", "port 0"),
            ("169.254.169.254:0", "10.0.0.1:2579", "port 0"),
            ("127.0.0.1:80", "10.0.0.1:2579", "endpoint's address"),
        ] {
            let error = Redirect::new(metadata.parse().unwrap(), to.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(says), "{to}: {error}");
            assert!(error.contains(to), "{error}");
            assert!(error.contains("IPv4 address of this node"), "{error}");
        }
        Redirect::new(Redirect::METADATA, "10.42.0.1:2579".parse().unwrap()).unwrap();
    }

    #[test]
    fn back_ends_have_names() {
        for backend in Backend::ALL {
            assert_eq!(backend.to_string().parse::<Backend>().unwrap(), backend);
        }
        let error = "iptables".parse::<Backend>().unwrap_err().to_string();
        assert!(error.contains("iptables-legacy"), "{error}");
    }
}
