//! The back ends iptables-nft and iptables-legacy: one chain in each of two tables, replaced through
//! `iptables-restore --noflush`, read back with `-S`.
//!
//! A line `:CHAIN - [0:0]` empties and refills a chain of ours, together with the jump into it, in one commit for each
//! table; the chains of others are not mentioned and so not touched. Single chains are listed, not whole tables: kube-proxy
//! may have made fifty thousand rules beside ours.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::error::Error;
use crate::rule::{Attachment, Backend, Chain, Found, Interface, Observation, Place, Rule, Ruleset, Verdict};
use crate::tools::Tools;

/// The chain, in both tables.
pub(crate) const CHAIN: &str = "ENTRA-POD-IDENTITY";

fn table(place: Place) -> &'static str {
    match place {
        Place::Prerouting => "nat",
        Place::Forward => "filter",
    }
}

fn parent(place: Place) -> &'static str {
    match place {
        Place::Prerouting => "PREROUTING",
        Place::Forward => "FORWARD",
    }
}

/// The input of `iptables-restore --noflush` that makes what was seen into what is wanted.
pub(crate) fn render(rules: &Ruleset, seen: &Observation) -> String {
    let mut text = String::new();
    for place in Place::CLOSED_FIRST {
        // Writing to a String cannot fail.
        let _ = write!(text, "*{}\n:{CHAIN} - [0:0]\n-A {CHAIN} {}\n", table(place), rule(rules.rule(place)));
        // A jump that is right stays; a packet may be on its way through it.
        if seen.chain(place).is_none_or(|chain| chain.attachment != Attachment::Right) {
            delete_jumps(&mut text, place, seen);
            let _ = writeln!(text, "-I {} 1 -j {CHAIN}", parent(place));
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// The input of `iptables-restore --noflush` that takes away what was seen: the drop goes last.
pub(crate) fn render_removal(seen: &Observation) -> String {
    let mut text = String::new();
    for place in [Place::Prerouting, Place::Forward] {
        if seen.chain(place).is_some() {
            let _ = writeln!(text, "*{}", table(place));
            delete_jumps(&mut text, place, seen);
            let _ = write!(text, "-F {CHAIN}\n-X {CHAIN}\nCOMMIT\n");
        }
    }
    text
}

fn delete_jumps(text: &mut String, place: Place, seen: &Observation) {
    for (_, jump) in seen.jumps.iter().filter(|(at, _)| *at == place) {
        let _ = writeln!(text, "-D {} {jump}", parent(place));
    }
}

fn rule(rule: &Rule) -> String {
    let mut text = String::new();
    if let Some(address) = rule.destination {
        let _ = write!(text, "-d {address}/32 ");
    }
    if let Some(Interface { not, name }) = &rule.input {
        let _ = write!(text, "{}-i {name} ", if *not { "! " } else { "" });
    }
    if let Some(port) = rule.tcp_port {
        let _ = write!(text, "-p tcp -m tcp --dport {port} ");
    }
    let _ = match rule.verdict {
        Verdict::Dnat(to) => {
            write!(text, "-m comment --comment \"entra-pod-identity: to the broker\" -j DNAT --to-destination {to}")
        }
        Verdict::Drop => write!(text, "-m comment --comment \"entra-pod-identity: not redirected\" -j DROP"),
    };
    text
}

/// The rules of our chain from `-v -S ENTRA-POD-IDENTITY`.
pub(crate) fn parse_chain(listing: &str, attachment: Attachment) -> Chain {
    let mut chain = Chain { attachment, rules: Vec::new(), packets: 0 };
    for line in listing.lines() {
        let Some(text) = line.strip_prefix("-A ").and_then(|line| line.strip_prefix(CHAIN)) else { continue };
        let text = text.trim();
        match understand(text) {
            Some((rule, packets)) => {
                chain.rules.push(Found::Rule(rule));
                chain.packets = chain.packets.saturating_add(packets);
            }
            None => chain.rules.push(Found::Foreign(text.to_owned())),
        }
    }
    chain
}

/// What leads into our chain from `-S PREROUTING` or `-S FORWARD`, and whether that is as it should be.
pub(crate) fn parse_parent(listing: &str, place: Place) -> (Attachment, Vec<(Place, String)>) {
    let mut jumps = Vec::new();
    let mut positions = Vec::new();
    let rules = listing.lines().filter_map(|line| line.strip_prefix("-A ")?.strip_prefix(parent(place)));
    for (index, text) in rules.enumerate() {
        let words = words(text).unwrap_or_default();
        if words.windows(2).any(|pair| matches!(pair[0].as_str(), "-j" | "-g") && pair[1] == CHAIN) {
            jumps.push((place, text.trim().to_owned()));
            positions.push(index + 1);
        }
    }
    let attachment = match (positions.as_slice(), jumps.as_slice()) {
        ([], _) => Attachment::Wrong("nothing jumps to the chain".to_owned()),
        ([1], [(_, jump)]) if *jump == format!("-j {CHAIN}") => Attachment::Right,
        ([1], [(_, jump)]) => Attachment::Wrong(format!("the jump to the chain has conditions: {jump}")),
        ([position], _) => Attachment::Wrong(format!("the jump to the chain is rule {position}, not the first")),
        (positions, _) => Attachment::Wrong(format!("{} rules jump to the chain", positions.len())),
    };
    (attachment, jumps)
}

/// A rule in our words, with its counter; none if it says anything else or says something twice.
fn understand(text: &str) -> Option<(Rule, u64)> {
    fn once<T>(slot: &mut Option<T>, value: T) -> Option<()> {
        slot.replace(value).is_none().then_some(())
    }
    let (mut input, mut destination, mut tcp, mut tcp_port, mut verdict) = (None, None, None, None, None);
    let mut packets = 0;
    let words = words(text)?;
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "!" => {
                if words.next()? != "-i" {
                    return None;
                }
                once(&mut input, Interface { not: true, name: words.next()?.to_owned() })?;
            }
            "-i" => once(&mut input, Interface { not: false, name: words.next()?.to_owned() })?,
            "-d" => {
                let address = words.next()?;
                once(&mut destination, address.strip_suffix("/32").unwrap_or(address).parse::<Ipv4Addr>().ok()?)?;
            }
            "-p" => once(&mut tcp, words.next().filter(|protocol| *protocol == "tcp")?)?,
            "--dport" => once(&mut tcp_port, words.next()?.parse().ok()?)?,
            "-m" => {
                words.next().filter(|module| matches!(*module, "tcp" | "comment"))?;
            }
            "--comment" => {
                words.next()?;
            }
            "-c" => {
                packets = words.next()?.parse().ok()?;
                words.next()?.parse::<u64>().ok()?;
            }
            "-j" => {
                let target = match words.next()? {
                    "DROP" => Verdict::Drop,
                    "DNAT" => {
                        words.next().filter(|option| *option == "--to-destination")?;
                        Verdict::Dnat(words.next()?.parse().ok()?)
                    }
                    _ => return None,
                };
                once(&mut verdict, target)?;
            }
            _ => return None,
        }
    }
    // A port without its protocol, or the protocol without a port, is not what we write.
    (tcp.is_some() == tcp_port.is_some()).then_some(())?;
    Some((Rule { input, destination, tcp_port, verdict: verdict? }, packets))
}

/// Splits a line as the iptables programs write it: quotes around what has spaces, `\"` and `\\` inside them.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut characters = text.chars().peekable();
    loop {
        while characters.next_if(|c| c.is_whitespace()).is_some() {}
        match characters.peek() {
            None => return Some(words),
            Some('"') => {
                characters.next();
                let mut word = String::new();
                loop {
                    match characters.next()? {
                        '"' => break,
                        '\\' => word.push(characters.next()?),
                        other => word.push(other),
                    }
                }
                words.push(word);
            }
            Some(_) => {
                let mut word = String::new();
                while let Some(character) = characters.next_if(|c| !c.is_whitespace()) {
                    word.push(character);
                }
                words.push(word);
            }
        }
    }
}

