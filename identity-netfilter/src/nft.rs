//! The back end nft: a table of our own, written as one transaction and read back as JSON.
//!
//! Only our own table is read: other tables may hold what no model of ours can say.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::Error;
use crate::rule::{Attachment, Chain, Found, Interface, Observation, Place, Rule, Ruleset, Verdict};
use crate::tools::Tools;

/// The table; family `ip`.
pub(crate) const TABLE: &str = "entra-pod-identity";

/// How a base chain hangs on its hook.
struct Base {
    name: &'static str,
    kind: &'static str,
    hook: &'static str,
    /// Before the −100 (`dstnat`) and 0 (`filter`) of iptables, kube-proxy and CNI plug-ins.
    priority: i32,
}

fn base(place: Place) -> Base {
    match place {
        Place::Prerouting => Base { name: "prerouting", kind: "nat", hook: "prerouting", priority: -110 },
        Place::Forward => Base { name: "forward", kind: "filter", hook: "forward", priority: -10 },
    }
}

/// The transaction that makes what was seen into what is wanted.
///
/// The kernel switches from the old rules of a chain to the new ones in one step. Only if the table holds what is not ours,
/// or a chain hangs elsewhere, is it made anew; it is added first so that deleting it cannot fail.
pub(crate) fn render(rules: &Ruleset, seen: &Observation) -> String {
    let anew = !seen.strangers.is_empty()
        || Place::CLOSED_FIRST
            .into_iter()
            .any(|place| seen.chain(place).is_some_and(|chain| chain.attachment != Attachment::Right));
    let mut text = format!("add table ip {TABLE}\n");
    if anew {
        // Writing to a String cannot fail.
        let _ = write!(text, "delete table ip {TABLE}\nadd table ip {TABLE}\n");
    }
    for place in Place::CLOSED_FIRST {
        let Base { name, kind, hook, priority } = base(place);
        let rule = rule(rules.rule(place));
        let _ = write!(
            text,
            "add chain ip {TABLE} {name} {{ type {kind} hook {hook} priority {priority}; policy accept; }}\n\
             flush chain ip {TABLE} {name}\n\
             add rule ip {TABLE} {name} {rule}\n"
        );
    }
    text
}

/// The transaction that takes the table away.
pub(crate) fn render_removal() -> String {
    format!("add table ip {TABLE}\ndelete table ip {TABLE}\n")
}

fn rule(rule: &Rule) -> String {
    let mut text = String::new();
    if let Some(Interface { not, name }) = &rule.input {
        let _ = write!(text, "iifname {}\"{name}\" ", if *not { "!= " } else { "" });
    }
    if let Some(address) = rule.destination {
        let _ = write!(text, "ip daddr {address} ");
    }
    if let Some(port) = rule.tcp_port {
        let _ = write!(text, "tcp dport {port} ");
    }
    let _ = match rule.verdict {
        Verdict::Dnat(to) => write!(text, "counter dnat to {to} comment \"entra-pod-identity: to the broker\""),
        Verdict::Drop => write!(text, "counter drop comment \"entra-pod-identity: not redirected\""),
    };
    text
}

/// What `nft -j list table` prints.
#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Item {
    Metainfo(#[expect(dead_code, reason = "read past")] Value),
    Table(TableItem),
    Chain(ChainItem),
    Rule(RuleItem),
    #[serde(untagged)]
    Other(Value),
}

#[derive(Deserialize)]
struct TableItem {
    /// `dormant` would switch all of it off.
    flags: Option<Value>,
}

#[derive(Deserialize)]
struct ChainItem {
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    hook: Option<String>,
    #[serde(rename = "prio")]
    priority: Option<i32>,
    policy: Option<String>,
}

