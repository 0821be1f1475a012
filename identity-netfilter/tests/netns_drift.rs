//! Somebody else changes the rules: every change is found and repaired within seconds, and a repair opens no gap. Needs
//! root; each test has network namespaces of its own.
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Lab, METADATA, each_backend, until};
use identity_netfilter::{Backend, Keep, Netfilter, State, keep};
use tokio::sync::{oneshot, watch};

each_backend!(every_change_is_repaired, no_gap_while_rules_come_and_go, rules_outlive_their_keeper);

/// Commands that spoil the rules, and what is said of the result.
fn spoilers(backend: Backend) -> Vec<(String, &'static str)> {
    let table = "ip entra-pod-identity";
    let cases: &[(&str, &str)] = match backend {
        Backend::Nft => &[
            ("nft delete table {}", "filter FORWARD: the chain is missing; nat PREROUTING: the chain is missing"),
            ("nft flush chain {} forward", "filter FORWARD: the rule (to 169.254.169.254: drop) is missing"),
            ("nft flush chain {} prerouting", "nat PREROUTING: the rule"),
            ("nft insert rule {} forward accept", "a rule that is not ours"),
            ("nft insert rule {} prerouting ip saddr 10.0.0.0/8 tcp dport 80 accept", "a rule that is not ours"),
            ("nft add rule {} forward ip daddr 169.254.169.254 counter drop", "a rule that is not ours"),
            ("nft add set {} s { type ipv4_addr; }", "our table holds something that is not ours"),
            ("nft add chain {} other", "our table holds something that is not ours: chain other"),
            ("nft add table {} { flags dormant; }", "flags"),
            ("nft chain {} forward { policy drop; }", "policy drop"),
        ],
        Backend::IptablesNft | Backend::IptablesLegacy => &[
            ("iptables -t nat -F ENTRA-POD-IDENTITY", "nat PREROUTING: the rule"),
            ("iptables -F ENTRA-POD-IDENTITY", "filter FORWARD: the rule"),
            ("iptables -F FORWARD", "filter FORWARD: nothing jumps to the chain"),
            ("iptables -t nat -F PREROUTING", "nat PREROUTING: nothing jumps to the chain"),
            ("iptables -I FORWARD -j ACCEPT", "filter FORWARD: the jump to the chain is rule 2, not the first"),
            ("iptables -t nat -I PREROUTING -p tcp -j ACCEPT", "the jump to the chain is rule 2"),
            ("iptables -A FORWARD -j ENTRA-POD-IDENTITY", "filter FORWARD: 2 rules jump to the chain"),
            ("iptables -I ENTRA-POD-IDENTITY -j ACCEPT", "a rule that is not ours: (-c 0 0 -j ACCEPT)"),
            ("iptables -R ENTRA-POD-IDENTITY 1 -d 169.254.169.253 -j DROP", "instead of the rule"),
            (
                "iptables -t nat -R ENTRA-POD-IDENTITY 1 -d 169.254.169.254 ! -i lo -p tcp --dport 80 -j DNAT --to-destination 10.42.0.1:2580",
                "redirect to 10.42.0.1:2580",
            ),
            ("iptables -t nat -F", "nat PREROUTING"),
        ],
    };
    let program = match backend {
        Backend::IptablesLegacy => "iptables-legacy -w",
        _ => "iptables-nft",
    };
    cases.iter().map(|(command, says)| (command.replacen("iptables", program, 1).replace("{}", table), *says)).collect()
}

fn start(netfilter: &Netfilter) -> (watch::Receiver<State>, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let (sender, state) = watch::channel(State::new(netfilter.backend()));
    let (stop, stopped) = oneshot::channel();
    let shutdown = async { _ = stopped.await };
    let keeper = tokio::spawn(keep(netfilter.clone(), Keep::every(Duration::from_millis(200)), sender, shutdown));
    (state, stop, keeper)
}

async fn wait_for(state: &mut watch::Receiver<State>, what: &str, condition: impl FnMut(&State) -> bool) -> State {
    let waiting = tokio::time::timeout(Duration::from_secs(10), state.wait_for(condition));
    waiting.await.unwrap_or_else(|_| panic!("not within 10 s: {what}")).unwrap().clone()
}

async fn every_change_is_repaired(backend: Backend) {
    let lab = Lab::new();
    lab.listen();
    let netfilter = lab.netfilter(backend).await;
    netfilter.install().await.unwrap();
    // Each is named…
    for (command, says) in spoilers(backend) {
        lab.on_node(&command);
        let differences: Vec<_> = netfilter.check().await.unwrap().iter().map(ToString::to_string).collect();
        assert!(differences.join("; ").contains(says), "{command}: {differences:?}");
        netfilter.install().await.unwrap();
        assert_eq!(netfilter.check().await.unwrap(), [], "{command}");
        // What others have put before or after our rules is not ours to remove, but is for this test.
        if !matches!(backend, Backend::Nft) {
            netfilter.remove().await.unwrap();
            for table in ["nat", "filter"] {
                lab.on_node(&format!(
                    "{} -t {table} -F",
                    if backend == Backend::IptablesNft { "iptables-nft" } else { "iptables-legacy -w" }
                ));
            }
            netfilter.install().await.unwrap();
        }
    }
    // …and repaired by the keeper.
    let (mut state, _stop, _keeper) = start(&netfilter);
    wait_for(&mut state, "installed", |state| state.installed).await;
    for (index, (command, _)) in spoilers(backend).into_iter().enumerate() {
        lab.on_node(&command);
        let repaired = u64::try_from(index + 1).unwrap();
        wait_for(&mut state, &command, |state| state.repaired == repaired).await;
        assert_eq!(netfilter.check().await.unwrap(), [], "{command}");
    }
    assert_eq!(lab.connect(METADATA).unwrap().1, "node for 169.254.169.254:80");
    assert_eq!(lab.reached(), 0);
    let state = wait_for(&mut state, "connections are counted", |state| state.redirected_connections > 0).await;
    assert_eq!(state.last_error, None);
}