/// One variant's programs.
#[derive(Clone, Debug)]
pub(crate) struct Iptables {
    program: PathBuf,
    restore: PathBuf,
    save: PathBuf,
}

impl Iptables {
    /// The programs of a variant: those that carry its name, or the plain ones if they say that they are of that variant.
    /// None if they are not installed.
    pub(crate) async fn find(tools: &Tools, backend: Backend) -> Result<Option<Self>, Error> {
        let named = match backend {
            Backend::IptablesLegacy => "iptables-legacy",
            Backend::IptablesNft | Backend::Nft => "iptables-nft",
        };
        if let Some(found) = Self::programs(tools, named) {
            return Ok(Some(found));
        }
        match Self::default_variant(tools).await? {
            Some((variant, _)) if variant == backend => Ok(Self::programs(tools, "iptables")),
            _ => Ok(None),
        }
    }

    /// As `find`, or an error that says what to install.
    pub(crate) async fn require(tools: &Tools, backend: Backend) -> Result<Self, Error> {
        if let Some(found) = Self::find(tools, backend).await? {
            return Ok(found);
        }
        match Self::default_variant(tools).await? {
            Some((variant, found)) if variant != backend => {
                Err(Error::WrongVariant { wanted: backend, program: tools.require("iptables", "iptables")?, found })
            }
            Some(_) => Err(tools.missing("iptables-restore", "iptables")),
            None => Err(tools.missing(&backend.to_string(), "iptables")),
        }
    }

