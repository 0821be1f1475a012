//! The node is not ours alone: rules of others, other back ends, the lock of the xtables tools, programs that are missing.
//! Needs root; each test has network namespaces of its own.
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod common;

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use common::{Lab, METADATA, address, each_backend};
use identity_netfilter::{Backend, Error, Keep, Netfilter, Redirect, State, Tools, detect, keep, remove};
use tokio::sync::watch;

each_backend!(rules_of_others_stay_as_they_are, the_other_variants_rules_are_replaced);

const OTHERS: &str = "\
*nat
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.42.0.9:6443
COMMIT
*filter
:cali-FORWARD - [0:0]
-A FORWARD -m comment --comment \"cali:x\" -j cali-FORWARD
-A cali-FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT
COMMIT
";

async fn rules_of_others_stay_as_they_are(backend: Backend) {
    let lab = Lab::new();
    let node = lab.listen();
    lab.feed("iptables-legacy-restore -w --noflush", OTHERS);
    lab.feed("iptables-nft-restore --noflush", OTHERS);
    lab.feed(
        "nft -f -",
        "table ip others { map m { type ipv4_addr : verdict; elements = { 10.0.0.1 : drop } }\n chain c { type nat hook prerouting priority dstnat; tcp dport 80 ip daddr 10.9.9.9 dnat to 10.8.8.8\n }\n }",
    );
    let before = lab.all_rules();

    let netfilter = lab.netfilter(backend).await;
    netfilter.install().await.unwrap();
    assert_eq!(lab.connect(METADATA).unwrap().1, "node for 169.254.169.254:80");
    let with_ours = lab.all_rules();
    assert_ne!(with_ours, before);
    let lines: Vec<&str> = with_ours.lines().collect();
    for line in before.lines() {
        assert!(lines.contains(&line), "{line} is gone");
    }
    for _ in 0..2 {
        // Repairs and a second installation change nothing of others either.
        lab.on_node(match backend {
            Backend::Nft => "nft flush chain ip entra-pod-identity forward",
            Backend::IptablesNft => "iptables-nft -D FORWARD -j ENTRA-POD-IDENTITY",
            Backend::IptablesLegacy => "iptables-legacy -w -D FORWARD -j ENTRA-POD-IDENTITY",
        });
        assert!(!netfilter.install().await.unwrap().repaired.is_empty());
        assert_eq!(lab.all_rules(), with_ours);
    }
    assert_eq!(netfilter.remove().await.unwrap().from, [backend]);
    assert_eq!(lab.all_rules(), before);
    // Nothing left to remove is no error.
    assert_eq!(netfilter.remove().await.unwrap().from, []);
    assert_eq!(lab.all_rules(), before);
    assert_eq!(node.load(std::sync::atomic::Ordering::SeqCst), 1);
}

/// An upgrade of the node's iptables, or another flag: the new rules are in force before the old ones go.
async fn the_other_variants_rules_are_replaced(backend: Backend) {
    let lab = Lab::new();
    lab.listen();
    let netfilter = lab.netfilter(backend).await;
    for other in Backend::ALL.into_iter().filter(|other| *other != backend) {
        let old = lab.netfilter(other).await;
        old.install().await.unwrap();
        let installed = netfilter.install().await.unwrap();
        assert_eq!(installed.moved_from, [other]);
        assert_eq!(netfilter.check().await.unwrap(), []);
        assert_eq!(old.check().await.unwrap().len(), 2);
        assert_eq!(lab.connect(METADATA).unwrap().1, "node for 169.254.169.254:80");
        assert_eq!(remove(&lab.tools()).await.unwrap().from, [backend]);
    }
}

#[tokio::test]
async fn the_back_end_in_use_is_found() {
    let lab = Lab::new();
    let found = || async { detect(&lab.tools()).await.unwrap() };
    assert_eq!(found().await.backend, Backend::Nft);
    // Looking makes no table.
    assert_eq!(lab.on_node("nft list ruleset"), "");
    lab.feed("iptables-nft-restore --noflush", "*filter\n-A FORWARD -s 10.0.0.0/8 -j ACCEPT\nCOMMIT\n");
    assert_eq!(found().await.backend, Backend::IptablesNft);
    lab.feed("iptables-legacy-restore -w --noflush", OTHERS);
    assert_eq!(found().await.backend, Backend::IptablesLegacy, "{}", found().await.why);
    lab.feed("iptables-nft-restore --noflush", "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n");
    assert_eq!(found().await.backend, Backend::IptablesNft, "{}", found().await.why);
    lab.on_node("nft add table ip kube-proxy");
    assert_eq!(found().await.backend, Backend::Nft, "{}", found().await.why);
}