#[derive(Deserialize)]
struct RuleItem {
    chain: String,
    expr: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Expression {
    Match(Comparison),
    Counter(Count),
    Dnat(Translation),
    Drop(()),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Comparison {
    op: String,
    left: Value,
    right: Value,
}

#[derive(Deserialize)]
struct Count {
    packets: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Translation {
    #[serde(rename = "family")]
    _family: Option<String>,
    addr: Ipv4Addr,
    port: u16,
}

/// Reads a listing of our table. `Err` says what is not understood.
pub(crate) fn parse(listing: &str) -> Result<Observation, String> {
    let listing: Listing = serde_json::from_str(listing).map_err(|error| error.to_string())?;
    let mut seen = Observation::default();
    for item in listing.nftables {
        match item {
            Item::Metainfo(_) => {}
            Item::Table(table) => {
                if let Some(flags) = table.flags {
                    seen.strangers.push(format!("the flags {flags} on the table"));
                }
            }
            Item::Chain(chain) => match place(&chain.name) {
                Some(place) => {
                    let chain = Chain { attachment: attachment(place, &chain), rules: Vec::new(), packets: 0 };
                    seen.set(place, Some(chain));
                }
                None => seen.strangers.push(format!("chain {}", chain.name)),
            },
            // Rules come after all chains.
            Item::Rule(item) => {
                let chain = match place(&item.chain) {
                    Some(Place::Prerouting) => seen.prerouting.as_mut(),
                    Some(Place::Forward) => seen.forward.as_mut(),
                    None => None,
                };
                if let Some(chain) = chain {
                    let (rule, packets) = understand(&item.expr).map_or_else(
                        || (Found::Foreign(Value::from(item.expr).to_string()), 0),
                        |(rule, packets)| (Found::Rule(rule), packets),
                    );
                    chain.rules.push(rule);
                    chain.packets = chain.packets.saturating_add(packets);
                }
            }
            Item::Other(other) => seen.strangers.push(other.to_string()),
        }
    }
    Ok(seen)
}

fn place(chain: &str) -> Option<Place> {
    Place::CLOSED_FIRST.into_iter().find(|place| base(*place).name == chain)
}

fn attachment(place: Place, found: &ChainItem) -> Attachment {
    let Base { kind, hook, priority, .. } = base(place);
    if found.kind.as_deref() == Some(kind)
        && found.hook.as_deref() == Some(hook)
        && found.priority == Some(priority)
        && found.policy.as_deref() == Some("accept")
    {
        return Attachment::Right;
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
    Attachment::Wrong(format!(
        "the chain has type {}, hook {}, priority {}, policy {} instead of {kind}, {hook}, {priority}, accept",
        text(&found.kind),
        text(&found.hook),
        found.priority.map_or_else(|| "none".to_owned(), |priority| priority.to_string()),
        text(&found.policy),
    ))
}

/// A rule in our words, with its counter; none if it says anything else, lacks a counter, or says something twice.
fn understand(expressions: &[Value]) -> Option<(Rule, u64)> {
    let mut rule = Rule { input: None, destination: None, tcp_port: None, verdict: Verdict::Drop };
    let mut packets = None;
    let mut verdict = None;
    for expression in expressions {
        if verdict.is_some() {
            return None;
        }
        match Expression::deserialize(expression).ok()? {
            // What follows the counter would not be counted.
            Expression::Match(_) if packets.is_some() => return None,
            Expression::Match(Comparison { op, left, right }) => {
                let not = match op.as_str() {
                    "==" => false,
                    "!=" => true,
                    _ => return None,
                };
                if left == json!({"meta": {"key": "iifname"}}) && rule.input.is_none() {
                    rule.input = Some(Interface { not, name: right.as_str()?.to_owned() });
                } else if left == json!({"payload": {"protocol": "ip", "field": "daddr"}})
                    && rule.destination.is_none()
                    && !not
                {
                    rule.destination = Some(right.as_str()?.parse().ok()?);
                } else if left == json!({"payload": {"protocol": "tcp", "field": "dport"}})
                    && rule.tcp_port.is_none()
                    && !not
                {
                    rule.tcp_port = Some(right.as_u64()?.try_into().ok()?);
                } else {
                    return None;
                }
            }
            Expression::Counter(count) if packets.is_none() => packets = Some(count.packets),
            Expression::Counter(_) => return None,
            Expression::Dnat(Translation { addr, port, .. }) => {
                verdict = Some(Verdict::Dnat(SocketAddrV4::new(addr, port)));
            }
            Expression::Drop(()) => verdict = Some(Verdict::Drop),
        }
    }
    rule.verdict = verdict?;
    Some((rule, packets?))
}

/// The program `nft` in some network namespace.
#[derive(Clone, Debug)]
pub(crate) struct Nft {
    program: PathBuf,
}

impl Nft {
    /// None if it is not installed.
    pub(crate) fn find(tools: &Tools) -> Option<Self> {
        tools.find("nft").map(|program| Self { program })
    }

    pub(crate) fn require(tools: &Tools) -> Result<Self, Error> {
        tools.require("nft", "nftables").map(|program| Self { program })
    }

    /// What our table holds; everything is missing if there is no table.
    pub(crate) async fn observe(&self, tools: &Tools) -> Result<Observation, Error> {
        Ok(self.table(tools).await?.unwrap_or_default())
    }

    /// Whether our table is there.
    pub(crate) async fn present(&self, tools: &Tools) -> Result<bool, Error> {
        Ok(self.table(tools).await?.is_some())
    }

    async fn table(&self, tools: &Tools) -> Result<Option<Observation>, Error> {
        let output = tools.run(&self.program, &["-j", "list", "table", "ip", TABLE], None).await?;
        if output.code != Some(0) {
            let absent = output.stderr.contains("No such file or directory");
            return if absent { Ok(None) } else { Err(tools.failure(output)) };
        }
        match parse(&output.stdout) {
            Ok(seen) => Ok(Some(seen)),
            Err(reason) => Err(Error::Unreadable { command: output.command, reason }),
        }
    }

    /// Runs a transaction.
    pub(crate) async fn apply(&self, tools: &Tools, transaction: &str) -> Result<(), Error> {
        tools.must(&self.program, &["-f", "-"], Some(transaction)).await.map(|_| ())
    }

    /// The names of all tables of family `ip`.
    pub(crate) async fn tables(&self, tools: &Tools) -> Result<Vec<String>, Error> {
        let output = tools.must(&self.program, &["list", "tables", "ip"], None).await?;
        Ok(output
            .stdout
            .lines()
            .filter_map(|line| line.trim().strip_prefix("table ip "))
            .map(|name| name.trim().to_owned())
            .collect())
    }
}

#[cfg(test)]
mod tests;