    fn programs(tools: &Tools, name: &str) -> Option<Self> {
        Some(Self {
            program: tools.find(name)?,
            restore: tools.find(&format!("{name}-restore"))?,
            save: tools.find(&format!("{name}-save"))?,
        })
    }

    /// Which variant the plain `iptables` is, and how it says so; none if it is not installed.
    pub(crate) async fn default_variant(tools: &Tools) -> Result<Option<(Backend, String)>, Error> {
        let Some(program) = tools.find("iptables") else { return Ok(None) };
        let version = tools.must(&program, &["-V"], None).await?.stdout.trim().to_owned();
        // Before 1.8 there was only one, and it did not name itself.
        let backend = if version.contains("nf_tables") { Backend::IptablesNft } else { Backend::IptablesLegacy };
        Ok(Some((backend, version)))
    }

    /// What our two chains and the jumps to them are.
    pub(crate) async fn observe(&self, tools: &Tools) -> Result<Observation, Error> {
        let mut seen = Observation::default();
        for place in Place::CLOSED_FIRST {
            let listing = self.list(tools, &["-t", table(place), "-S", parent(place)]).await?;
            let (attachment, jumps) = parse_parent(&listing.map_err(|output| tools.failure(output))?, place);
            seen.jumps.extend(jumps);
            match self.list(tools, &["-t", table(place), "-v", "-S", CHAIN]).await? {
                Ok(listing) => seen.set(place, Some(parse_chain(&listing, attachment))),
                // 1.8.9 (nf_tables) calls a chain incompatible that does not exist, as one that `nft` has filled with
                // what iptables cannot say; refilling the chain helps in both cases.
                Err(output) if output.stderr.contains("No chain") || output.stderr.contains("is incompatible") => {}
                Err(output) => return Err(tools.failure(output)),
            }
        }
        Ok(seen)
    }

    async fn list(&self, tools: &Tools, arguments: &[&str]) -> Result<Result<String, crate::tools::Output>, Error> {
        let wait = tools.lock_seconds().to_string();
        let arguments: Vec<&str> = ["-w", &wait].into_iter().chain(arguments.iter().copied()).collect();
        let output = tools.run(&self.program, &arguments, None).await?;
        Ok(if output.code == Some(0) { Ok(output.stdout) } else { Err(output) })
    }

    /// Runs `iptables-restore`: each table in one transaction.
    pub(crate) async fn apply(&self, tools: &Tools, input: &str) -> Result<(), Error> {
        let wait = tools.lock_seconds().to_string();
        tools.must(&self.restore, &["--noflush", "-w", &wait], Some(input)).await.map(|_| ())
    }

    /// All rules of this variant. Unlike `-S`, this makes no table that was not there.
    pub(crate) async fn save(&self, tools: &Tools) -> Result<String, Error> {
        Ok(tools.must(&self.save, &[], None).await?.stdout)
    }

    /// Whether a chain of ours is there.
    pub(crate) async fn present(&self, tools: &Tools) -> Result<bool, Error> {
        let declared = format!(":{CHAIN} ");
        Ok(self.save(tools).await?.lines().any(|line| line.starts_with(&declared)))
    }
}

#[cfg(test)]
mod tests;