async fn no_gap_while_rules_come_and_go(backend: Backend) {
    let lab = Lab::new();
    lab.listen();
    let netfilter = lab.netfilter(backend).await;
    netfilter.install().await.unwrap();
    let iptables = if backend == Backend::IptablesNft { "iptables-nft" } else { "iptables-legacy -w" };
    // One of the two rules at a time: the other one holds.
    let spoilers = match backend {
        Backend::Nft => vec![
            "nft flush chain ip entra-pod-identity prerouting".to_owned(),
            "nft delete chain ip entra-pod-identity forward".to_owned(),
            "nft add chain ip entra-pod-identity other".to_owned(),
            "nft insert rule ip entra-pod-identity prerouting counter".to_owned(),
        ],
        _ => vec![
            format!("{iptables} -t nat -F ENTRA-POD-IDENTITY"),
            format!("{iptables} -F ENTRA-POD-IDENTITY"),
            format!("{iptables} -t nat -D PREROUTING -j ENTRA-POD-IDENTITY"),
            format!("{iptables} -D FORWARD -j ENTRA-POD-IDENTITY"),
            format!("{iptables} -A ENTRA-POD-IDENTITY -j RETURN"),
            format!("{iptables} -t nat -A PREROUTING -j ENTRA-POD-IDENTITY"),
        ],
    };
    let done = AtomicBool::new(false);
    let (connected, datagrams) = (AtomicU64::new(0), AtomicU64::new(0));
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !done.load(Ordering::SeqCst) {
                        if let Ok((_, greeting)) = lab.connect(METADATA) {
                            assert_eq!(greeting, "node for 169.254.169.254:80");
                            connected.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
            for round in 0..4 {
                for spoiler in &spoilers {
                    let before = connected.load(Ordering::SeqCst);
                    lab.on_node(spoiler);
                    let repaired = runtime.block_on(netfilter.install()).unwrap().repaired;
                    assert!(!repaired.is_empty(), "{spoiler}");
                    // Connections come through again before the next change.
                    runtime.block_on(until(&format!("connections in round {round} after {spoiler}"), || async {
                        connected.load(Ordering::SeqCst) > before + 4
                    }));
                }
            }
            // Rules are written anew as fast as it goes, while datagrams try the drop, which alone holds them.
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    lab.datagram("169.254.169.254:53");
                    datagrams.fetch_add(1, Ordering::SeqCst);
                }
            });
            for _ in 0..20 {
                let before = datagrams.load(Ordering::SeqCst);
                lab.on_node(spoilers.last().unwrap());
                runtime.block_on(netfilter.install()).unwrap();
                runtime.block_on(until("datagrams are sent", || async { datagrams.load(Ordering::SeqCst) > before }));
            }
            done.store(true, Ordering::SeqCst);
        });
    });
    assert_eq!(lab.reached(), 0, "of {connected:?} connections and {datagrams:?} datagrams");
    // Had there been no rules, they would have reached it.
    netfilter.remove().await.unwrap();
    assert_eq!(lab.connect(METADATA).unwrap().1, "metadata for nobody else");
}

async fn rules_outlive_their_keeper(backend: Backend) {
    let lab = Lab::new();
    lab.listen();
    let netfilter = lab.netfilter(backend).await;
    let (mut state, stop, keeper) = start(&netfilter);
    wait_for(&mut state, "installed", |state| state.installed).await;
    // What was dropped before the rules were written anew is still counted afterwards.
    lab.datagram("169.254.169.254:53");
    wait_for(&mut state, "a datagram is counted", |state| state.dropped_packets == 1).await;
    lab.on_node(
        &spoilers(backend)
            .into_iter()
            .find(|(command, _)| command.contains("ENTRA") || command.contains("flush"))
            .unwrap()
            .0,
    );
    wait_for(&mut state, "repaired", |state| state.repaired == 1).await;
    lab.datagram("169.254.169.254:53");
    wait_for(&mut state, "another one is counted", |state| state.dropped_packets == 2).await;

    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(5), keeper).await.unwrap().unwrap();
    assert_eq!(netfilter.check().await.unwrap(), []);
    assert_eq!(lab.connect(METADATA).unwrap().1, "node for 169.254.169.254:80");

    // Aborted in the middle of whatever it was doing: the same.
    let (mut state, _stop, keeper) = start(&netfilter);
    wait_for(&mut state, "installed", |state| state.installed).await;
    keeper.abort();
    assert!(keeper.await.unwrap_err().is_cancelled());
    assert_eq!(netfilter.check().await.unwrap(), []);
}
