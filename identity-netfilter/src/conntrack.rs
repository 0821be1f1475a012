//! Connections to the endpoint that were made before the redirect.
//!
//! The kernel translates a connection as it decided at its first packet. One that was not redirected would now be dropped
//! silently, and its client would wait for its own time-out. Once its entry is gone its next packet is redirected like a
//! new one, meets a listener that knows nothing of it, and is answered with a reset: the client connects anew.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::error::Error;
use crate::rule::Redirect;
use crate::tools::Tools;

/// Where the answers of some connections to the endpoint come from: the endpoint itself, or where they were redirected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Answerer {
    /// None if the protocol has no name that the program takes.
    protocol: Option<&'static str>,
    address: Ipv4Addr,
    /// With tcp and udp only.
    port: Option<u16>,
}

/// The program `conntrack` in some network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Conntrack {
    program: PathBuf,
}

impl Conntrack {
    pub(crate) fn require(tools: &Tools) -> Result<Self, Error> {
        tools.require("conntrack", "conntrack").map(|program| Self { program })
    }

    /// Forgets all connections to the endpoint but those that are redirected as they should be; returns how many.
    pub(crate) async fn flush(&self, tools: &Tools, redirect: &Redirect) -> Result<u64, Error> {
        let endpoint = redirect.metadata().ip().to_string();
        let listing = tools.must(&self.program, &["-L", "-f", "ipv4", "-d", &endpoint], None).await?;
        let mut flushed = 0;
        for answerer in strangers(&listing.stdout, redirect) {
            let (address, port) = (answerer.address.to_string(), answerer.port.map(|port| port.to_string()));
            let mut arguments = vec!["-D", "-f", "ipv4", "-d", &endpoint, "-r", &address];
            if let Some(protocol) = answerer.protocol {
                arguments.extend(["-p", protocol]);
            }
            if let Some(port) = &port {
                arguments.extend(["--reply-port-src", port]);
            }
            let output = tools.run(&self.program, &arguments, None).await?;
            match deleted(&output.stderr) {
                // It exits with 1 when it finds none: they have ended meanwhile.
                Some(count) => flushed += count,
                None if output.code == Some(0) => {}
                None => return Err(tools.failure(output)),
            }
        }
        Ok(flushed)
    }
}

/// Who answers connections to the endpoint, apart from the redirect's own target.
fn strangers(listing: &str, redirect: &Redirect) -> BTreeSet<Answerer> {
    listing
        .lines()
        .filter_map(answerer)
        .filter(|found| {
            !(found.protocol == Some("tcp")
                && found.address == *redirect.to().ip()
                && found.port == Some(redirect.to().port()))
        })
        .collect()
}

/// From a line such as `tcp 6 431999 ESTABLISHED src=10.42.0.5 dst=169.254.169.254 sport=40000 dport=80 src=10.42.0.1 dst=10.42.0.5 sport=2579 dport=40000 [ASSURED] mark=0 use=1`.
fn answerer(line: &str) -> Option<Answerer> {
    let mut words = line.split_whitespace();
    let protocol = words.next()?;
    let protocol = ["tcp", "udp", "icmp", "sctp", "dccp"].into_iter().find(|known| *known == protocol);
    // The second tuple is that of the answers.
    let mut reply =
        words.skip_while(|word| !word.starts_with("src=")).skip(1).skip_while(|word| !word.starts_with("src="));
    let address = reply.next()?.strip_prefix("src=")?.parse().ok()?;
    let port = reply.find_map(|word| word.strip_prefix("sport=")).and_then(|port| port.parse().ok());
    Some(Answerer { protocol, address, port: port.filter(|_| matches!(protocol, Some("tcp" | "udp"))) })
}

/// From `conntrack v1.4.7 (conntrack-tools): 2 flow entries have been deleted.`
fn deleted(message: &str) -> Option<u64> {
    let (before, _) = message.split_once(" flow entries have been deleted")?;
    before.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // As conntrack 1.4.7 prints entries; the second one is redirected as it should be.
    const LISTING: &str = "\
tcp      6 431999 ESTABLISHED src=10.42.0.5 dst=169.254.169.254 sport=40000 dport=80 src=169.254.169.254 dst=10.42.0.5 sport=80 dport=40000 [ASSURED] mark=0 use=1
tcp      6 431999 ESTABLISHED src=10.42.0.5 dst=169.254.169.254 sport=40002 dport=80 src=10.42.0.1 dst=10.42.0.5 sport=2579 dport=40002 [ASSURED] mark=0 use=1
tcp      6 431999 ESTABLISHED src=10.42.0.6 dst=169.254.169.254 sport=40003 dport=80 src=10.42.0.1 dst=10.42.0.6 sport=2580 dport=40003 [ASSURED] mark=0 use=1
udp      17 28 src=10.42.0.5 dst=169.254.169.254 sport=40001 dport=53 [UNREPLIED] src=169.254.169.254 dst=10.42.0.5 sport=53 dport=40001 mark=0 use=1
icmp     1 29 src=10.42.0.5 dst=169.254.169.254 type=8 code=0 id=7 src=169.254.169.254 dst=10.42.0.5 type=0 code=0 id=7 mark=0 use=1
unknown  253 599 src=10.42.0.5 dst=169.254.169.254 [UNREPLIED] src=169.254.169.254 dst=10.42.0.5 mark=0 use=1
";

    #[test]
    fn all_but_the_redirected_connections_are_strangers() {
        let redirect = Redirect::new(Redirect::METADATA, "10.42.0.1:2579".parse().unwrap()).unwrap();
        let endpoint = *redirect.metadata().ip();
        let expected = [
            Answerer { protocol: None, address: endpoint, port: None },
            Answerer { protocol: Some("icmp"), address: endpoint, port: None },
            Answerer { protocol: Some("tcp"), address: *redirect.to().ip(), port: Some(2580) },
            Answerer { protocol: Some("tcp"), address: endpoint, port: Some(80) },
            Answerer { protocol: Some("udp"), address: endpoint, port: Some(53) },
        ];
        assert_eq!(strangers(LISTING, &redirect), BTreeSet::from(expected));
        assert_eq!(strangers("", &redirect), BTreeSet::new());
    }

    #[test]
    fn the_count_is_read() {
        assert_eq!(deleted("conntrack v1.4.7 (conntrack-tools): 12 flow entries have been deleted.\n"), Some(12));
        assert_eq!(deleted("conntrack v1.4.7 (conntrack-tools): 0 flow entries have been deleted.\n"), Some(0));
        assert_eq!(deleted("conntrack: Operation failed\n"), None);
    }
}
