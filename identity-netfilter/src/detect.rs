//! Which back end this host uses.
//!
//! All three meet in the kernel, and each works beside the others. What decides is where an administrator would look: where
//! kube-proxy, the CNI plug-in and the container runtime have put their rules.

use crate::error::Error;
use crate::iptables::{CHAIN, Iptables};
use crate::nft::Nft;
use crate::rule::Backend;
use crate::tools::Tools;

/// The back end to use, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// The back end.
    pub backend: Backend,
    /// Why this one, for a log.
    pub why: String,
}

/// What one iptables variant holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Variant {
    /// Rules that are not ours.
    rules: usize,
    /// A chain by which kubelet or kube-proxy mark the variant they use.
    marked: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    /// The tables of family `ip` if `nft` is installed and works.
    tables: Option<Vec<String>>,
    /// If the variant is installed and works.
    iptables_nft: Option<Variant>,
    iptables_legacy: Option<Variant>,
    /// What the plain `iptables` is.
    default: Option<Backend>,
}

/// Looks at the programs that are installed and the rules that others have made, and chooses. Changes nothing.
///
/// # Errors
/// [`Error::MissingTool`] if neither nft nor iptables is installed; the first program's own failure if none works.
pub async fn detect(tools: &Tools) -> Result<Detected, Error> {
    let mut facts = Facts::default();
    let mut failure = None;
    if let Some(nft) = Nft::find(tools) {
        match nft.tables(tools).await {
            Ok(tables) => facts.tables = Some(tables),
            Err(error) => failure = Some(error),
        }
    }
    for backend in [Backend::IptablesNft, Backend::IptablesLegacy] {
        let variant = match Iptables::find(tools, backend).await {
            Ok(Some(programs)) => programs.save(tools).await.map(|save| Some(survey(&save))),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        match variant {
            Ok(variant) if backend == Backend::IptablesNft => facts.iptables_nft = variant,
            Ok(variant) => facts.iptables_legacy = variant,
            Err(error) => {
                tracing::debug!(%backend, %error, "not usable here");
                failure.get_or_insert(error);
            }
        }
    }
    facts.default = Iptables::default_variant(tools).await.ok().flatten().map(|(backend, _)| backend);
    match choose(&facts) {
        Some(detected) => Ok(detected),
        None => Err(failure.unwrap_or_else(|| tools.missing("nft", "nftables"))),
    }
}

fn survey(save: &str) -> Variant {
    let marks = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ", ":KUBE-PROXY-CANARY "];
    Variant {
        rules: save.lines().filter(|line| line.starts_with("-A ") && !line.contains(CHAIN)).count(),
        marked: save.lines().any(|line| marks.iter().any(|mark| line.starts_with(mark))),
    }
}

/// The order is that of Kubernetes' own `iptables-wrappers`, with nftables mode of kube-proxy before it and nft where
/// nobody has made any rules.
fn choose(facts: &Facts) -> Option<Detected> {
    let detected = |backend, why: &str| Some(Detected { backend, why: why.to_owned() });
    let rules = |variant: Option<Variant>| variant.map_or(0, |variant| variant.rules);
    let marked = |variant: Option<Variant>| variant.is_some_and(|variant| variant.marked);
    if facts.tables.as_ref().is_some_and(|tables| tables.iter().any(|table| table == "kube-proxy")) {
        return detected(Backend::Nft, "kube-proxy runs in its nftables mode");
    }
    if marked(facts.iptables_nft) {
        return detected(Backend::IptablesNft, "Kubernetes has marked iptables-nft as the variant it uses");
    }
    if marked(facts.iptables_legacy) {
        return detected(Backend::IptablesLegacy, "Kubernetes has marked iptables-legacy as the variant it uses");
    }
    if rules(facts.iptables_legacy) > rules(facts.iptables_nft) {
        return detected(Backend::IptablesLegacy, "most iptables rules of this host are in iptables-legacy");
    }
    if rules(facts.iptables_nft) > 0 {
        return detected(Backend::IptablesNft, "most iptables rules of this host are in iptables-nft");
    }
    if facts.tables.is_some() {
        return detected(Backend::Nft, "there are no iptables rules, and nft is installed");
    }
    let installed = |backend| match backend {
        Backend::IptablesNft => facts.iptables_nft.is_some(),
        Backend::IptablesLegacy => facts.iptables_legacy.is_some(),
        Backend::Nft => false,
    };
    if let Some(backend) = facts.default.filter(|backend| installed(*backend)) {
        return detected(backend, "it is this host's default iptables");
    }
    [Backend::IptablesNft, Backend::IptablesLegacy]
        .into_iter()
        .find(|backend| installed(*backend))
        .and_then(|backend| detected(backend, "nothing else is installed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Option<Variant> = Some(Variant { rules: 0, marked: false });
    const SOME: Option<Variant> = Some(Variant { rules: 3, marked: false });
    const MORE: Option<Variant> = Some(Variant { rules: 4, marked: false });
    const MARKED: Option<Variant> = Some(Variant { rules: 1, marked: true });

    #[test]
    fn the_host_decides() {
        use Backend::{IptablesLegacy as Legacy, IptablesNft as Inft, Nft};
        let tables = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        for (tables, iptables_nft, iptables_legacy, default, wanted) in [
            (tables(&[]), EMPTY, EMPTY, Some(Inft), Some(Nft)),
            (tables(&["kube-proxy"]), MARKED, MARKED, Some(Inft), Some(Nft)),
            (tables(&["filter"]), MARKED, MORE, Some(Legacy), Some(Inft)),
            (tables(&["filter"]), MORE, MARKED, Some(Inft), Some(Legacy)),
            (tables(&[]), SOME, MORE, Some(Inft), Some(Legacy)),
            (tables(&["nat"]), MORE, SOME, Some(Legacy), Some(Inft)),
            (tables(&["nat"]), SOME, SOME, Some(Legacy), Some(Inft)),
            (None, EMPTY, EMPTY, Some(Legacy), Some(Legacy)),
            (None, EMPTY, EMPTY, None, Some(Inft)),
            (None, None, EMPTY, Some(Inft), Some(Legacy)),
            (tables(&[]), None, None, None, Some(Nft)),
            (None, None, None, None, None),
        ] {
            let facts = Facts { tables, iptables_nft, iptables_legacy, default };
            assert_eq!(choose(&facts).map(|detected| detected.backend), wanted, "{facts:?}");
        }
    }

    #[test]
    fn our_own_rules_are_no_reason() {
        let save = "\
*nat
:PREROUTING ACCEPT [0:0]
:ENTRA-POD-IDENTITY - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -j ENTRA-POD-IDENTITY
-A PREROUTING -j KUBE-SERVICES
-A ENTRA-POD-IDENTITY -d 169.254.169.254/32 ! -i lo -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.42.0.1:2579
COMMIT
";
        assert_eq!(survey(save), Variant { rules: 1, marked: false });
        assert_eq!(survey("*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"), Variant { rules: 0, marked: true });
    }
}
