//! What the rules do to real connections, with each back end. Needs root; each test has network namespaces of its own.
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod common;

use std::io::ErrorKind;

use common::{Lab, METADATA, connect, each_backend};
use identity_netfilter::Backend;

each_backend!(redirected, refused_without_a_listener, everything_else_is_dropped, established_connections_are_cut);

/// By-hand removal of the redirect, leaving the drop.
fn delete_redirect(lab: &Lab, backend: Backend) {
    match backend {
        Backend::Nft => lab.on_node("nft flush chain ip entra-pod-identity prerouting"),
        Backend::IptablesNft => lab.on_node("iptables-nft -t nat -F ENTRA-POD-IDENTITY"),
        Backend::IptablesLegacy => lab.on_node("iptables-legacy -w -t nat -F ENTRA-POD-IDENTITY"),
    };
}

async fn redirected(backend: Backend) {
    let lab = Lab::new();
    let node = lab.listen();
    // Otherwise the test would prove nothing: unredirected, the pod does reach the endpoint.
    assert_eq!(lab.connect(METADATA).unwrap().1, "metadata for nobody else");
    let reached = lab.reached();

    let netfilter = lab.netfilter(backend).await;
    let installed = netfilter.install().await.unwrap();
    assert_eq!(installed.repaired.len(), 2, "{installed:?}");
    assert_eq!(netfilter.check().await.unwrap(), []);

    assert_eq!(lab.connect(METADATA).unwrap().1, "node for 169.254.169.254:80");
    assert_eq!(lab.reached(), reached);
    assert_eq!(node.load(std::sync::atomic::Ordering::SeqCst), 1);
    let counters = netfilter.counters().await.unwrap();
    assert_eq!((counters.redirected_connections, counters.dropped_packets), (1, 0));

    // The node's own requests are not redirected.
    assert_eq!(connect(&lab.node, METADATA).unwrap().1, "metadata for nobody else");

    // Again: nothing to do, and the counters go on.
    let again = netfilter.install().await.unwrap();
    assert_eq!(again.repaired, []);
    assert_eq!(netfilter.counters().await.unwrap(), counters);

    // Taken away, everything is as before.
    let removed = netfilter.remove().await.unwrap();
    assert_eq!((removed.from, removed.not_looked), (vec![backend], vec![]));
    assert_eq!(netfilter.check().await.unwrap().len(), 2);
    assert_eq!(lab.connect(METADATA).unwrap().1, "metadata for nobody else");
}

async fn refused_without_a_listener(backend: Backend) {
    let lab = Lab::new();
    lab.netfilter(backend).await.install().await.unwrap();
    assert_eq!(lab.connect(METADATA).map(|talk| talk.1), Err(ErrorKind::ConnectionRefused));
    assert_eq!(lab.reached(), 0);
}

async fn everything_else_is_dropped(backend: Backend) {
    let lab = Lab::new();
    lab.listen();
    let netfilter = lab.netfilter(backend).await;
    netfilter.install().await.unwrap();
    let dropped = || async { netfilter.counters().await.unwrap().dropped_packets };

    lab.datagram("169.254.169.254:53");
    common::until("a datagram is counted", || async { dropped().await == 1 }).await;

    assert_eq!(lab.connect("169.254.169.254:8080").map(|talk| talk.1), Err(ErrorKind::TimedOut));
    let other_port = dropped().await;
    assert!(other_port > 1, "{other_port}");

    // The redirect is lost: closed, not open.
    delete_redirect(&lab, backend);
    assert_eq!(lab.connect(METADATA).map(|talk| talk.1), Err(ErrorKind::TimedOut));
    assert!(dropped().await > other_port);
    let differences = netfilter.check().await.unwrap();
    assert_eq!(differences.len(), 1, "{differences:?}");
    assert!(differences[0].to_string().contains("nat PREROUTING: the rule (arriving not on lo, tcp port 80 to 169.254.169.254: redirect to 10.42.0.1:2579) is missing"), "{}", differences[0]);

    assert_eq!(netfilter.install().await.unwrap().repaired, differences);
    assert_eq!(lab.connect(METADATA).unwrap().1, "node for 169.254.169.254:80");
    assert_eq!(lab.reached(), 0);
}

async fn established_connections_are_cut(backend: Backend) {
    let lab = Lab::new();
    lab.listen();
    // Connection tracking begins with the first rule that needs it.
    lab.feed(
        "nft -f -",
        "table ip others { chain c { type filter hook forward priority 0; ct state established accept\n }\n }",
    );
    let (mut before, greeting) = lab.connect(METADATA).unwrap();
    assert_eq!(greeting, "metadata for nobody else");
    assert_eq!(before.say("hello").unwrap(), "hello");

    let netfilter = lab.netfilter(backend).await;
    assert_eq!(netfilter.install().await.unwrap().flushed, 1);
    assert_eq!(before.say("again"), Err(ErrorKind::ConnectionReset));

    // A connection that is redirected survives a second installation.
    let (mut redirected, greeting) = lab.connect(METADATA).unwrap();
    assert_eq!(greeting, "node for 169.254.169.254:80");
    assert_eq!(netfilter.install().await.unwrap().flushed, 0);
    assert_eq!(redirected.say("still here").unwrap(), "still here");
}