#[tokio::test]
async fn a_busy_lock_is_said_and_waited_for() {
    let lab = Lab::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut tools = Tools { lock_wait: Duration::from_secs(1), ..lab.tools() };
    tools.prefix.extend(["env".into(), format!("XTABLES_LOCKFILE={}", file.path().display()).into()]);
    let redirect = Redirect::new(address(METADATA), address(common::NODE)).unwrap();
    let netfilter = Netfilter::new(redirect, Backend::IptablesLegacy, tools).await.unwrap();

    file.as_file().lock().unwrap();
    let error = netfilter.install().await.unwrap_err();
    assert!(matches!(error, Error::LockBusy { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("/run/xtables.lock for 1 s") && text.contains("fuser"), "{text}");

    let (sender, mut state) = watch::channel(State::new(Backend::IptablesLegacy));
    let keeper =
        tokio::spawn(keep(netfilter.clone(), Keep::every(Duration::from_millis(200)), sender, std::future::pending()));
    let mut wait = async |condition: fn(&State) -> bool| {
        let found = tokio::time::timeout(Duration::from_secs(20), state.wait_for(condition)).await;
        found.unwrap().unwrap().clone()
    };
    let busy = wait(|state| state.last_error.is_some()).await;
    assert!(!busy.installed && busy.last_error.unwrap().contains("held the lock"));
    file.as_file().unlock().unwrap();
    let free = wait(|state| state.installed).await;
    assert_eq!((free.last_error, free.repaired), (None, 0));
    keeper.abort();
}

#[tokio::test]
async fn missing_programs_are_named_with_their_packages() {
    let lab = Lab::new();
    let directory = tempfile::tempdir().unwrap();
    let tools = Tools { path: vec![directory.path().to_owned()], ..lab.tools() };
    let redirect = || Redirect::new(address(METADATA), address(common::NODE)).unwrap();
    let new = async |backend| Netfilter::new(redirect(), backend, tools.clone()).await.map(|_| ());
    let says = |result: Result<(), Error>, tool: &str, package: &str| {
        let error = result.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::MissingTool { .. }), "{text}");
        assert!(text.contains(&format!("the program {tool} is not installed")), "{text}");
        assert!(text.contains(&format!("apt-get install {package}")), "{text}");
        assert!(text.contains(&directory.path().display().to_string()), "{text}");
    };
    says(new(Backend::Nft).await, "nft", "nftables");
    says(new(Backend::IptablesNft).await, "iptables-nft", "iptables");
    says(new(Backend::IptablesLegacy).await, "iptables-legacy", "iptables");
    says(detect(&tools).await.map(|_| ()), "nft", "nftables");
    says(remove(&tools).await.map(|_| ()), "nft", "nftables");

    let link = |name: &str, to: &str| symlink(to, directory.path().join(name)).unwrap();
    link("nft", "/usr/sbin/nft");
    says(new(Backend::Nft).await, "conntrack", "conntrack");
    assert_eq!(detect(&tools).await.unwrap().backend, Backend::Nft);
    let removed = remove(&tools).await.unwrap();
    assert_eq!(removed.not_looked, [Backend::IptablesNft, Backend::IptablesLegacy]);

    // The plain name is as good as the variant's, if it is that variant.
    link("conntrack", "/usr/sbin/conntrack");
    for name in ["iptables", "iptables-save", "iptables-restore"] {
        link(name, "/usr/sbin/xtables-nft-multi");
    }
    let netfilter = Netfilter::new(redirect(), Backend::IptablesNft, tools.clone()).await.unwrap();
    netfilter.install().await.unwrap();
    assert_eq!(netfilter.check().await.unwrap(), []);
    let error = new(Backend::IptablesLegacy).await.unwrap_err();
    assert!(matches!(error, Error::WrongVariant { wanted: Backend::IptablesLegacy, .. }), "{error}");
    assert!(error.to_string().contains("(nf_tables)"), "{error}");
}

#[tokio::test]
async fn without_privilege_it_says_what_is_needed() {
    let lab = Lab::new();
    let mut tools = lab.tools();
    tools.prefix.extend(["setpriv", "--reuid=65534", "--clear-groups"].map(Into::into));
    for backend in Backend::ALL {
        let redirect = Redirect::new(address(METADATA), address(common::NODE)).unwrap();
        let netfilter = Netfilter::new(redirect, backend, tools.clone()).await.unwrap();
        let error = netfilter.install().await.unwrap_err();
        assert!(matches!(error, Error::Permission { .. }), "{backend}: {error}");
        assert!(error.to_string().contains("NET_ADMIN"), "{error}");
    }
}

/// A hung program is killed, and named.
#[tokio::test]
async fn a_program_that_hangs_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("nft");
    std::fs::write(&program, "#!/bin/sh\nexec sleep 600\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    symlink("/usr/sbin/conntrack", directory.path().join("conntrack")).unwrap();
    let path =
        [directory.path().to_owned()].into_iter().chain([PathBuf::from("/usr/bin"), PathBuf::from("/bin")]).collect();
    let tools = Tools { path, timeout: Duration::from_millis(300), ..Tools::default() };
    let redirect = Redirect::new(address(METADATA), address(common::NODE)).unwrap();
    let netfilter = Netfilter::new(redirect, Backend::Nft, tools).await.unwrap();
    let error = netfilter.check().await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains("nft -j list table ip entra-pod-identity"), "{error}");
}
