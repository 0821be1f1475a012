//! Keeps one redirect in the kernel: what pods send to a metadata endpoint arrives at a port of this node instead, and
//! whatever is not redirected is dropped.
//!
//! The crate knows nothing of identities or tokens. It turns a [`Redirect`] into two rules ([`Ruleset`]), renders them for
//! a [`Backend`], puts them into the kernel in one atomic transaction, reads them back, names every [`Difference`], and
//! repairs it ([`keep()`]).
//!
//! | rule | nft (own table `ip entra-pod-identity`) | iptables (chain `ENTRA-POD-IDENTITY`) |
//! |---|---|---|
//! | tcp to the endpoint that arrives on any interface but `lo` leads to the node's own address | `prerouting`, priority −110: before the −100 of kube-proxy and CNI plug-ins | table `nat`, jump at position 1 of `PREROUTING` |
//! | whatever would be *forwarded* to the endpoint, any protocol and port, is counted and dropped | `forward`, priority −10 | table `filter`, jump at position 1 of `FORWARD` |
//!
//! What has been redirected is delivered locally and never meets the second rule; what has not is never let through. So
//! losing the first rule fails closed, a repair opens no gap (the drop is committed before the redirect, and each table is
//! replaced in one transaction), and rules stay in force when the process that installed them stops: only [`remove`] takes
//! them away. The node's own requests pass neither hook and are untouched.
//!
//! Limits: IPv4 only, as the endpoint is. If somebody removes *both* rules, pods reach the endpoint until the next check
//! ([`Keep::interval`], 2 s by default) repairs them and cuts the connections that were made meanwhile. A program that
//! insists on its own rule being first in the same iptables chain is overruled at each check.
//!
//! ```
//! use identity_netfilter::{Backend, Redirect, render};
//!
//! let redirect = Redirect::new(Redirect::METADATA, "10.42.0.1:2579".parse()?)?;
//! let text = render(Backend::Nft, &redirect);
//! assert!(text.contains("ip daddr 169.254.169.254 tcp dport 80 counter dnat to 10.42.0.1:2579"));
//!
//! // A loopback target would silently need `route_localnet`:
//! let error = Redirect::new(Redirect::METADATA, "127.0.0.1:2579".parse()?).unwrap_err();
//! assert!(error.to_string().contains("loopback"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! With a kernel at hand (root, or `CAP_NET_ADMIN` in the network namespace):
//!
//! ```no_run
//! # async fn example() -> Result<(), identity_netfilter::Error> {
//! use identity_netfilter::{Netfilter, Redirect, Tools, detect};
//!
//! let tools = Tools::default();
//! let found = detect(&tools).await?;
//! let redirect = Redirect::new(Redirect::METADATA, "10.42.0.1:2579".parse().expect("an address"))?;
//! let netfilter = Netfilter::new(redirect, found.backend, tools).await?;
//! netfilter.install().await?;
//! assert!(netfilter.check().await?.is_empty());
//! # Ok(())
//! # }
//! ```

mod conntrack;
mod detect;
mod diff;
mod error;
mod iptables;
mod keep;
mod netfilter;
mod nft;
mod rule;
mod tools;

pub use detect::{Detected, detect};
pub use diff::Difference;
pub use error::Error;
pub use keep::{Keep, State, keep};
pub use netfilter::{Counters, Installed, Netfilter, Removed, remove, render};
pub use rule::{Backend, Interface, Place, Redirect, Rule, Ruleset, Verdict};
pub use tools::Tools;
